"""The rows of a side store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

KEPT_LOGINS: Final = 3
"""Logins kept for each user: WeChat replaces session keys when two logins race (phone and PC)."""

STATE_BANNED: Final = 0
STATE_ACTIVE: Final = 1


@dataclass(frozen=True, slots=True)
class UserId:
    """Who a row is about. `digest`, a keyed hash of the two, is what may stay when the user is forgotten."""

    appid: str
    openid: str  # as the store has it: in a store that is not to know openids, a "#" with the digest
    digest: str


@dataclass(frozen=True, slots=True)
class LoginRow:
    """One login. `sealed_session_key` opens only under the very columns that stand beside it."""

    user: UserId
    sid: str
    sealed_session_key: bytes = field(repr=False)
    started_at_us: int  # when the request arrived, Unix microseconds: two logins of one user can finish out of order
    created_at: int  # Unix seconds
    expires_at: int  # Unix seconds; from this second on the row is as good as gone


@dataclass(frozen=True, slots=True)
class UserRow:
    user: UserId
    state: int  # STATE_ACTIVE or STATE_BANNED
    state_since: int  # Unix seconds; 0: nobody has ever set it
    unionid: str | None
    first_login_at: int  # Unix seconds; 0: has never logged in, or is forgotten
    last_login_at: int


@dataclass(frozen=True, slots=True)
class Ban:
    """That of a user who is forgotten."""

    digest: str
    since: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Who (`actor`) did what to whom. Lines are added, and never changed or taken away."""

    id: str  # random
    at: int  # Unix seconds
    actor: str
    what: Literal["ban", "unban", "forget", "export"]
    appid: str
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class RevokedKey:
    id: str
    revoked_at: int  # Unix seconds


Row = UserRow | LoginRow | Ban | AuditLine | RevokedKey
"""What a store is made of, but for what processes share."""


@dataclass(frozen=True, slots=True)
class SharedValue:
    """Something small that the processes of the service leave for one another."""

    name: str
    value: bytes = field(repr=False)
    expires_at: int  # Unix seconds; from this second on it is as good as gone


FORWARDING_HEADER_SEEN: Final = "forwarding_header_seen"
"""The name of a SharedValue: a request had a header of a proxy in it, and the service was told of none. Its value is
the name of the header."""


@dataclass(frozen=True, slots=True)
class Census:
    """What lies in a store."""

    engine: str  # name and version
    size_bytes: int | None  # of the whole database; None where the engine does not tell
    users: int
    banned: int  # of the users, and of those who are forgotten
    logins: int
    ended_logins: int  # of these, those that wait to be purged
    logins_by_start: Mapping[bytes, int]  # by the first bytes of the sealed session_key, which name its sealing key
    oldest_login_at: int | None  # Unix seconds
    audit_lines: int


def banned_row(user: UserId, found: UserRow | None, *, since: int) -> UserRow:
    """The row of a user of whom there is a Ban."""
    if found is None:
        return UserRow(user, STATE_BANNED, since, None, 0, 0)
    return replace(found, state=STATE_BANNED, state_since=max(found.state_since, since))


def merged(here: UserRow, there: UserRow) -> UserRow:
    """One row of two stores' rows of a user: every visit counts, and of what was set the later; if that cannot be told,
    the ban."""
    first = min((row.first_login_at for row in (here, there) if row.first_login_at), default=0)
    later_set = max(here, there, key=lambda row: (row.state_since, row.state == STATE_BANNED))
    later_seen, other = (there, here) if there.last_login_at > here.last_login_at else (here, there)
    return replace(
        here,
        state=later_set.state,
        state_since=later_set.state_since,
        unionid=later_seen.unionid or other.unionid,
        first_login_at=first,
        last_login_at=later_seen.last_login_at,
    )
