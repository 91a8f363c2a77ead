"""Files that are there whole or not at all, whenever the power goes: made new, replaced by rename, synced in order.

Everything is for its owner alone (0600) unless said otherwise. Paths are a folder and a name in it; no link is followed
for the name.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_OWNER_ALONE: Final = 0o600
_POLL_S: Final = 0.05
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Locked(Exception):
    """Somebody else has held the lock all the time."""


def create(folder: Path, name: str, data: bytes, *, mode: int = _OWNER_ALONE) -> None:
    """A new file; its bytes are on the disk on return, the entry that names it only after `sync(folder)`.

    Raises: OSError, FileExistsError among them; nothing is left then, unless that cannot be removed either.
    """
    descriptor = os.open(folder / name, _NEW, _OWNER_ALONE)
    try:
        if mode != _OWNER_ALONE:
            os.fchmod(descriptor, mode)
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        os.unlink(folder / name)
        raise
    os.close(descriptor)


def replace(folder: Path, name: str, data: bytes, *, mode: int = _OWNER_ALONE, writer: str | None = None) -> None:
    """A file with new content: a reader sees the old or the new one. On the disk for good only after `sync(folder)`.

    `writer`: a name for this one, where there is no lock and process numbers do not tell writers apart.

    Raises: OSError; the old one is in force then, unless the rename was done and then failed to say so.
    """
    temporary = f"{name}.{writer or os.getpid()}.tmp"
    (folder / temporary).unlink(missing_ok=True)  # of a process that had our number and died
    create(folder, temporary, data, mode=mode)
    try:
        os.replace(folder / temporary, folder / name)
    except BaseException:
        (folder / temporary).unlink(missing_ok=True)  # an interruption may come when the rename is done
        raise


def remove(folder: Path, name: str) -> None:
    """Without a word if it is not there. Raises: OSError."""
    (folder / name).unlink(missing_ok=True)


def clear_temporary(folder: Path, name: str) -> None:
    """Remove what replacements of `name` left behind that did not live to see their end; only under the lock."""
    for left_over in folder.glob(f"{name}.*.tmp"):
        left_over.unlink()


def sync(folder: Path) -> None:
    """fsync(2): syncing a file does not sync the entry that names it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, name: str, *, wait_s: float) -> Iterator[None]:
    """One writer at a time on this host (flock(2)); the kernel lets go of the lock when its holder dies.

    Raises: Locked after `wait_s` seconds; OSError if the lock file cannot be made.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        give_up_at = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise Locked from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)
