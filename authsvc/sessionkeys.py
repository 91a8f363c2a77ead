"""A session_key in its row of the side store: sealed on the way in, opened on the way out."""

from __future__ import annotations

from collections.abc import Callable

from authsvc.keyring import Keyring
from authsvc.sealing import Place, open_sealed, seal, sealing_key_id
from authsvc.store import LoginRow, UserId


def sealed_login(
    session_key: str,
    keyring: Keyring,
    *,
    user: UserId,
    sid: str,
    started_at_us: int,
    created_at: int,
    expires_at: int,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> LoginRow:
    """The row of a login. Raises: KeysError if no sealing key is active."""
    place = Place("logins", user.appid, user.openid, sid, expires_at)
    sealed = seal(session_key.encode("ascii"), keyring.sealing_key(now=now), place, random_bytes=random_bytes)
    return LoginRow(user, sid, sealed, started_at_us, created_at, expires_at)


def kept_session_key(row: LoginRow, keyring: Keyring, *, now: int) -> str:
    """The session_key of a stored login. Raises: SealBroken if the row is not as it was written."""
    key = keyring.opening_key(sealing_key_id(row.sealed_session_key), now=now)
    place = Place("logins", row.user.appid, row.user.openid, row.sid, row.expires_at)
    return open_sealed(row.sealed_session_key, key, place).decode("ascii")
