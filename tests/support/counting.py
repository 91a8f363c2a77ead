"""Processes that count in one folder as workers do. For a process of its own: prometheus-client is told once where."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from authsvc.http.metricsfolder import count_in
from tests.support.clock import FakeClock
from tests.support.keys import keyring
from tests.support.service import clean_environment

_BEGIN: Final = """
import sys
from pathlib import Path
from authsvc.http.metricsfolder import forget_ended
from tests.support.counting import Counting

folder = Path(sys.argv[1])
it = Counting(folder)
"""


def with_counting(folder: Path, script: str) -> None:
    """Run a script in a process of its own, with a `Counting` as `it` and a `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + script, str(folder)],
        cwd=Path(__file__).parents[2],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Counting:
    def __init__(self, folder: Path) -> None:
        count_in(folder)
        from authsvc.http.metrics import Metrics

        ring = keyring()
        self._new: Callable[[], Metrics] = lambda: Metrics(
            folder, keys=lambda: ring, rotate_every_s=0, clock=FakeClock()
        )
        self._folder = folder
        self._workers: set[int] = set()
        atexit.register(lambda: self.kill(*self._workers))

    def workers(self, number: int, *, logins: int, is_down: bool = False) -> list[int]:
        """So many at once, when each has counted its logins; they live until they are killed."""

        def work() -> bytes:
            metrics = self._new()
            for _ in range(logins):
                metrics.note_wechat("jscode2session", 0.1, is_down)
                metrics.note_login("ok", None)
            return b"."

        pids, outputs = zip(*[_forked(work, and_wait=True) for _ in range(number)], strict=True)
        self._workers.update(pids)
        for output in outputs:
            assert os.read(output, 1) == b"."
            os.close(output)
        return list(pids)

    def kill(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._workers.discard(pid)

    def told(self) -> dict[str, float]:
        """By another worker, which ends then."""
        pid, output = _forked(lambda: self._new().text(), and_wait=False)
        with open(output, encoding="utf-8") as file:
            lines = [line.rpartition(" ") for line in file.read().splitlines() if not line.startswith("#")]
        os.waitpid(pid, 0)
        return {name: float(value) for name, _, value in lines}

    def logins(self) -> float:
        return self.told()["authsvc_tokens_issued_total"]

    def places(self) -> set[str]:
        """What the files are called by."""
        return {path.stem.split("_")[-1] for path in self._folder.glob("*.db")}


def _forked(work: Callable[[], bytes], *, and_wait: bool) -> tuple[int, int]:
    """A process, and where to read what its work gave."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, work())
            os.close(writer)
            if and_wait:
                signal.pause()
        finally:
            os._exit(0)
    os.close(writer)
    return pid, reader
