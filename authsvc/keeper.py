"""Keeps the keys of a worker process current, and has them rotated when that is due.

Every worker looks at the manifest once a second and swaps to a newer one that is whole. Every worker also knows when
something is due; the lock on the folder sees to it that exactly one does it, on all hosts that share the folder.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from authsvc.audit import KeyAudit
from authsvc.clock import Clock
from authsvc.errors import KeysConflict, KeysError, StoreUnavailable
from authsvc.keyfiles import KeyFolder, part_files
from authsvc.keyring import Keyring
from authsvc.keyset import Keyset
from authsvc.rotation import has_ended_part, needs_tick, tick

_STOP_WITHIN_S: Final = 3.0
LOOK_EVERY_S: Final = 1.0

# What fails is said at once, and then once a minute.
_SAY_AGAIN_S: Final = 60.0
# How long what has failed is left alone: to open encrypted parts, and to wait for a store or a disk, takes its time.
_READ_AGAIN_S: Final = 5.0
_TRY_AGAIN_S: Final = 60.0
# How long a clock that was set has to run on before anything is written down by it.
_STEADY_S: Final = 300.0
_NO_STEP_S: Final = 2.0

_log = structlog.get_logger("authsvc.keys")


@dataclass(frozen=True, slots=True)
class Rotation:
    """How this service rotates by itself."""

    every_s: int  # 0: by hand; only destroys private parts whose time is over
    alg: str | None  # of keys to be made; None: as those there are
    random_bytes: Callable[[int], bytes] = field(repr=False)


class KeyKeeper:
    """The keys in force in this process. `current` is for any thread; `look` for one at a time."""

    def __init__(
        self,
        folder: KeyFolder,
        keyring: Keyring,
        *,
        clock: Clock,
        rotation: Rotation,
        remember: Callable[[Mapping[str, int]], None],
        clock_offset: float | None = None,
        audit: KeyAudit | None = None,
    ) -> None:
        """`remember` gets every revoked key once (id → Unix seconds), and again until it does not raise
        StoreUnavailable. `clock_offset`: of an earlier process, so that a clock that was set since is noticed.
        `audit`: what the workers of a service share; None: of this process alone."""
        self._folder = folder
        self._keyring = keyring
        self._clock = clock
        self._rotation = rotation
        self._remember = remember
        self._audit = KeyAudit(keyring.keyset, is_shared=False) if audit is None else audit
        self._is_told = True
        self._version: object = _NONE_READ
        self._read_again_at = 0.0
        self._remembered: set[str] = set()
        self._remember_again_at = 0.0
        self._ticked_at = 0
        self._tick_again_at = 0.0
        self._clear_again_at = 0.0
        self._gone: set[str] = set()  # files of earlier manifests that the present one does not name
        self._locked_since: float | None = None
        self._clock_offset = offset_of(clock) if clock_offset is None else clock_offset
        self._steady_at = 0.0
        self._problem: str | None = None
        self._said: dict[str, tuple[str, float]] = {}
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()

    def current(self) -> Keyring:
        """The keys of the newest manifest that was whole when this process looked."""
        return self._keyring

    @property
    def problem(self) -> str | None:
        """Why the manifest that lies in the folder is not the one in force; None if it is."""
        return self._problem

    def start(self) -> None:
        """Look once a second from now on, in a thread that ends with the process. After a fork, not before."""
        self._thread = threading.Thread(target=self._run, name="authsvc-keys", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A look that is under way is waited for, three seconds at most: a process that ends in the midst
        of a change leaves its journal for the next command."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(_STOP_WITHIN_S)

    def look(self) -> None:
        """Take over a newer manifest, and do what is due. Never raises what the folder or the store may do."""
        self._reload()
        if not self._is_told:
            self._is_told = self._audit.saw(self._keyring.keyset, now=self._clock.now())
        self._remember_revoked()
        steady = self._clock_is_steady()
        if self._problem is None and steady and not self._folder.is_read_only and self._is_due() and self._tick():
            self._reload()

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a keeper that has died would leave the worker with its keys
                self._say("unexpected_error", type(error).__name__, exc_info=error)
            self._is_over.wait(LOOK_EVERY_S)

    # ---- reload ----

    def _reload(self) -> None:
        version = self._folder.version()
        if version == self._version and (self._problem is None or self._clock.monotonic() < self._read_again_at):
            return
        self._version = _NONE_READ  # until the folder has answered: whatever else comes is tried again
        try:
            found = self._folder.load(now=self._clock.now(), known=self._keyring)
            self._check_is_newer(found.keyset)
        except KeysError as error:
            self._version = version
            self._problem = str(error)
            self._read_again_at = self._clock.monotonic() + _READ_AGAIN_S
            self._say("keys_not_reloaded", str(error), generation_in_force=self._keyring.keyset.generation)
            return
        except BaseException as error:
            self._problem = f"an unexpected {type(error).__name__}"
            raise
        self._version, self._problem = version, None
        if found.keyset != self._keyring.keyset:
            self._gone = (self._gone | part_files(self._keyring.keyset)) - part_files(found.keyset)
            self._keyring = found
            self._is_told = False
            now = self._clock.now()
            _log.info("keys_loaded", generation=found.keyset.generation, kid=found.signing_key(now=now).kid)

    def _check_is_newer(self, found: Keyset) -> None:
        in_force = self._keyring.keyset
        if found == in_force:
            return
        if found.purpose is not in_force.purpose:
            raise KeysError(
                f"{self._folder.path} has the keys of another service now, for {found.purpose}; "
                "mend: put its own back, from the backup"
            )
        # The second: commands given in an old folder may have lifted its generation above ours.
        if found.generation <= in_force.generation or not _revoked(found) >= _revoked(in_force):
            raise KeysError(
                f"{self._folder.path} went back to generation {found.generation} from {in_force.generation}, or forgot "
                "a revoked key: an old backup, or two folders that were mixed up; mend: restore the newer one, or "
                "restart the service if the older one is meant"
            )

    def _remember_revoked(self) -> None:
        revoked = {key.id: key.revoked_at for key in self._keyring.keyset.keys if key.revoked_at is not None}
        if revoked.keys() <= self._remembered or self._clock.monotonic() < self._remember_again_at:
            return
        try:
            self._remember(revoked)
        except StoreUnavailable as error:
            self._remember_again_at = self._clock.monotonic() + _TRY_AGAIN_S
            self._say("revocation_not_remembered", str(error))
        else:
            self._remembered |= revoked.keys()

    # ---- rotation ----

    def _clock_is_steady(self) -> bool:
        """A clock that was just set may be wrong still, and with the times that a rotation writes down so would be the
        folder: whoever has the right time could not use it."""
        monotonic, offset = self._clock.monotonic(), offset_of(self._clock)
        step = offset - self._clock_offset
        if abs(step) > max(self._keyring.keyset.lifecycle.skew_s, _NO_STEP_S):
            self._clock_offset = offset
            self._steady_at = monotonic + _STEADY_S
            self._say(
                "clock_was_set",
                "nothing is rotated by a clock that was just set",
                level=logging.WARNING,
                by_s=round(step),
            )
        return monotonic >= self._steady_at

    def _is_due(self) -> bool:
        if self._clock.monotonic() < self._tick_again_at:
            self._locked_since = None
            return False
        keyset, now, every_s = self._keyring.keyset, self._clock.now(), self._rotation.every_s
        if every_s == 0:
            # Files may come back, too: another host's copy of what has ended here already.
            again = bool(self._gone) or self._clock.monotonic() >= self._clear_again_at
            return again or has_ended_part(keyset, now=now, since=self._ticked_at)
        due = needs_tick(keyset, now=now, since=self._ticked_at, rotate_every_s=every_s) or self._folder.is_interrupted
        if not due:
            self._locked_since = None
        return due

    def _tick(self) -> bool:
        """Do what is due, if it still is when the lock is ours. False if the manifest was not changed."""
        now, every_s = self._clock.now(), self._rotation.every_s
        try:
            if every_s == 0:
                # Somebody else writes: the operator, or a host whose copy of the folder this is.
                self._folder.destroy_ended(now=now, gone=self._gone)
                self._gone = set()
                self._ticked_at = now
                self._locked_since = None
                self._clear_again_at = self._clock.monotonic() + _TRY_AGAIN_S
                return False
            with self._audit.held() as is_ours:
                if not is_ours:
                    # Else a third worker could see our change before it has its line, and take it for somebody else's.
                    raise KeysConflict("another worker of this service is at it")
                change = self._folder.change(
                    lambda keyset, new: tick(keyset, new, now=now, rotate_every_s=every_s, alg=self._rotation.alg),
                    now=now,
                    random_bytes=self._rotation.random_bytes,
                    wait_s=0,
                )
                if change.is_one:
                    self._audit.rotated(change, now=now)
        except KeysConflict as error:
            # Somebody is at it; the next look shows what came of it.
            self._locked_since = self._locked_since or self._clock.monotonic()
            if self._clock.monotonic() >= self._locked_since + _SAY_AGAIN_S:
                self._say("keys_not_rotated", str(error))
            return False
        except KeysError as error:
            self._tick_again_at = self._clock.monotonic() + _TRY_AGAIN_S
            self._locked_since = None
            self._say("keys_not_rotated", str(error))
            return False
        self._ticked_at = now
        self._locked_since = None
        return change.is_one

    def _say(self, event: str, problem: str, *, level: int = logging.ERROR, **fields: Any) -> None:
        """Each second would fill the log with it. A problem with other figures in it is the same one."""
        now, kind = self._clock.monotonic(), re.sub(r"\d+", "", problem)
        said, at = self._said.get(event, ("", 0.0))
        if kind != said or now >= at + _SAY_AGAIN_S:
            self._said[event] = kind, now
            _log.log(level, event, problem=problem, **fields)


def offset_of(clock: Clock) -> float:
    """How far the time of day is from a clock that nobody sets. It changes when somebody sets the former."""
    return clock.now() - clock.monotonic()


_NONE_READ: Final = object()


def _revoked(keyset: Keyset) -> set[str]:
    return {key.id for key in keyset.keys if key.revoked_at is not None}
