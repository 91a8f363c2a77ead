"""How often open data of a user have failed to open: more than a few times a day is somebody who tries it out.

WeChat's encryption authenticates nothing (AES-CBC). Who may try changed ciphertexts for ever learns, from which of them
still open, how to make data of his own that do.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from authsvc.errors import TooManyFailures

MOST_FAILURES: Final = 50
WITHIN_S: Final = 86_400

# The one that was noted longest ago is forgotten beyond it: a hundred bytes each.
_MOST_USERS: Final = 50_000


class Failures:
    """Counts them in this process. Thread-safe."""

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._counts: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()  # how many, and until when

    def check(self, appid: str, openid: str) -> None:
        """Raises: TooManyFailures if there were 50 within a day."""
        with self._lock:
            count, ends_at = self._counts.get((appid, openid), (0, 0.0))
        if count >= MOST_FAILURES and self._monotonic() < ends_at:
            raise TooManyFailures("data of this user have failed to open too often; try again tomorrow")

    def note(self, appid: str, openid: str) -> None:
        now = self._monotonic()
        with self._lock:
            count, ends_at = self._counts.pop((appid, openid), (0, 0.0))
            self._counts[appid, openid] = (count + 1, ends_at) if now < ends_at else (1, now + WITHIN_S)
            if len(self._counts) > _MOST_USERS:
                self._counts.popitem(last=False)
