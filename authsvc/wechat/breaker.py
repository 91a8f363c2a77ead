"""A circuit breaker: after a while without any answer, nobody waits for the next one but a single scout."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from authsvc.errors import WeChatBadReply, WeChatBusy, WeChatTimeout

OPEN_S: Final = 5.0
"""How long nobody asks after a failure; the Retry-After of `wechat_busy` is the same."""

_FAILURES: Final = 5  # a lonely user's bad luck is no outage

# What says that WeChat is not well. Everything else is an answer, a refusal too.
_OUTAGE: Final = (WeChatTimeout, WeChatBadReply, WeChatBusy)


_log = logging.getLogger("authsvc.wechat")


class Breaker:
    """Opens when there were only failures for `down_for_s` seconds, five of them at least; thread-safe."""

    def __init__(self, name: str, *, down_for_s: float, monotonic: Callable[[], float]) -> None:
        """`name` is that of the call, for the log."""
        self._name = name
        self._last = ""
        self._down_for_s = down_for_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures = 0
        self._failing_since = 0.0
        self._is_open = False
        self._asked_next_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether WeChat is taken for down."""
        return self._is_open

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around one call of WeChat. Raises: WeChatBusy at once, without the call, while WeChat is down."""
        self._admit()
        try:
            yield
        except _OUTAGE as error:
            self._note_failure(str(error))
            raise
        except BaseException:
            self._note_answer()
            raise
        self._note_answer()

    def _admit(self) -> None:
        now = self._monotonic()
        with self._lock:
            if not self._is_open:
                return
            if now < self._asked_next_at:
                raise WeChatBusy(f"WeChat has been down for a while (last: {self._last}); it is asked again in seconds")
            # This one is the scout. Should it never come back, another one goes after the same time.
            self._asked_next_at = now + OPEN_S

    def _note_failure(self, problem: str) -> None:
        now = self._monotonic()
        with self._lock:
            was_open, self._last = self._is_open, problem
            if self._failures == 0:
                self._failing_since = now
            self._failures += 1
            if self._failures >= _FAILURES and now - self._failing_since >= self._down_for_s:
                self._is_open = True
                self._asked_next_at = now + OPEN_S
            opens, count = self._is_open and not was_open, self._failures
        if opens:
            _log.warning("WeChat is down: %s failed %d times in a row, the last time: %s", self._name, count, problem)

    def _note_answer(self) -> None:
        with self._lock:
            closes, self._is_open = self._is_open, False
            self._failures = 0
        if closes:
            _log.warning("WeChat is back: %s was answered", self._name)
