"""The sandbox as a process of its own beside the service, never outliving it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from authsvc.errors import CannotListen

_STOP_WITHIN_S: Final = 5


class SandboxProcess:
    """`python -m authsvc.sandbox`, started on entering and stopped on leaving. `url` is where it answers."""

    def __init__(self, *, appid: str, secret: str, port: int) -> None:
        """`port` is tried first; if it is taken, the sandbox listens on a free one."""
        self._app = f"{appid}:{secret}"
        self._port = port
        self.url = ""

    def __enter__(self) -> Self:
        for port in (self._port, 0):
            self._process = subprocess.Popen(  # noqa: S603 - this very Python, no shell
                [sys.executable, "-m", "authsvc.sandbox", "--port", str(port), "--app", self._app, "--exit-with-stdin"],
                # Held open for as long as we live: when it closes, however we ended, the sandbox ends too.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if port else None,
                text=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("AUTHSVC_")},
            )
            assert self._process.stdout is not None
            first_line = self._process.stdout.readline()
            if "http://" in first_line:
                self.url = "http://" + first_line.split("http://", 1)[1].split()[0]
                return self
            self._process.wait()
        raise CannotListen("the sandbox did not start")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def noted_addresses(path: Path, addresses: Mapping[str, str]) -> Iterator[None]:
    """Leave a note of where service and sandbox answer, for `make demo`, and take it away again if it is still ours."""
    note = json.dumps(addresses) + "\n"
    path.write_text(note, "utf-8")
    try:
        yield
    finally:
        if path.exists() and path.read_text("utf-8") == note:
            path.unlink()


def read_addresses(path: Path) -> dict[str, str]:
    """Raises: OSError or ValueError if there is no such note."""
    found: dict[str, str] = json.loads(path.read_text("utf-8"))
    return found
