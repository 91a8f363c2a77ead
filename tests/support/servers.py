"""Database servers that a test starts itself, kills and starts again; and clients that log in meanwhile.

A server has a spare port and a folder of its own, and the same ones when it comes again. None outlives its test, nor
the process that runs the test.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import psycopg
import pytest
import requests

from authsvc.clock import SystemClock
from authsvc.sandbox.server import SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat
from tests.support.service import APPID, SECRET, START_WITHIN_S, STOP_WITHIN_S, Service

# Below those that the kernel takes for outgoing connections, and so are those 10,000 above, where nodes of a Redis
# Cluster talk to one another. A client that tries a dead server's port may be given that very port for its own end: it
# is connected with itself then, and the server cannot come again.
_PORTS: Final = range(10_000, 22_000)


def until(condition: Callable[[], bool], *, within_s: float, what: str) -> None:
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


def _spare_port() -> int:
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# ---- processes ----------------------------------------------------------------------------------


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def _is_gone(pid: int) -> bool:
    try:
        # A zombie has let go of everything; who reaps it is not our business.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def kill_at_once(*mains: subprocess.Popen[bytes]) -> float:
    """SIGKILL to these processes and their children, as near to one moment as can be.

    Returns when all are gone: the moment, in seconds of time.monotonic().
    """
    for main in mains:
        main.send_signal(signal.SIGSTOP)  # it makes no more children, and sees none of them die
    doomed = [pid for main in mains for pid in (*_children(main.pid), main.pid)]
    killed_at_s = time.monotonic()
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    for main in mains:
        main.wait(STOP_WITHIN_S)
    until(lambda: all(map(_is_gone, doomed)), within_s=STOP_WITHIN_S, what="all that were killed are gone")
    return killed_at_s


# ---- database servers ---------------------------------------------------------------------------


class OwnServer(ABC):
    """A database server of the test's own. It ends with the thread that starts it: let that be the main one."""

    name: ClassVar[str]

    def __init__(self, program: str, folder: Path, user: str | None) -> None:
        """It runs as `user`, whose the empty `folder` is; None is whoever runs the test."""
        self.folder = folder
        self._program = program
        self.port = _spare_port()
        # Popen's words for it.
        self._as_user: dict[str, Any] = (
            {} if user is None else {"user": user, "group": _group(user), "extra_groups": ()}
        )
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    @abstractmethod
    def find() -> str | None:
        """The program, if it is there."""

    @staticmethod
    @abstractmethod
    def find_user() -> str | None:
        """Whom it is to run as."""

    @property
    @abstractmethod
    def url(self) -> str:
        """As AUTHSVC_STORE has it."""

    @property
    @abstractmethod
    def arguments(self) -> list[str]: ...

    @abstractmethod
    def prepare(self) -> None:
        """What is done once, before the first start."""

    @abstractmethod
    def answers(self) -> bool: ...

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} does not run"
        return self._process

    def start(self) -> None:
        """Returns when it answers."""
        setpriv = shutil.which("setpriv")
        # However the test's process ends, the server ends with it.
        tied = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*tied, self._program, *self.arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # no Ctrl-C reaches it before the test is done with it
                **self._as_user,
            )
        give_up_at = time.monotonic() + START_WITHIN_S
        while not self.answers():
            goes_on = self._process.poll() is None and time.monotonic() < give_up_at
            assert goes_on, f"{self.name} did not start:\n{log.read_text('utf-8', errors='replace')}"
            time.sleep(0.02)

    def kill(self) -> None:
        kill_at_once(self.process)
        self._process = None

    @contextlib.contextmanager
    def dead(self) -> Iterator[None]:
        """Killed, and at the end started again."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It keeps its connections, the kernel takes new ones for it, and nothing is answered."""
        main = self.process
        main.send_signal(signal.SIGSTOP)  # first, so that no more children come
        stopped = [*_children(main.pid), main.pid]
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()


class PostgresqlServer(OwnServer):
    name = "PostgreSQL"

    @staticmethod
    def find() -> str | None:
        # Debian has them by version, and not on the PATH.
        by_version = {int(path.parts[-3]): path for path in Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres")}
        return str(by_version[max(by_version)]) if by_version else shutil.which("postgres")

    @staticmethod
    def find_user() -> str | None:
        if os.geteuid() != 0:
            return None
        # It refuses to be root.
        known = {entry.pw_name for entry in pwd.getpwall()}
        return next(name for name in ("postgres", "nobody") if name in known)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def arguments(self) -> list[str]:
        # With its own fsync and synchronous_commit, which are on: that what was answered lasts is what is tested. Its
        # shared memory in the folder goes with the folder, also when it is killed for good.
        return [
            *("-D", str(self._data), "-k", str(self._data), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1"),
            *("-c", "shared_buffers=16MB", "-c", "dynamic_shared_memory_type=mmap"),
        ]

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def prepare(self) -> None:
        made = subprocess.run(
            [
                *(Path(self._program).resolve().with_name("initdb"), "--pgdata", self._data, "--username=postgres"),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync"),
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_WITHIN_S,
            check=False,
            **self._as_user,
        )
        assert made.returncode == 0, made.stderr

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


class RedisServer(OwnServer):
    name = "Redis"

    @staticmethod
    def find() -> str | None:
        return shutil.which("redis-server")

    @staticmethod
    def find_user() -> str | None:
        return None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def arguments(self) -> list[str]:
        return [
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        ]

    def prepare(self) -> None:
        """Nothing: it makes its files itself."""

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # -LOADING while it reads what it has
        return False


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


@contextlib.contextmanager
def own_server(kind: type[OwnServer]) -> Iterator[OwnServer]:
    """A new server of this kind, running. Without its program the test is skipped aloud, and with CI=true it fails."""
    program = kind.find()
    if program is None:
        complaint = f"THE SERVER OF {kind.name.upper()} IS MISSING: what comes of its end was not tested"
        if os.environ.get("CI"):
            pytest.fail(complaint)
        pytest.skip(complaint)
    user = kind.find_user()
    # Not in pytest's own folder, which is closed to everybody else.
    folder = Path(tempfile.mkdtemp(prefix="authsvc-"))
    try:
        if user is not None:
            shutil.chown(folder, user, _group(user))
        server = kind(program, folder, user)
        try:
            server.prepare()
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


# ---- WeChat and its clients ---------------------------------------------------------------------

KEY_MARKER: Final = bytes.fromhex("f1c70e93a85d42be67")
"""What every session_key of `marked_wechat` begins with. Nine bytes, which are twelve whole characters in base64."""


def _marked_bytes(count: int) -> bytes:
    return KEY_MARKER + secrets.token_bytes(count - len(KEY_MARKER))


@contextlib.contextmanager
def marked_wechat() -> Iterator[SandboxServer]:
    """The simulator in this process, whose session keys all begin alike: one look finds any of them."""
    model = SandboxWeChat({APPID: SECRET}, clock=SystemClock(), random_bytes=_marked_bytes)
    with SandboxServer(model) as server:
        yield server


@dataclass(frozen=True, slots=True)
class Tried:
    """One login, and what came of it. Seconds are those of time.monotonic()."""

    user: str
    began_at_s: float
    ended_at_s: float
    status: int | None  # None if there was no answer
    content_type: str = ""
    retry_after: str | None = None
    said: str = ""  # the problem's code, or why there was no answer
    token: str = field(default="", repr=False)

    @property
    def took_s(self) -> float:
        return self.ended_at_s - self.began_at_s


class Clients:
    """Threads that log in, again and again, each time with a user of its own. One that gets no answer ends."""

    def __init__(
        self, url: str, wechat: SandboxServer, *, name: str, threads: int, pause_s: float, timeout_s: float
    ) -> None:
        self._url = url
        self._wechat = wechat
        self._name = name
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._enough = threading.Event()
        self._tried: list[list[Tried]] = [[] for _ in range(threads)]

    @property
    def by_thread(self) -> list[list[Tried]]:
        return [list(tried) for tried in self._tried]

    @property
    def tried(self) -> list[Tried]:
        return [one for tried in self.by_thread for one in tried]

    @property
    def answered(self) -> list[Tried]:
        """Those that got a token."""
        return [one for one in self.tried if one.status == 200]

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        with ThreadPoolExecutor(len(self._tried)) as pool:
            started = [pool.submit(self._log_in, number) for number in range(len(self._tried))]
            try:
                yield
            finally:
                self._enough.set()
            for thread in started:
                thread.result()

    def _log_in(self, thread: int) -> None:
        tried = self._tried[thread]
        with requests.Session() as session:
            while not self._enough.is_set():
                tried.append(self._try(session, f"{self._name}-{thread}-{len(tried)}"))
                if tried[-1].status is None:
                    return
                self._enough.wait(self._pause_s)

    def _try(self, session: requests.Session, user: str) -> Tried:
        code = self._wechat.model.mint_code(APPID, user)
        began_at_s = time.monotonic()
        try:
            reply = session.post(f"{self._url}/login", json={"code": code}, timeout=self._timeout_s)
        except requests.RequestException as error:
            return Tried(user, began_at_s, time.monotonic(), None, said=repr(error))
        ended_at_s = time.monotonic()
        said = reply.json()
        return Tried(
            user,
            began_at_s,
            ended_at_s,
            reply.status_code,
            content_type=reply.headers["Content-Type"],
            retry_after=reply.headers.get("Retry-After"),
            said=said.get("code", ""),
            token=said.get("token", ""),
        )


def without_their_key(it: Service, wechat: SandboxServer, answered: Iterable[Tried]) -> list[str]:
    """Of users with a token those whose token is not good, or whose session_key the service does not have."""
    found = []
    for one in answered:
        data = wechat.model.open_data(APPID, one.user)
        verified = it.ask("verify", one.token, {"rawData": data["rawData"], "signature": data["signature"]})
        if not (it.check(one.token)["is_login"] and verified.json() == {"valid": True}):
            found.append(f"{one.user}: {verified.text}")
    return found
