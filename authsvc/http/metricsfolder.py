"""Where the workers count for `/metrics`. The main process has no more to do with it than this."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from authsvc.errors import CannotCount

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_LOCK: Final = ".lock"


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


def take_place(folder: Path) -> str:
    """What this process's files are called by: no other that lives has that place. It ends with the process.

    The next one takes it over, and counts on from what its files say: so nothing is lost, and there are no more files
    than there were workers at once. With the number of the process in its place there would be some for each worker
    that there ever was. Raises: OSError.
    """
    for number in itertools.count():
        name = str(number)
        # Never closed by us: the kernel does it, whatever ends the process.
        if _locked(folder / f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT) is not None:
            _forget_state(folder, name)
            return name
    raise AssertionError


def take_up_room(folder: Path, name: str) -> None:
    """Have the disk give what the files of a place promise: they are written to as memory, and where the disk is full
    then, that kills the process. Raises: OSError.
    """
    for path in files_of(folder, name):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def files_of(folder: Path, name: str) -> Iterator[Path]:
    return folder.glob(f"*_{name}.db")


def forget_worker(folder: Path | None, _pid: int) -> None:
    """What was true of a worker while it lived; what it counted stays."""
    if folder is None:
        return
    for path in folder.glob(f"*{_LOCK}"):
        with suppress(OSError):
            lock = _locked(path, os.O_RDWR)
            if lock is None:
                continue
            try:
                _forget_state(folder, path.name.removesuffix(_LOCK))
            finally:
                os.close(lock)


def _forget_state(folder: Path, name: str) -> None:
    for path in folder.glob(f"gauge_live*_{name}.db"):
        path.unlink(missing_ok=True)


def _locked(path: Path, flags: int) -> int | None:
    """A descriptor with a lock that ends when the last copy of it is closed; None if another one has it.

    Raises: OSError.
    """
    found = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(found)
        return None
    except OSError:
        os.close(found)
        raise
    return found
