"""What a side store is: one row per login, one row per user. Read this, then pick a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

KEPT_LOGINS: Final = 3
"""Logins kept for each user: WeChat replaces session keys when two logins race (phone and PC)."""

STATE_BANNED: Final = 0
STATE_ACTIVE: Final = 1


@dataclass(frozen=True, slots=True)
class LoginRow:
    """One login. `sealed_session_key` opens only under the very columns that stand beside it."""

    appid: str
    openid: str
    sid: str
    sealed_session_key: bytes = field(repr=False)
    started_at_us: int  # when the request arrived, Unix microseconds: two logins of one user can finish out of order
    created_at: int  # Unix seconds
    expires_at: int  # Unix seconds; from this second on the row is as good as gone


@dataclass(frozen=True, slots=True)
class UserRow:
    appid: str
    openid: str
    state: int  # STATE_ACTIVE or STATE_BANNED
    unionid: str | None
    first_login_at: int  # Unix seconds
    last_login_at: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class SharedValue:
    """Something small that the processes of the service leave for one another."""

    name: str
    value: bytes = field(repr=False)
    expires_at: int  # Unix seconds; from this second on it is as good as gone


class Store(Protocol):
    """A side store. Every method may be called from any thread and raises StoreUnavailable when the
    engine does not answer; after that the next call tries afresh."""

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        """Keep the login and note the user's visit in one transaction, committed on return.

        Of the user's logins the KEPT_LOGINS that started last stay. A unionid of None leaves a known one as it is.
        Raises: UserBanned if the user's state is STATE_BANNED; nothing is written then.
        """

    def logins(self, appid: str, openid: str, *, now: int) -> tuple[LoginRow, ...]:
        """The user's logins that have not expired at `now`, the one that started last first."""

    def replace_logins(self, gone: Sequence[LoginRow], *, by: LoginRow | None) -> None:
        """In one transaction: these logins of one user go, those that are still what they were, and `by` comes instead.

        Nothing comes of `by` for a user that there is not, or that is banned. Raises: ValueError for no login at all.
        """

    def user(self, appid: str, openid: str) -> UserRow | None: ...

    def set_user_state(self, appid: str, openid: str, state: int) -> bool:
        """Set the state of a known user; False if there is no such user."""

    def drop_sealed(self, sealed_start: bytes) -> int:
        """Delete every login whose sealed session_key begins with these bytes, and every shared value that does: those
        under one sealing key, which is burnt. Returns how many logins there were."""

    def shared(self, name: str, *, now: int) -> SharedValue | None:
        """The value of this name that has not expired at `now`."""

    def share(self, value: SharedValue) -> None:
        """Keep it, in the place of another one of its name."""

    def share_first(self, value: SharedValue, *, now: int) -> bool:
        """Keep it unless there is one of its name that has not expired at `now`; False then. Of many that come at once
        one is kept."""

    def unshare(self, value: SharedValue) -> None:
        """Take it away, if it is still this one."""

    def note_revoked_keys(self, revoked: Mapping[str, int]) -> None:
        """Remember keys (id → Unix seconds of their revocation), for good: a key folder restored from an old backup
        does not know of them. What is known already stays as it is."""

    def revoked_keys(self) -> dict[str, int]:
        """Every key that was ever noted, with the time."""

    def ping(self) -> None:
        """Return if a write works now; changes nothing."""

    def close(self) -> None:
        """Let go of every connection; the store is not used afterwards."""
