"""Everything of one side store into another one, while the service goes on.

It may be interrupted, and goes on where it was; and it may be done again after the service has changed over, to fetch
what came in between. What it has done it then proves, row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from authsvc.errors import StoreUnavailable
from authsvc.store import (
    KEPT_LOGINS,
    AuditLine,
    Ban,
    LoginRow,
    RevokedKey,
    Row,
    SharedValue,
    Store,
    UserId,
    UserRow,
    merged,
)
from authsvc.users import Users

KINDS: Final[Mapping[str, type[Row]]] = {
    "revoked keys": RevokedKey,
    "bans": Ban,
    "audit lines": AuditLine,
    "users": UserRow,
    "logins": LoginRow,
}

MOVES_FOR_S: Final = 86_400
"""How long a store that was copied refuses what a later copy would not take over."""

_AT_ONCE: Final = 500
_ROUNDS: Final = 3
_MOVING: Final = "moving"


@dataclass(frozen=True, slots=True)
class Proved:
    """Of one kind: how many rows the source had when this was counted, and how many of them the target has."""

    kind: str
    rows: int
    found: int
    left_out: int  # of no use there: over, or sealed for a name that the target does not have


def check_not_moving(store: Store, *, now: int) -> None:
    """Raises: StoreUnavailable while the store is being moved: a user who is forgotten or let in again here would not
    be so there."""
    if store.shared(_MOVING, now=now) is not None:
        raise StoreUnavailable(
            "this side store was copied to another one within the last day (authsvc store migrate), which would not "
            "learn of this; mend: give the command there once the service runs on it, or tomorrow if it stays here"
        )


class StoreCopy:
    """`users` names users as the target is to have them. `told` gets a kind and how many of its rows were just done."""

    def __init__(
        self,
        source: Store,
        target: Store,
        *,
        users: Users,
        source_name: str,
        now: Callable[[], int],
        told: Callable[[str, int], None],
    ) -> None:
        self._source = source
        self._target = target
        self._users = users
        self._now = now
        self._told = told
        self._place = "copying from " + hashlib.sha256(source_name.encode()).hexdigest()[:16]

    def run(self) -> tuple[Proved, ...]:
        """Copy and prove. Raises: StoreUnavailable; what is done stays done."""
        self._source.share(SharedValue(_MOVING, b"-", self._now() + MOVES_FOR_S))
        self._copy()
        for _ in range(_ROUNDS):
            found = tuple(self._proved(kind) for kind in KINDS)
            # What is missing came while this was copied, or left the one and came to the other while it was counted.
            if all(one.rows == one.found for one in found):
                break
        return found

    def _copy(self) -> None:
        place = self._target.shared(self._place, now=self._now())
        goes_on_with, after = json.loads(place.value) if place is not None else (next(iter(KINDS)), "")
        kinds = list(KINDS)
        for kind in kinds[kinds.index(goes_on_with) :]:
            for rows, _, later in self._pages(kind, after if kind == goes_on_with else ""):
                self._target.merge(rows)
                self._told(kind, len(rows))
                if later is not None:
                    place = SharedValue(self._place, json.dumps([kind, later]).encode(), self._now() + MOVES_FOR_S)
                    self._target.share(place)
        if place is not None:
            self._target.unshare(place)

    def _pages(self, kind: str, after: str) -> Iterator[tuple[list[Row], int, str | None]]:
        """Pages of the source's rows that are of use at the target, with the number of those that are not."""
        renamed: set[UserId] = set()

        def identify(appid: str, openid: str) -> UserId:
            user = self._users.stored(appid, openid)
            if user.openid != openid:
                renamed.add(user)
            return user

        later: str | None = after
        while later is not None:
            rows, later = self._source.page(KINDS[kind], after=later, at_most=_AT_ONCE, identify=identify)
            now = self._now()
            # What is sealed belongs to the very name beside it.
            good = [r for r in rows if not isinstance(r, LoginRow) or (r.expires_at > now and r.user not in renamed)]
            renamed.clear()
            yield good, len(rows) - len(good), later

    def _proved(self, kind: str) -> Proved:
        is_there = self._looker(kind)
        count = found = left_out = 0
        for rows, useless, _ in self._pages(kind, ""):
            missing = [row for row in rows if not is_there(row)]
            self._target.merge(missing)
            count += len(rows)
            found += len(rows) - len(missing)
            left_out += useless
        return Proved(kind, count, found, left_out)

    def _looker(self, kind: str) -> Callable[[Row], bool]:
        """Whether the target has a row, as it is or as it has become there since."""
        if kind in ("users", "logins"):
            return self._has
        identify = self._users.stored
        there: set[Row] = set()
        after: str | None = ""
        while after is not None:
            rows, after = self._target.page(KINDS[kind], after=after, at_most=_AT_ONCE, identify=identify)
            there.update(rows)
        return lambda row: row in there

    def _has(self, row: Row) -> bool:
        if isinstance(row, UserRow):
            there = self._target.user(row.user)
            return there is not None and merged(there, row) == there
        assert isinstance(row, LoginRow)
        logins = self._target.logins(row.user, now=self._now())
        later = [login for login in logins if (login.started_at_us, login.sid) > (row.started_at_us, row.sid)]
        return row in logins or any(row.sid == other.sid for other in logins) or len(later) >= KEPT_LOGINS
