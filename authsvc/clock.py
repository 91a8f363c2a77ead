"""The only reader of the clocks; everything else gets the time as an argument."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Says what time it is. Calls may come from any thread."""

    def now(self) -> int:
        """Unix time in whole seconds, rounded down, as tokens and key times use it."""

    def now_us(self) -> int:
        """Unix time in microseconds, to order the logins of one user."""

    def monotonic(self) -> float:
        """Seconds since some moment: for spans, because nobody can set this clock."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> int:
        return int(time.time())

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()
