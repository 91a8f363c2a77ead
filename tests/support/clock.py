"""A clock that the test sets."""

from __future__ import annotations

from dataclasses import dataclass

NOW = 1_800_000_000


@dataclass
class FakeClock:
    at: int = NOW
    set_by: int = 0  # how much of `at` is not time that has passed

    def now(self) -> int:
        return self.at

    def now_us(self) -> int:
        return self.at * 1_000_000

    def monotonic(self) -> float:
        return float(self.at - self.set_by)
