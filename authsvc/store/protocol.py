"""What a side store is: one row per login, one row per user, and what is known of them for good.

Read this, then pick a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from authsvc.store.rows import AuditLine, Census, LoginRow, Row, SharedValue, UserId, UserRow

Identify = Callable[[str, str], UserId]
"""Who it is that has this appid and openid in a store."""


class Store(Protocol):
    """A side store. Every method may be called from any thread and raises StoreUnavailable when the
    engine does not answer; after that the next call tries afresh."""

    # ---- a user's logins ----

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        """Keep the login and note the user's visit in one transaction, committed on return.

        Of the user's logins the KEPT_LOGINS that started last stay. A unionid of None leaves a known one as it is.
        Raises: UserBanned for a banned user, a forgotten one too; nothing is written then.
        """

    def logins(self, user: UserId, *, now: int) -> tuple[LoginRow, ...]:
        """The user's logins that have not expired at `now`, the one that started last first."""

    def replace_logins(self, user: UserId, gone: Sequence[LoginRow], *, by: LoginRow | None) -> None:
        """In one transaction: of the user's logins these go, those that are still what they were, and `by` comes
        instead. Nothing comes of `by` for a user that there is not, or that is banned."""

    # ---- a user; what is done here is done when it returns, also if the power fails ----

    def user(self, user: UserId) -> UserRow | None:
        """Of one who is banned and forgotten, there is nothing in the row but the ban."""

    def ban(self, user: UserId, *, line: AuditLine) -> bool:
        """Let no login of the user in, also of one who has never come. False, and nothing written, for a banned one."""

    def unban(self, user: UserId, *, line: AuditLine) -> bool:
        """False, and nothing written, for a user who is not banned."""

    def forget(self, user: UserId, *, line: AuditLine) -> int | None:
        """Erase all rows of the user; what stays of a banned one is a Ban. Returns how many logins there were; None,
        and nothing written, for a user that there is not."""

    def note(self, line: AuditLine) -> None:
        """Add a line about something that changes no row."""

    # ---- values that processes share ----

    def shared(self, name: str, *, now: int) -> SharedValue | None:
        """The value of this name that has not expired at `now`."""

    def share(self, value: SharedValue) -> None:
        """Keep it, in the place of another one of its name."""

    def share_first(self, value: SharedValue, *, now: int) -> bool:
        """Keep it unless there is one of its name that has not expired at `now`; False then. Of many that come at once
        one is kept."""

    def unshare(self, value: SharedValue) -> None:
        """Take it away, if it is still this one."""

    # ---- keys ----

    def note_revoked_keys(self, revoked: Mapping[str, int]) -> None:
        """Remember keys (id → Unix seconds of their revocation), for good: a key folder restored from an old backup
        does not know of them. What is known already stays as it is."""

    def revoked_keys(self) -> dict[str, int]:
        """Every key that was ever noted, with the time."""

    def drop_sealed(self, sealed_start: bytes) -> int:
        """Delete every login whose sealed session_key begins with these bytes, and every shared value that does: those
        under one sealing key, which is burnt. Returns how many logins there were."""

    # ---- the store as a whole ----

    def purge(self, *, now: int, at_most: int) -> int:
        """Delete so many of the logins and shared values that have ended, in a transaction that nobody waits for.
        Returns how many; an engine that ends them by itself has nothing to do."""

    def census(self, *, now: int, start_bytes: int) -> Census:
        """Count everything; `start_bytes` is how long the starts of `logins_by_start` are. It may take a while."""

    def page(self, kind: type[Row], *, after: str, at_most: int, identify: Identify) -> tuple[list[Row], str | None]:
        """Some rows of a kind, and where to go on `after`; "" is the beginning, None the end.

        A row that is there from the first page to the last is on one of them, or more. `at_most` is a wish.
        """

    def merge(self, rows: Sequence[Row]) -> None:
        """Take over rows of another store. A login or line that is here already stays as it is; of a user see
        rows.merged."""

    def ping(self) -> None:
        """Return if a write works now; changes nothing."""

    def close(self) -> None:
        """Let go of every connection; the store is not used afterwards."""
