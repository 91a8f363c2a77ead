"""Commands of authsvc in processes of their own, forked from one that has imported everything, which saves a second."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Final

_FORKSERVER: Final[ForkServerContext] = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["authsvc.cli.command", "pytest", __name__])


def run_command(
    args: tuple[str, ...], *, cwd: Path, environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """As `python -m authsvc` with these arguments. Raises: subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _FORKSERVER.Process(target=_be_the_command, args=(args, cwd, dict(environment), out, err))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["authsvc", *args], timeout_s)
        return subprocess.CompletedProcess(
            ["authsvc", *args], process.exitcode, *(path.read_text("utf-8", errors="replace") for path in (out, err))
        )


def audit_lines(log: str) -> list[dict[str, Any]]:
    """Those of the audit log, of what a command or a service wrote to standard error."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "authsvc.audit"]


def _be_the_command(args: tuple[str, ...], cwd: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["authsvc", *args]
    from authsvc.__main__ import main

    main()
