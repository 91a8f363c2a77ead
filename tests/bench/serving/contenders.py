"""The servers of the benchmark, each started as its users would start it, and the WeChat that they ask."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import requests
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from authsvc.claims import Claims
from authsvc.keyfiles import KeyFolder
from authsvc.settings import load_settings
from authsvc.tokens import sign_token
from tests.bench.serving.machine import CLIENT_CORE, CORES, SERVER_CORE, family
from tests.bench.serving.trusting import CHAIN
from tests.support.service import APPID, ISSUER, SECRET, authsvc, clean_environment, free_port, running, wait_for
from tests.support.tls import certificate

OURS: Final = "authsvc"
COUNTING: Final = "authsvc with /metrics"
PLAIN: Final = "authsvc without its fast lane"
GUNICORN: Final = "authsvc on gunicorn"
MAP: Final = "Express, look-up in a map"
JWT: Final = "Express + jsonwebtoken"
EXTENDED: Final = "flask-jwt-extended, on our server"
FLASK: Final = "hello-world, Flask, on our server"
RAW: Final = "hello-world, raw, on our server"
RAW_WSGI: Final = "hello-world, raw WSGI, on granian"

NEVER_SEEN: Final = 40_000  # tokens in turn: four times as many as a worker remembers
_CODES_AT_ONCE: Final = 60_000
_CODES_GOOD_FOR_S: Final = 120  # WeChat takes them for 300, and a run is to end before that
_OPS_TOKEN: Final = "ops-token-of-an-operator"
_ROOT: Final = Path(__file__).parents[3]
_NODE: Final = Path(__file__).parents[1] / "node"


@dataclass(frozen=True)
class Server:
    name: str
    url: str
    pids: tuple[int, ...]
    places: int | None = None  # logins that may wait for WeChat at once; None: as many as there are

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@dataclass(frozen=True)
class Tokens:
    """Files of tokens, one a line."""

    seen: Path
    never_seen: Path
    garbage: Path


@dataclass
class WeChat:
    url: str
    chain: Path  # its certificate, which nobody trusts by himself
    process: subprocess.Popen[str]
    _codes: deque[str] = field(default_factory=deque)
    _minted_at: float = 0

    def answer_after(self, delay_s: float) -> None:
        fault = {"name": "delay", "delay_s": delay_s, "times": 1_000_000_000} if delay_s else {"name": None}
        requests.post(f"{self.url}/sandbox/fault", json=fault, timeout=10, verify=str(self.chain)).raise_for_status()

    def exchanges(self) -> int:
        """How often it was asked to exchange a code."""
        asked: int = requests.get(f"{self.url}/sandbox/calls", timeout=10, verify=str(self.chain)).json()[
            "jscode2session"
        ]
        return asked

    def codes(self, number: int) -> deque[str]:
        """At least so many; who takes them from it uses them up."""
        if time.monotonic() - self._minted_at > _CODES_GOOD_FOR_S:
            self._codes.clear()
        if len(self._codes) < number:
            self._codes.clear()  # the rest would be older than is noted
            self._minted_at = time.monotonic()
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(f"{max(number, _CODES_AT_ONCE)}\n")
            self.process.stdin.flush()
            self._codes.extend(self.process.stdout.readline().split())
        return self._codes


@contextlib.contextmanager
def wechat(folder: Path) -> Iterator[WeChat]:
    """On the core of those who ask: what it does is no work of the service."""
    port = free_port()
    certificate(folder, host="127.0.0.1")
    chain = folder / "chain.pem"
    command = [sys.executable, "-m", "tests.bench.serving.upstream", str(port), str(chain), str(folder / "private.pem")]
    with on_core(CLIENT_CORE), (folder / "wechat.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, env=clean_environment()
        )
    it = WeChat(f"https://127.0.0.1:{port}", chain, process)
    try:
        it.codes(1)  # it listens before it gives any
        yield it
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def on_core(*cores: int) -> Iterator[None]:
    """Whoever is started within has these, too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Contenders:
    """Starts them, with so many processes each; one has a core to itself, several have all."""

    def __init__(
        self, stack: contextlib.ExitStack, folder: Path, wechat: WeChat, *, processes: int, say: Callable[[str], None]
    ) -> None:
        self._stack = stack
        self._folder = folder
        self._wechat = wechat
        self._processes = processes
        self._say = say
        self._cores = {SERVER_CORE} if processes == 1 else set(CORES)
        made = authsvc("keys", "init", cwd=folder)
        assert made.returncode == 0, made.stderr
        self._keys = folder / "keys"
        self.servers: dict[str, Server] = {}
        with on_core(*self._cores):
            self._start_ours(OURS)
            self._start_on_gunicorn()
            self.tokens, given = self._make_tokens()
            self._start_nodes(given)
            self._start_peer(RAW, "raw", given)
            self._start_peer(RAW_WSGI, "raw-wsgi", given)
            if processes == 1:
                self._start_ours(COUNTING, OPS_TOKEN=_OPS_TOKEN)
                self._start_ours(PLAIN, FAST_LANE="0")
                self._start_peer(EXTENDED, "flask-jwt-extended", given)
                self._start_peer(FLASK, "flask", given)

    @contextlib.contextmanager
    def alone(self, server: Server) -> Iterator[None]:
        """The others stand still: a dozen servers that look at the time now and then are a load of their own."""
        others = [pid for other in self.servers.values() if other is not server for pid in other.pids]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def _settings(self, folder: Path, **more: str) -> dict[str, str]:
        return {
            "APPID": APPID,
            "SECRET": SECRET,
            "ISSUER": ISSUER,
            "WECHAT_URL": self._wechat.url,
            "KEYS": str(self._keys),
            "STORE": f"sqlite:///{folder / 'authsvc.db'}",
            "WORKERS": str(self._processes),
            "LOGIN_RATE": "off",
            "ACCESS_LOG": "login",
        } | more

    def _new_folder(self, name: str) -> Path:
        folder = self._folder / name.replace("/", "").replace(" ", "-")
        folder.mkdir()
        # Where `service` looks, before it makes some.
        shutil.copytree(self._keys, folder / "keys")
        return folder

    def _start_ours(self, name: str, **more: str) -> None:
        folder = self._new_folder(name)
        port = free_port()
        settings = self._settings(folder, **more) | {"KEYS": str(folder / "keys"), "PORT": str(port)}
        it = self._stack.enter_context(
            running(
                [sys.executable, "-m", "tests.bench.serving.trusting", "serve"],
                log=folder / "log",
                cwd=folder,
                environment=self._environment(settings) | {"PYTHONPATH": str(_ROOT)},
                url=f"http://127.0.0.1:{port}",
                probe="/readyz",
            )
        )
        self.servers[name] = Server(name, it.url, family(it.process.pid), self._places(settings))

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        chain = str(self._wechat.chain)
        return clean_environment(**settings) | {CHAIN: chain, "NODE_EXTRA_CA_CERTS": chain}

    def _start_on_gunicorn(self) -> None:
        folder = self._new_folder(GUNICORN)
        settings = self._settings(folder) | {"KEYS": str(folder / "keys")}
        threads = load_settings(_prefixed(settings), dotenv=folder / ".env", cores=1, or_sandbox=False).threads
        options = f"--worker-class gthread --workers {self._processes} --threads {threads} --keep-alive 75"
        command = [sys.executable, "-m", "gunicorn", *options.split(), "--no-control-socket", "--log-level", "warning"]
        self._start(
            GUNICORN,
            [*command, "tests.bench.serving.on_gunicorn:app()", "--bind"],
            settings=settings,
            address="127.0.0.1:",
            places=self._places(settings),
        )

    def _places(self, settings: Mapping[str, str]) -> int:
        loaded = load_settings(_prefixed(settings), dotenv=self._folder / ".env", cores=1, or_sandbox=False)
        return loaded.wechat_in_flight * self._processes

    def _start_nodes(self, given: str) -> None:
        if not (_NODE / "node_modules").exists() and shutil.which("npm"):
            subprocess.run(["npm", "ci", "--prefix", str(_NODE), "--no-audit", "--no-fund"], check=False)
        for name, kind in ((MAP, "map"), (JWT, "jwt")):
            if shutil.which("node") is None or not (_NODE / "node_modules").exists():
                self._say(f"MISSING: {name}")
            elif kind == "jwt" or self._processes == 1:  # a map is one process's own
                self._start(name, ["node", str(_NODE / "servers.mjs"), kind, str(self._processes)], stdin=given)

    def _start_peer(self, name: str, kind: str, given: str) -> None:
        command = [sys.executable, "-m", "tests.bench.peers", kind, str(self._processes)]
        self._start(name, command, stdin=json.loads(given)["publicKey"])

    def _start(
        self,
        name: str,
        command: Sequence[str],
        *,
        stdin: str = "",
        settings: Mapping[str, str] | None = None,
        address: str = "",
        places: int | None = None,
    ) -> None:
        port = free_port()
        log = self._folder / f"{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, f"{address}{port}"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._environment(settings or {}),
            )
        self._stack.callback(_end, process)
        assert process.stdin is not None
        process.stdin.write(stdin.encode())
        process.stdin.close()
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/checklogin", process, log)
        if self._processes > 1:
            time.sleep(1)  # for the others of its processes; the first one has answered
        self.servers[name] = Server(name, url, family(process.pid), places)

    def _make_tokens(self) -> tuple[Tokens, str]:
        """Tokens of the service's own key in files, and what Express is given."""
        now = int(time.time())
        key = KeyFolder(self._keys, group_read=False).load(now=now).signing_key(now=now)
        tokens = Tokens(self._folder / "seen", self._folder / "never-seen", self._folder / "garbage")

        def signed(number: int) -> str:
            claims = Claims(
                issuer=ISSUER,
                audience="api",
                openid=f"oABC-def_{number:08}",
                appid=APPID,
                issued_at=now,
                expires_at=now + 9999,  # whose number of seconds keeps its length
                jti=f"{number:022}",
                sid=f"{number:022}",
                auth_time=now,
            )
            return sign_token(claims, key, typ="at+jwt")

        token = signed(NEVER_SEEN)
        tokens.seen.write_text(f"{token}\n")
        tokens.garbage.write_text(f"{token[:-8]}AAAAAAAA\n")
        with tokens.never_seen.open("w") as file:
            file.writelines(f"{signed(number)}\n" for number in range(NEVER_SEEN))
        private = key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        given = {
            "token": token,
            "publicKey": public.decode(),
            "privateKey": private.decode(),
            "wechat": self._wechat.url,
            "appid": APPID,
            "secret": SECRET,
        }
        return tokens, json.dumps(given)


def _prefixed(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"AUTHSVC_{name}": value for name, value in settings.items()}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
