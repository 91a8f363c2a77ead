"""A memory of tokens that were verified a moment ago.

It keeps the tokens themselves, in this process alone. What comes out of it was verified once, under the very keys that
are in force still, and is looked at for its expiry every time; what it does not know costs a signature check as ever.
"""

from __future__ import annotations

from typing import Final

from authsvc.claims import Claims

_CLAIMS_BYTES: Final = 700
"""What one token's claims take, beside its text."""


class Memory:
    """At most `entries` tokens, and about `max_bytes` of memory. Thread-safe; readers take no lock.

    Two generations instead of a list by last use: when the young one is half of what is allowed it becomes the old one,
    whose tokens are forgotten unless they were seen again. An LRU's bookkeeping would cost as much as the look-up.
    """

    def __init__(self, entries: int, *, max_bytes: int) -> None:
        self._half_entries = max(entries // 2, 1)
        self._half_bytes = max_bytes // 2
        self._state = _State(None, {})

    def get(self, token: str, epoch: object) -> Claims | None:
        """The claims of a token that was put under the keys of this epoch."""
        state = self._state
        if epoch is not state.epoch:
            return None
        claims = state.young.get(token)
        if claims is None:
            claims = state.old.get(token)
            if claims is not None:
                self.put(token, claims, epoch)
        return claims

    def put(self, token: str, claims: Claims, epoch: object) -> None:
        """Keep it, and forget whatever was under other keys."""
        size = len(token) + _CLAIMS_BYTES
        if epoch is None or size > self._half_bytes:
            return
        state = self._state
        if epoch is not state.epoch:
            state = self._state = _State(epoch, {})
        elif len(state.young) >= self._half_entries or state.young_bytes + size > self._half_bytes:
            state = self._state = _State(epoch, state.young)
        if state.young.setdefault(token, claims) is claims:
            state.young_bytes += size


class _State:
    """Swapped whole: a reader never sees tokens of one epoch under the name of another.

    Without a lock, which a fork could leave held for ever: of two threads that swap at once the tokens of one are
    forgotten, and two that count at once may miss one, until the next swap.
    """

    __slots__ = ("epoch", "old", "young", "young_bytes")

    def __init__(self, epoch: object, old: dict[str, Claims]) -> None:
        self.epoch = epoch
        self.old = old
        self.young: dict[str, Claims] = {}
        self.young_bytes = 0
