"""What `GET /checklogin` costs on the real server, beside the servers that others would write for it.

`python -m tests.bench.serve`. Each server has one core and one process, and wrk has the other core; all take turns,
several rounds of them. Absolute figures move by a third from hour to hour: believe the ratios.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from rich.console import Console
from rich.table import Table

from authsvc.claims import Claims
from authsvc.keyfiles import KeyFolder
from authsvc.tokens import sign_token
from tests.support.service import APPID, ISSUER, clean_environment, free_port, sandbox, service, wait_for

ROUNDS: Final = 3
ROUND_S: Final = 4
CONNECTIONS: Final = 32
NEVER_SEEN: Final = 40_000  # tokens in turn: four times as many as a worker remembers
SERVER_CORE: Final = 0
CLIENT_CORE: Final = 1

NODE: Final = Path(__file__).parent / "node"
OPS_TOKEN: Final = "ops-token-of-an-operator"

# wrk asks with what the script gives it; one token after another, from a file of them.
SCRIPT: Final = """
local tokens, number = {}, 0
for line in io.lines(os.getenv("TOKENS")) do tokens[#tokens + 1] = "/checklogin?token=" .. line end
request = function()
  number = number % #tokens + 1
  return wrk.format("GET", tokens[number])
end
"""


@dataclass(frozen=True)
class Contender:
    name: str
    url: str
    pid: int  # of the process that answers
    tokens: Path


@dataclass
class Found:
    per_s: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # of the server, for a request


def main() -> None:
    console = Console(width=None if os.isatty(1) else 140)
    wrk = shutil.which("wrk") or shutil.which("wrk", path=".venv/peers/usr/bin")
    if wrk is None:
        console.print("wrk is missing (Debian: apt-get install wrk): nothing was measured")
        return
    load_before = os.getloadavg()[0]
    found: dict[str, Found] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = _contenders(stack, folder, console)
        for _ in range(ROUNDS):
            for contender in contenders:
                _measure(wrk, contender, found.setdefault(contender.name, Found()), folder)
    console.print(_table(found))
    for line in _aims({name: statistics.median(each.per_s) for name, each in found.items()}):
        console.print(line, highlight=False)
    load = f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores"
    console.print(f"load average: {load}", highlight=False)


def _contenders(stack: contextlib.ExitStack, folder: Path, console: Console) -> list[Contender]:
    os.sched_setaffinity(0, {SERVER_CORE})  # whoever is started from here has it too
    wechat = stack.enter_context(sandbox(folder))
    at_work = partial(service, wechat_url=wechat.url, ACCESS_LOG="login", WORKERS="1")
    ours = stack.enter_context(at_work(_made(folder / "ours")))
    shutil.copytree(folder / "ours" / "keys", folder / "counting" / "keys")
    shutil.copytree(folder / "ours" / "keys", folder / "plain" / "keys")
    counting = stack.enter_context(at_work(folder / "counting", OPS_TOKEN=OPS_TOKEN))
    plain = stack.enter_context(at_work(folder / "plain", FAST_LANE="0"))
    token = ours.token()
    seen, never_seen, garbage = (folder / name for name in ("seen", "never-seen", "garbage"))
    seen.write_text(f"{token}\n")
    garbage.write_text(f"{token[:-8]}AAAAAAAA\n")
    public_key = _sign_many(folder / "ours" / "keys", never_seen)
    made = [
        Contender("authsvc, seen tokens", ours.url, _worker(ours.process.pid), seen),
        Contender("authsvc, never-seen tokens", ours.url, _worker(ours.process.pid), never_seen),
        Contender("authsvc, garbage", ours.url, _worker(ours.process.pid), garbage),
        Contender("authsvc with /metrics, seen", counting.url, _worker(counting.process.pid), seen),
        Contender("authsvc without its fast lane, seen", plain.url, _worker(plain.process.pid), seen),
    ]
    given = json.dumps({"token": token, "publicKey": public_key})
    for name, kind in (("Express, look-up in a map", "map"), ("Express + jsonwebtoken", "jwt")):
        if not (NODE / "node_modules").exists() and shutil.which("npm"):
            subprocess.run(["npm", "ci", "--prefix", str(NODE), "--no-audit", "--no-fund"], check=False)
        if shutil.which("node") is None or not (NODE / "node_modules").exists():
            console.print(f"MISSING: {name}")
            continue
        made.append(_started(stack, folder, name, ["node", str(NODE / "servers.mjs"), kind], given, seen))
    for name, kind in (
        ("flask-jwt-extended", "flask-jwt-extended"),
        ("hello-world, Flask", "flask"),
        ("hello-world, raw WSGI", "raw"),
    ):
        command = [sys.executable, "-m", "tests.bench.peers", kind]
        made.append(_started(stack, folder, f"{name}, on our server", command, public_key, seen))
    os.sched_setaffinity(0, {CLIENT_CORE})
    return made


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _sign_many(keys: Path, to: Path) -> str:
    """Tokens of the service's own key, in a file. Returns its public key."""
    now = int(time.time())
    key = KeyFolder(keys, group_read=False).load(now=now).signing_key(now=now)
    with to.open("w") as file:
        for number in range(NEVER_SEEN):
            claims = Claims(
                issuer=ISSUER,
                audience="api",
                openid=f"oABC-def_{number:08}",
                appid=APPID,
                issued_at=now,
                expires_at=now + 7200,
                jti=f"{number:022}",
                sid=f"{number:022}",
                auth_time=now,
            )
            file.write(sign_token(claims, key, typ="at+jwt") + "\n")
    public: bytes = key.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


def _worker(main: int) -> int:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(main)], capture_output=True, text=True, check=False)
    return int(listed.stdout.split()[0])


def _started(
    stack: contextlib.ExitStack, folder: Path, name: str, command: Sequence[str], stdin: str, tokens: Path
) -> Contender:
    port = free_port()
    log = folder / f"{port}.log"
    process = subprocess.Popen(
        [*command, str(port)],
        stdin=subprocess.PIPE,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        env=clean_environment(),
    )
    stack.callback(_ended, process)
    assert process.stdin is not None
    process.stdin.write(stdin.encode())
    process.stdin.close()
    wait_for(f"http://127.0.0.1:{port}/checklogin", process, log)
    answers = _worker(process.pid) if command[0] == sys.executable else process.pid
    return Contender(name, f"http://127.0.0.1:{port}", answers, tokens)


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)


def _measure(wrk: str, contender: Contender, found: Found, folder: Path) -> None:
    script = folder / "ask.lua"
    script.write_text(SCRIPT)
    with _cpu_of(contender.pid) as cpu:
        done = subprocess.run(
            [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}", "--latency", "-s", str(script), contender.url],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"TOKENS": str(contender.tokens)},
        )
    number, unit = _only(r"99%\s+([\d.]+)(us|ms|s)", done.stdout)
    found.per_s.append(float(_only(r"Requests/sec:\s+([\d.]+)", done.stdout)[0]))
    found.p99_ms.append(float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit])
    found.cpu_us.append(cpu[0] / int(_only(r"(\d+) requests in", done.stdout)[0]) * 1e6)


def _only(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    assert found is not None, text
    return found.groups()


@contextlib.contextmanager
def _cpu_of(pid: int) -> Iterator[list[float]]:
    """The seconds of CPU that the process took within the block."""
    took = [0.0]
    before = _cpu_s(pid)
    yield took
    took[0] = _cpu_s(pid) - before


def _cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _table(found: dict[str, Found]) -> Table:
    express = statistics.median(found["Express, look-up in a map"].per_s) if "Express, look-up in a map" in found else 0
    table = Table(
        *("", "requests/s", "of Express's map", "p99 ms", "CPU µs a request"),
        title=f"GET /checklogin, one process on one core, {CONNECTIONS} connections, median of {ROUNDS} rounds",
    )
    for name, each in found.items():
        per_s = statistics.median(each.per_s)
        ratio = f"{per_s / express:.2f}" if express else ""
        figures = (f"{statistics.median(each.p99_ms):.1f}", f"{statistics.median(each.cpu_us):.0f}")
        table.add_row(name, f"{per_s:,.0f}", ratio, *figures)
    return table


def _aims(per_s: dict[str, float]) -> Iterator[str]:
    seen, raw = per_s["authsvc, seen tokens"], per_s["hello-world, raw WSGI, on our server"]
    yield f"seen: {seen / raw:.2f} of the raw hello-world on the same server (aim: at least 0.65)"
    if (express := per_s.get("Express, look-up in a map")) is not None:
        yield f"seen: {seen / express:.2f} × Express's look-up in a map (aim: at least 6)"
        yield f"never seen: {per_s['authsvc, never-seen tokens'] / express:.2f} × the same (aim: at least 1.4)"


if __name__ == "__main__":
    main()
