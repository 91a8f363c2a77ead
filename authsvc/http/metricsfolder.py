"""Where the workers count for `/metrics`. The main process has no more to do with it than this."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from authsvc.errors import CannotCount

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def metrics_folder(*, is_needed: bool) -> Iterator[Path | None]:
    """A folder for the time that the service runs. None if there can be none and none is needed.

    Raises: CannotCount.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="authsvc-metrics-"))
    except OSError as error:
        if is_needed:
            raise CannotCount(
                f"the metrics need a folder for temporary files: {error.strerror}; mend: set TMPDIR to one that may be "
                "written to, or unset AUTHSVC_OPS_TOKEN"
            ) from None
    try:
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def count_in(folder: Path) -> None:
    """In a worker, before prometheus-client is imported, which goes by it for good. Raises: OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)  # somebody may have tidied up
    os.environ[_VARIABLE] = str(folder)


def take_up_room(folder: Path) -> None:
    """Have the disk give what this process's files promise: they are written to as memory, and where the disk is full
    then, that kills the process. Raises: OSError.
    """
    for path in folder.glob(f"*_{os.getpid()}.db"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def forget_worker(folder: Path | None, pid: int) -> None:
    """What was true of a worker while it lived; what it counted stays."""
    for file in () if folder is None else folder.glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)
