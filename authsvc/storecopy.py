"""Everything of one side store into another one, while the service goes on.

It may be interrupted, and goes on where it was; and it may be done again after the service has changed over, to fetch
what came in between. What was done to a user at the target meanwhile stays done. What was copied is then proved, row by
row.
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
_MOVING: Final = "moving"


@dataclass(frozen=True, slots=True)
class Proved:
    """Of one kind: how many rows the source had when this was counted, and how many of them the target has."""

    kind: str
    rows: int
    found: int
    left_out: int  # of no use there: over, sealed for a name that the target does not have, or undone there since


def check_not_moving(store: Store, *, now: int) -> None:
    """Raises: StoreUnavailable while the store is being moved: a user who is forgotten or let in again here would not
    be so there."""
    if store.shared(_MOVING, now=now) is not None:
        raise StoreUnavailable(
            "this side store was copied to another one within the last day (authsvc store migrate), which would not "
            "learn of this; mend: give the command there once the service runs on it, or tomorrow if it stays here"
        )


def end_move(store: Store) -> None:
    """Let the store forget people again. Raises: StoreUnavailable."""
    store.share(SharedValue(_MOVING, b"-", 0))


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
        self._renamed: set[UserId] = set()
        self._forgotten: dict[str, int] = {}
        self._unbanned: dict[str, int] = {}

    def run(self) -> tuple[Proved, ...]:
        """Copy and prove. Raises: StoreUnavailable; what is done stays done."""
        self._source.share(SharedValue(_MOVING, b"-", self._now() + MOVES_FOR_S))
        # Before anything is copied: what was done to users at the target, after it was copied to.
        self._forgotten, self._unbanned = self._done_there("forget"), self._done_there("unban")
        self._copy()
        return tuple(self._proved(kind) for kind in KINDS)

    def _copy(self) -> None:
        """Into a target that has nobody yet, or that this was interrupted with; what is missing in another one, the
        proof finds and fetches."""
        place = self._target.shared(self._place, now=self._now())
        if place is None and self._is_inhabited():
            return
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

    def _is_inhabited(self) -> bool:
        return any(rows for rows, _ in self._all_of(self._target, UserRow, at_most=1))

    def _done_there(self, what: str) -> dict[str, int]:
        """Digest → when that was last done to the user at the target."""
        found: dict[str, int] = {}
        for rows, _ in self._all_of(self._target, AuditLine):
            for row in rows:
                if isinstance(row, AuditLine) and row.what == what:
                    found[row.digest] = max(row.at, found.get(row.digest, 0))
        return found

    def _all_of(
        self, store: Store, kind: type[Row], *, at_most: int = _AT_ONCE, after: str = ""
    ) -> Iterator[tuple[list[Row], str | None]]:
        later: str | None = after
        while later is not None:
            rows, later = store.page(kind, after=later, at_most=at_most, identify=self._identify)
            yield rows, later

    def _identify(self, appid: str, openid: str) -> UserId:
        user = self._users.stored(appid, openid)
        if user.openid != openid:
            self._renamed.add(user)
        return user

    def _pages(self, kind: str, after: str) -> Iterator[tuple[list[Row], int, str | None]]:
        """Pages of the source's rows that are of use at the target, with the number of those that are not."""
        self._renamed.clear()
        for rows, later in self._all_of(self._source, KINDS[kind], after=after):
            good = [row for row in rows if self._is_of_use(row)]
            self._renamed.clear()
            yield good, len(rows) - len(good), later

    def _is_of_use(self, row: Row) -> bool:
        match row:
            case LoginRow():
                # What is sealed belongs to the very name beside it.
                lives = row.expires_at > self._now() and row.user not in self._renamed
                return lives and row.created_at > self._forgotten.get(row.user.digest, -1)
            case UserRow(first_login_at=0):
                return row.state_since > self._unbanned.get(row.user.digest, -1)
            case UserRow():
                return max(row.last_login_at, row.state_since) > self._forgotten.get(row.user.digest, -1)
            case Ban():
                return row.since > self._unbanned.get(row.digest, -1)
            case _:
                return True

    def _proved(self, kind: str) -> Proved:
        is_there = self._looker(kind)
        count = found = left_out = 0
        for rows, useless, _ in self._pages(kind, ""):
            missing = [row for row in rows if not is_there(row)]
            wanted = [row for row in missing if not self._is_outdated(row)]
            if wanted:
                # What came while this was copied, or since the last time.
                self._target.merge(wanted)
                is_there = self._looker(kind)
                self._told(kind, len(wanted))
            count += len(rows) - len(missing) + len(wanted)
            found += len(rows) - len(missing) + sum(map(is_there, wanted))
            left_out += useless + len(missing) - len(wanted)
        return Proved(kind, count, found, left_out)

    def _looker(self, kind: str) -> Callable[[Row], bool]:
        """Whether the target has a row, as it is or as it has become there since."""
        if kind in ("users", "logins"):
            return self._has
        there = {_name(row) for rows, _ in self._all_of(self._target, KINDS[kind]) for row in rows}
        return lambda row: _name(row) in there

    def _has(self, row: Row) -> bool:
        if isinstance(row, UserRow):
            there = self._target.user(row.user)
            return there is not None and merged(there, row) == there
        assert isinstance(row, LoginRow)
        logins = self._target.logins(row.user, now=self._now())
        later = [login for login in logins if _by_start(login) > _by_start(row)]
        return any(row.sid == login.sid for login in logins) or len(later) >= KEPT_LOGINS

    def _is_outdated(self, row: Row) -> bool:
        """Whether the user has a later login at the target alone: with that, or with a reset of the session_key, the
        target has dropped this one, or would have."""
        if not isinstance(row, LoginRow):
            return False
        here = set(self._source.logins(row.user, now=self._now()))
        there = self._target.logins(row.user, now=self._now())
        return any(login not in here and _by_start(login) >= _by_start(row) for login in there)


def _by_start(login: LoginRow) -> tuple[int, str]:
    return login.started_at_us, login.sid


def _name(row: Row) -> object:
    """By what a row is known that never changes: the first there was stays."""
    match row:
        case Ban(digest=digest):
            return digest
        case RevokedKey(id=key_id) | AuditLine(id=key_id):
            return key_id
        case _:
            return row
