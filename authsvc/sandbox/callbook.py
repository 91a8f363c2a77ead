"""What was asked of the sandbox's WeChat: how often, and what became of the last calls. Never a secret."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

KEPT_CALLS: Final = 200


@dataclass(slots=True)
class CallRecord:
    at: int  # Unix seconds
    endpoint: str
    appid: str | None  # None unless it is one of ours: whoever swaps two parameters sends the secret here
    openid: str | None  # None unless it is one of ours, too
    fault: str | None
    errcode: int | None = None  # 0 for a good answer; None for an answer without one, or none


class CallBook:
    """Thread-safe. `endpoints` are the names that it counts from the start."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(dict.fromkeys(endpoints, 0))
        self._last: deque[CallRecord] = deque(maxlen=KEPT_CALLS)

    def note(self, record: CallRecord) -> None:
        with self._lock:
            self._counts[record.endpoint] += 1
            self._last.append(record)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def last(self) -> list[CallRecord]:
        """The newest last."""
        with self._lock:
            return [replace(record) for record in self._last]
