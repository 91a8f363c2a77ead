"""The real service in real processes over real HTTP, with the real sandbox; each with its own port and folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests

from authsvc.settings import Environment
from tests.support.commands import run_command

START_WITHIN_S: Final = 30
STOP_WITHIN_S: Final = 20

APPID: Final = "wx1234567890abcdef"
SECRET: Final = "secret-of-the-app"
OTHER_APPID: Final = "wxfedcba0987654321"
OTHER_SECRET: Final = "secret-of-the-other-app"
SERVICE_TOKEN: Final = "service-token-of-a-back-end"
ISSUER: Final = "https://auth.example.com"


def free_port() -> int:
    """Below those that the system gives to connections on their way out (ip_local_port_range), of which tests beside
    this one make thousands: nobody listens where one of them comes from.
    """
    while True:
        port = 16_000 + secrets.randbelow(16_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def longest_stop_s() -> int:
    """After SIGTERM, by the largest AUTHSVC_WECHAT_TIMEOUT: what was accepted is answered, or its worker killed."""
    limit: int = Environment.model_json_schema()["properties"]["WECHAT_TIMEOUT"]["maximum"]
    return limit + 5


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's environment without any setting of authsvc, then with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AUTHSVC_")}
    return kept | {f"AUTHSVC_{name}": value for name, value in settings.items()}


def authsvc(*args: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. One that serves has a port of its own, unless it is given one."""
    if args[0] == "serve":
        settings = {"PORT": str(free_port())} | settings
    return run_command(args, cwd=cwd, environment=clean_environment(**settings), timeout_s=60)


@dataclass
class Running:
    """A process with its output in a file, which a full pipe would stop."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str

    def output(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_WITHIN_S)


@dataclass
class Service(Running):
    """`authsvc serve`, and the sandbox that it asks."""

    sandbox_url: str = ""
    session: requests.Session = field(default_factory=requests.Session)

    def mint(self, user: str = "user-1", **options: object) -> str:
        code: str = self.order("code", user=user, **options)["code"]
        return code

    def fault(self, name: str | None, **options: object) -> None:
        self.order("fault", name=name, **options)

    def order(self, what: str, **members: object) -> dict[str, Any]:
        """Have the sandbox do something."""
        reply = requests.post(f"{self.sandbox_url}/sandbox/{what}", json=members, timeout=10)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def upstream(self) -> dict[str, int]:
        """How often the sandbox was asked what."""
        told: dict[str, Any] = requests.get(f"{self.sandbox_url}/sandbox/calls", timeout=10).json()
        return {name: count for name, count in told.items() if isinstance(count, int)}

    def log_in(self, code: str | None = None, **members: str) -> requests.Response:
        body = {"code": code if code is not None else self.mint(), **members}
        return self.session.post(f"{self.url}/login", json=body, timeout=60)

    def token(self, user: str = "user-1") -> str:
        reply = self.log_in(self.mint(user))
        assert reply.status_code == 200, reply.text
        token: str = reply.json()["token"]
        return token

    def ask(
        self, route: str, token: str, body: object = None, *, service_token: str | None = SERVICE_TOKEN
    ) -> requests.Response:
        """`POST /session/…`, as a back end does."""
        headers = {"Authorization": f"Bearer {token}"}
        if service_token is not None:
            headers["X-Service-Token"] = service_token
        return self.session.post(f"{self.url}/session/{route}", json=body, headers=headers, timeout=60)

    def check(self, token: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.session.get(f"{self.url}/checklogin", params={"token": token}, timeout=10).json()
        return answer


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_WITHIN_S
    while time.monotonic() < give_up_at:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=2).status_code < 500:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"{url} does not answer:\n{log.read_text('utf-8', errors='replace')}")


@contextlib.contextmanager
def running(
    command: list[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str],
    url: str,
    probe: str,
    uid: int | None = None,
) -> Iterator[Running]:
    """`uid`: whom it runs as, with a group of the same number; for root to say."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else (),
        )
    try:
        wait_for(url + probe, process, log)
        yield Running(process, log, url)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def sandbox(folder: Path, *, more: Mapping[str, str] | None = None, port: int | None = None) -> Iterator[Running]:
    """The simulator alone, as `python -m authsvc.sandbox`; `more` apps are appid → secret."""
    port = port or free_port()
    apps = [f"--app={appid}:{secret}" for appid, secret in {APPID: SECRET, **(more or {})}.items()]
    command = [sys.executable, "-m", "authsvc.sandbox", "--port", str(port), *apps]
    url = f"http://127.0.0.1:{port}"
    log = folder / f"sandbox-{port}.log"
    with running(command, log=log, cwd=folder, environment=clean_environment(), url=url, probe="/sandbox/calls") as it:
        yield it


@contextlib.contextmanager
def service(folder: Path, *, wechat_url: str, port: int | None = None, **settings: str) -> Iterator[Service]:
    """`authsvc serve` with production keys in `folder`, asking the simulator at `wechat_url`."""
    port = port or free_port()
    if not (folder / "keys" / "keyset.json").exists():
        made = authsvc("keys", "init", cwd=folder, **{n: v for n, v in settings.items() if n == "ALG"})
        assert made.returncode == 0, made.stderr
    base = {
        **({} if "APPS" in settings else {"APPID": APPID, "SECRET": SECRET}),
        "ISSUER": ISSUER,
        "WECHAT_URL": wechat_url,
        "PORT": str(port),
        "WORKERS": "1",
        "LOGIN_RATE": "off",  # all of a test's clients have one address
        "ACCESS_LOG": "all",
    }
    url = f"http://{settings.get('HOST', '127.0.0.1').replace('0.0.0.0', '127.0.0.1')}:{port}"
    with running(
        [sys.executable, "-m", "authsvc", "serve"],
        log=folder / f"service-{port}.log",
        cwd=folder,
        environment=clean_environment(**(base | settings)),
        url=url,
        probe="/healthz",
    ) as it:
        yield Service(it.process, it.log, it.url, sandbox_url=wechat_url)
