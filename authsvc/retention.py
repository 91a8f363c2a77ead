"""Rows whose time is over leave the side store: in small batches, by one worker of all at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from authsvc.clock import Clock
from authsvc.errors import StoreUnavailable
from authsvc.store import SharedValue, Store

PURGE_EVERY_S: Final = 60

# A login that waits for such a batch does not notice it.
_AT_ONCE: Final = 500
_PAUSE_S: Final = 0.05
_CLAIM: Final = "purging"
_CLAIM_BYTES: Final = 16

_log = structlog.get_logger("authsvc.store")


def purge(store: Store, *, now: int, sleep: Callable[[float], None]) -> int:
    """Delete all rows that have ended at `now`; with pauses, so that others get in between. Returns how many.

    Raises: StoreUnavailable.
    """
    purged = 0
    while batch := store.purge(now=now, at_most=_AT_ONCE):
        purged += batch
        sleep(_PAUSE_S)
    return purged


class Purger:
    """Has the rows purged, about once a minute, by whichever worker on whichever host comes first."""

    def __init__(
        self, store: Store, *, clock: Clock, random_bytes: Callable[[int], bytes], sleep: Callable[[float], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._random_bytes = random_bytes
        self._sleep = sleep

    def start(self) -> None:
        """Look from now on, in a thread that ends with the process. After a fork, not before."""
        threading.Thread(target=self._run, name="authsvc-purge", daemon=True).start()

    def look(self) -> None:
        """Purge, unless another worker has done so in this minute. Never raises what the store may do."""
        now = self._clock.now()
        claim = SharedValue(_CLAIM, self._random_bytes(_CLAIM_BYTES), now + PURGE_EVERY_S)
        try:
            purged = purge(self._store, now=now, sleep=self._sleep) if self._store.share_first(claim, now=now) else 0
        except StoreUnavailable as error:
            _log.warning("store_not_purged", problem=str(error))
            return
        if purged:
            _log.info("store_purged", rows=purged)

    def _run(self) -> None:
        while True:
            # First of all: what a service that was down for days has left waits for nothing else.
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - rows would be kept for ever, and nobody would know
                _log.error("unexpected_error", problem=type(error).__name__, exc_info=error)
            self._sleep(PURGE_EVERY_S)
