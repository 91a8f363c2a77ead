"""Everything of one side store into another one, while the service goes on.

The first run copies into an empty store, and goes on where it was if it is interrupted. A later one, after the service
has changed over, fetches what came to the old store since the first began: what is older and not there any more, the
new store has parted with. Each run proves what it has done, row by row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from authsvc.errors import StoreUnavailable
from authsvc.store import (
    KEPT_LOGINS,
    STATE_BANNED,
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
_NOTED_FOR_S: Final = 7 * 86_400
_COPIES_FOR_S: Final = 600
# Rows have the times of the hosts that wrote them.
_CLOCKS_APART_S: Final = 60
_MOVING: Final = "moving"


@dataclass(frozen=True, slots=True)
class Proved:
    """Of one kind: how many rows the source had when this was counted, and how many of them the target has."""

    kind: str
    rows: int
    found: int
    left_out: int  # of no use there: over, sealed for a name that the target does not have, or forgotten there since


@dataclass(frozen=True, slots=True)
class _Note:
    """What the target knows of being copied to."""

    began_at: int  # the first run, Unix seconds
    is_whole: bool
    kind: str  # where the first run is
    after: str


def check_not_moving(store: Store, *, now: int) -> None:
    """Raises: StoreUnavailable while the store is being moved: a user who is forgotten or let in again here would not
    be so there."""
    if store.shared(_MOVING, now=now) is not None:
        raise StoreUnavailable(
            "this side store is being copied, or was within the last day (authsvc store migrate), and the other one "
            "would not learn of this; mend: give the command there once the service runs on it; if it stays here, "
            "authsvc store adopt, and then again"
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
        self._place = "copied from " + hashlib.sha256(source_name.encode()).hexdigest()[:16]
        self._renamed: set[UserId] = set()
        self._since = 0  # of rows that are looked at
        self._forgotten: dict[str, int] = {}
        self._unbanned: dict[str, int] = {}

    @property
    def since(self) -> int:
        """From when on, in Unix seconds, rows of the source were looked at; 0: all."""
        return self._since

    def run(self) -> tuple[Proved, ...]:
        """Copy and prove. Raises: StoreUnavailable, also for a target with users from elsewhere; what is done stays
        done."""
        note = self._noted()
        if note is None and any(rows for rows, _ in self._all_of(self._target, UserRow)):
            raise StoreUnavailable("the other store has users already that are not from here; begin with an empty one")
        note = note or _Note(self._now(), is_whole=False, kind=next(iter(KINDS)), after="")
        self._source.share(SharedValue(_MOVING, b"-", self._now() + MOVES_FOR_S))
        self._hold_target()
        if note.is_whole:
            self._since = note.began_at - _CLOCKS_APART_S
            self._learn_what_was_done_there()
        else:
            note = self._copy(note)
        found = tuple(self._proved(kind) for kind in KINDS)
        if all(one.rows == one.found for one in found):
            self._note(replace(note, is_whole=True))
        end_move(self._target)
        return found

    # ---- what the target knows of it ----

    def _noted(self) -> _Note | None:
        found = self._target.shared(self._place, now=self._now())
        return None if found is None else _Note(*json.loads(found.value))

    def _note(self, note: _Note) -> None:
        text = json.dumps([note.began_at, note.is_whole, note.kind, note.after])
        self._target.share(SharedValue(self._place, text.encode(), self._now() + _NOTED_FOR_S))

    def _hold_target(self) -> None:
        """Nobody is forgotten or unbanned there while this goes on: what it has looked at would not be so any more."""
        self._target.share(SharedValue(_MOVING, b"-", self._now() + _COPIES_FOR_S))

    # ---- copy ----

    def _copy(self, note: _Note) -> _Note:
        kinds = list(KINDS)
        for kind in kinds[kinds.index(note.kind) :]:
            for rows, _, later in self._pages(kind, note.after if kind == note.kind else ""):
                self._target.merge(rows)
                self._told(kind, len(rows))
                note = replace(note, kind=kind, after=later or "")
                if later is not None:
                    self._note(note)
                    self._hold_target()
        return note

    def _learn_what_was_done_there(self) -> None:
        """When users were last forgotten and unbanned at the target, by lines of its own."""
        of_source = {line.id for line in self._lines(self._source)}
        for line in self._lines(self._target):
            if line.id not in of_source:
                done = {"forget": self._forgotten, "unban": self._unbanned}.get(line.what, {})
                done[line.digest] = max(line.at, done.get(line.digest, 0))

    def _lines(self, store: Store) -> Iterator[AuditLine]:
        return (row for rows, _ in self._all_of(store, AuditLine) for row in rows if isinstance(row, AuditLine))

    def _pages(self, kind: str, after: str) -> Iterator[tuple[list[Row], int, str | None]]:
        """Pages of the source's rows that are of use at the target, with the number of those that are not."""
        self._renamed.clear()
        for rows, later in self._all_of(self._source, KINDS[kind], after=after):
            recent = [row for row in rows if _time_of(row) >= self._since]
            good = [wanted for row in recent if (wanted := self._of_use(row)) is not None]
            self._renamed.clear()
            yield good, len(recent) - len(good), later

    def _of_use(self, row: Row) -> Row | None:
        """What the target is to have of it."""
        match row:
            case LoginRow():
                # What is sealed belongs to the very name beside it.
                lives = row.expires_at > self._now() and row.user not in self._renamed
                return row if lives and row.created_at > self._forgotten.get(row.user.digest, -1) else None
            case UserRow():
                digest = row.user.digest
                forgotten, unbanned = self._forgotten.get(digest, -1), self._unbanned.get(digest, -1)
                if row.first_login_at:
                    is_new = row.last_login_at > forgotten
                else:  # of one who has never come there is nothing but the ban
                    is_new = row.state_since > max(forgotten, unbanned)
                if is_new:
                    return row
                # Forgetting lifts no ban, be it one that was given here.
                is_banned = row.state == STATE_BANNED and row.state_since > unbanned
                return Ban(digest, row.state_since) if is_banned else None
            case Ban():
                return row if row.since > self._unbanned.get(row.digest, -1) else None
            case _:
                return row

    def _all_of(self, store: Store, kind: type[Row], *, after: str = "") -> Iterator[tuple[list[Row], str | None]]:
        later: str | None = after
        while later is not None:
            rows, later = store.page(kind, after=later, at_most=_AT_ONCE, identify=self._identify)
            yield rows, later

    def _identify(self, appid: str, openid: str) -> UserId:
        user = self._users.stored(appid, openid)
        if user.openid != openid:
            self._renamed.add(user)
        return user

    # ---- prove ----

    def _proved(self, kind: str) -> Proved:
        count = found = left_out = 0
        names = self._names(kind)
        for rows, useless, _ in self._pages(kind, ""):
            missing = [row for row in rows if not self._has(row, names)]
            if missing:
                # What came while this was copied, or since the last time.
                self._target.merge(missing)
                self._told(kind, len(missing))
                names = self._names(kind, of=missing, known=names)
            count += len(rows)
            found += len(rows) - sum(not self._has(row, names) for row in missing)
            left_out += useless
            self._hold_target()
        return Proved(kind, count, found, left_out)

    def _names(self, kind: str, *, of: Sequence[Row] = (), known: frozenset[str] = frozenset()) -> frozenset[str]:
        """The names of what the target has of a kind that cannot be asked for one by one."""
        if kind in ("users", "logins") and not any(isinstance(row, Ban) for row in of):
            return known
        asked = Ban if kind in ("users", "logins") else KINDS[kind]
        return frozenset(_name(row) for rows, _ in self._all_of(self._target, asked) for row in rows)

    def _has(self, row: Row, names: frozenset[str]) -> bool:
        """Whether the target has it, as it is or as it has become there since."""
        match row:
            case UserRow():
                there = self._target.user(row.user)
                return there is not None and merged(there, row) == there
            case LoginRow():
                logins = self._target.logins(row.user, now=self._now())
                later = [login for login in logins if _by_start(login) > _by_start(row)]
                is_over = row.expires_at <= self._now()  # by now
                return is_over or any(row.sid == login.sid for login in logins) or len(later) >= KEPT_LOGINS
            case _:
                return _name(row) in names


def _time_of(row: Row) -> float:
    """When something last happened to it, in Unix seconds; what is for good is always new."""
    match row:
        case UserRow():
            return max(row.last_login_at, row.state_since)
        case LoginRow():
            return row.created_at
        case Ban():
            return row.since
        case AuditLine():
            return row.at
        case _:
            return math.inf


def _by_start(login: LoginRow) -> tuple[int, str]:
    return login.started_at_us, login.sid


def _name(row: Row) -> str:
    """By what a row is known that never changes."""
    match row:
        case Ban(digest=name) | RevokedKey(id=name) | AuditLine(id=name):
            return name
        case _:
            raise TypeError(type(row).__name__)
