"""A clock that the test sets."""

from __future__ import annotations

from dataclasses import dataclass

NOW = 1_800_000_000


@dataclass
class FakeClock:
    at: int = NOW

    def now(self) -> int:
        return self.at

    def now_us(self) -> int:
        return self.at * 1_000_000
