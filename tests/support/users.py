"""Users of a side store, their logins, and what an operator does to them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Final, Literal

from authsvc.store import AuditLine, LoginRow, Row, Store, UserId

NOW: Final = 4_000_000_000  # far ahead: an engine that ends rows by itself has the real time
TTL_S: Final = 259_200


def user_id(appid: str = "wx-a", openid: str = "oUser") -> UserId:
    return UserId(appid, openid, hashlib.sha256(f"{appid} {openid}".encode()).hexdigest()[:32])


USER: Final = user_id()


def login(sid: str, *, appid: str = "wx-a", openid: str = "oUser", at: int = NOW, ttl_s: int = TTL_S) -> LoginRow:
    return LoginRow(
        user=user_id(appid, openid),
        sid=sid,
        sealed_session_key=b"\x00sealed " + sid.encode(),
        started_at_us=at * 1_000_000,
        created_at=at,
        expires_at=at + ttl_s,
    )


def audit_line(
    what: Literal["ban", "unban", "forget", "export"], user: UserId, *, at: int = NOW, reason: str = ""
) -> AuditLine:
    return AuditLine(secrets.token_hex(16), at, "operator@host", what, user.appid, user.digest, reason)


def ban(store: Store, user: UserId, *, at: int = NOW) -> bool:
    return store.ban(user, line=audit_line("ban", user, at=at))


def unban(store: Store, user: UserId, *, at: int = NOW) -> bool:
    return store.unban(user, line=audit_line("unban", user, at=at))


def forget(store: Store, user: UserId, *, at: int = NOW) -> int | None:
    return store.forget(user, line=audit_line("forget", user, at=at))


def rows_of(
    store: Store, kind: type[Row], *, at_most: int = 1000, identify: Callable[[str, str], UserId] = user_id
) -> list[Row]:
    """All of a kind, page by page."""
    found: list[Row] = []
    after: str | None = ""
    while after is not None:
        some, after = store.page(kind, after=after, at_most=at_most, identify=identify)
        found += some
    return found
