"""The audit log: what was done to keys and users, and who did it. One line each, of the logger `authsvc.audit`."""

from __future__ import annotations

import fcntl
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

import structlog

from authsvc.errors import KeysError
from authsvc.keyfiles import Change
from authsvc.keyreport import Step, What, changes
from authsvc.keyset import Keyset, Kind
from authsvc.manifest import dump_manifest, parse_manifest

SERVICE: Final = "the service itself"
ANOTHER: Final = "another process"  # a command, or a host that shares the folder: the manifest does not say who

_log = structlog.get_logger("authsvc.audit")


def log_user_act(what: str, *, by: str, appid: str, user: str, reason: str) -> None:
    """`user`: the stand-in that lines about requests have, so that both are found by it."""
    _log.info(what, by=by, appid=appid, user=user, **({"reason": reason} if reason else {}))


def log_store_act(what: str, *, by: str, **about: str) -> None:
    _log.info(what, by=by, **about)


def log_key_act(what: str, before: Keyset | None, after: Keyset, *, by: str, now: int) -> None:
    """`before`: None for the first keys."""
    try:
        kid = after.active(Kind.SIGNING, now=now).id
    except KeysError:  # by a clock that is behind
        kid = None
    steps = [_words(step, now=now) for step in changes(before, after, now=now)]
    _log.info(what, by=by, generation=after.generation, kid=kid, steps=steps)


class KeyAudit:
    """Sees to it that a change of the key folder has one line in the log of a service, and not one of each worker.

    Workers share it by being forked with it. Nobody ever waits here: a worker that was stopped in the midst of it is
    not to keep others from new keys.
    """

    def __init__(self, keyset: Keyset, *, is_shared: bool) -> None:
        self._told = keyset
        self._file = _nameless_file() if is_shared else None
        if self._file is not None:
            weakref.finalize(self, os.close, self._file)
        self._tell(keyset)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Until the end of it the other workers log nothing; False if another one is at it."""
        if self._file is None:
            yield True
            return
        try:
            # Not flock(2), which is for the open file, and that one is shared. The kernel takes this one from the dead.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def rotated(self, change: Change, *, now: int) -> None:
        """This process made the change. While it is `held`, nobody takes it for another's."""
        self._see(change.before, now=now)
        log_key_act("keys_rotated", change.before, change.after, by=SERVICE, now=now)
        self._tell(change.after)

    def saw(self, keyset: Keyset, *, now: int) -> bool:
        """These keys are in force now. False: it could not be told whether they have a line; ask again."""
        with self.held() as is_ours:
            if is_ours:
                self._see(keyset, now=now)
            return is_ours

    def _see(self, keyset: Keyset, *, now: int) -> None:
        # Not what this worker had before: one that took another's place began with keys of long ago.
        told = self._last()
        if keyset.generation > told.generation:
            log_key_act("keys_changed", told, keyset, by=ANOTHER, now=now)
            self._tell(keyset)

    def _last(self) -> Keyset:
        if self._file is not None:
            with suppress(OSError, KeysError):
                return parse_manifest(os.pread(self._file, os.fstat(self._file).st_size, 0))
        return self._told

    def _tell(self, keyset: Keyset) -> None:
        self._told = keyset
        if self._file is not None:
            with suppress(OSError):
                text = dump_manifest(keyset)
                os.pwrite(self._file, text, 0)
                os.ftruncate(self._file, len(text))


def _nameless_file() -> int | None:
    """A descriptor; None where there is no room for a file: then each worker has its own lines."""
    try:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError:
        return None


def _words(step: Step, *, now: int) -> str:
    said = f"{step.what} {step.key.id}"
    if step.at is not None and step.at > now:
        said += f" at {datetime.fromtimestamp(step.at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if step.what is What.REVOKED and step.key.reason:
        said += f": {step.key.reason}"
    return said
