"""Where the workers count for `/metrics`. The main process has no more to do with it than this."""

from __future__ import annotations

import errno
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
_PREFIX: Final = "authsvc-counts-"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY
_UNNAMED: Final = "authsvc-unnamed-"


@contextmanager
def metrics_folder(*, is_needed: bool) -> Iterator[Path | None]:
    """A folder for the time that the service runs. None if there can be none and none is needed.

    Those of services that were killed are removed. Raises: CannotCount.
    """
    folder = None
    held: list[int] = []  # by this process alone: a worker that outlives it is no service

    def let_go() -> None:
        while held:
            os.close(held.pop())

    os.register_at_fork(after_in_child=let_go)
    try:
        _remove_left_behind(Path(tempfile.gettempdir()))
        unnamed = folder = Path(tempfile.mkdtemp(prefix=_UNNAMED))
        with suppress(OSError):  # where nothing can be locked, nobody removes what seems to be left behind
            held.append(_lock(unnamed, _FOLDER))
            # The name comes after the lock, or another service that starts now would take it for one left behind.
            folder = unnamed.rename(unnamed.with_name(_PREFIX + unnamed.name.removeprefix(_UNNAMED)))
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
        let_go()


def _remove_left_behind(temporary: Path) -> None:
    for path in temporary.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # no folder, a link, another user's, one in use
            lock = _lock(path, _FOLDER)
            try:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def count_in(folder: Path) -> None:
    """In a worker, before prometheus-client is imported, which goes by it for good. Raises: OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)  # somebody may have tidied up
    with suppress(OSError):  # the main process has it, but not one that was made anew
        _lock(folder, _FOLDER)
    os.environ[_VARIABLE] = str(folder)


def take_place(folder: Path) -> str:
    """What this process's files are called by: no other that lives has that place. It ends with the process.

    The next one takes it over, and counts on from what its files say: so nothing is lost, and there are no more files
    than there were workers at once. With the number of the process in its place there would be some for each worker
    that there ever was. Raises: OSError.
    """
    for number in itertools.count():
        name = str(number)
        with suppress(BlockingIOError):
            # Never closed by us: the kernel does it, whatever ends the process.
            _lock(folder / f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT)
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


def forget_ended(folder: Path | None) -> None:
    """What was true of workers while they lived; what they counted stays."""
    if folder is None:
        return
    for path in folder.glob(f"*{_LOCK}"):
        with suppress(OSError):  # its worker lives
            lock = _lock(path, os.O_RDWR)
            try:
                _forget_state(folder, path.name.removesuffix(_LOCK))
            finally:
                os.close(lock)


def _forget_state(folder: Path, name: str) -> None:
    for path in folder.glob(f"gauge_live*_{name}.db"):
        path.unlink(missing_ok=True)


def _lock(path: Path, flags: int) -> int:
    """A descriptor with the lock, which ends when the last copy of it is closed.

    Raises: BlockingIOError if another one has it, another OSError if this is not ours.
    """
    found = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(found).st_uid != os.geteuid():  # root may open everybody's
            raise PermissionError(errno.EPERM, "another user's")
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(found)
        raise
    return found
