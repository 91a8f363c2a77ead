"""The side store in this process's memory: for tests, and to show what the others must do."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from authsvc.errors import StoreUnavailable, UserBanned
from authsvc.store.protocol import KEPT_LOGINS, STATE_ACTIVE, STATE_BANNED, LoginRow, SharedValue, UserRow


def _by_start(login: LoginRow) -> tuple[int, str]:
    return login.started_at_us, login.sid


class MemoryStore:
    """A Store that ends with the process and is not shared between processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[tuple[str, str], UserRow] = {}
        self._logins: dict[tuple[str, str], tuple[LoginRow, ...]] = {}  # the one that started last first
        self._revoked_keys: dict[str, int] = {}
        self._shared: dict[str, SharedValue] = {}

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        key = (login.appid, login.openid)
        with self._lock:
            user = self._users.get(key)
            kept = self._logins.get(key, ())
            if user is not None and user.state == STATE_BANNED:
                raise UserBanned("this user is banned")
            if any(login.sid == other.sid for other in kept):
                raise StoreUnavailable("the side store did not take the login: its sid is taken")
            if user is None:
                user = UserRow(*key, STATE_ACTIVE, unionid, login.created_at, login.created_at)
            else:
                user = replace(
                    user,
                    unionid=user.unionid if unionid is None else unionid,
                    last_login_at=max(user.last_login_at, login.created_at),
                )
            live = [row for row in (*kept, login) if row.expires_at > login.created_at]
            self._users[key] = user
            self._logins[key] = tuple(sorted(live, key=_by_start, reverse=True)[:KEPT_LOGINS])

    def logins(self, appid: str, openid: str, *, now: int) -> tuple[LoginRow, ...]:
        with self._lock:
            kept = self._logins.get((appid, openid), ())
        return tuple(login for login in kept if login.expires_at > now)

    def replace_logins(self, gone: Sequence[LoginRow], *, by: LoginRow | None) -> None:
        ((appid, openid),) = {(login.appid, login.openid) for login in gone}
        key = (appid, openid)
        with self._lock:
            left = tuple(login for login in self._logins.get(key, ()) if login not in gone)
            user = self._users.get(key)
            if by is not None and user is not None and user.state != STATE_BANNED:
                left = tuple(sorted((*left, by), key=_by_start, reverse=True))
            self._logins[key] = left

    def user(self, appid: str, openid: str) -> UserRow | None:
        with self._lock:
            return self._users.get((appid, openid))

    def set_user_state(self, appid: str, openid: str, state: int) -> bool:
        with self._lock:
            user = self._users.get((appid, openid))
            if user is None:
                return False
            self._users[appid, openid] = replace(user, state=state)
            return True

    def drop_sealed(self, sealed_start: bytes) -> int:
        dropped = 0
        with self._lock:
            for key, kept in self._logins.items():
                left = tuple(row for row in kept if not row.sealed_session_key.startswith(sealed_start))
                dropped += len(kept) - len(left)
                self._logins[key] = left
            self._shared = {n: kept for n, kept in self._shared.items() if not kept.value.startswith(sealed_start)}
        return dropped

    def shared(self, name: str, *, now: int) -> SharedValue | None:
        with self._lock:
            found = self._shared.get(name)
        return found if found is not None and found.expires_at > now else None

    def share(self, value: SharedValue) -> None:
        with self._lock:
            self._shared[value.name] = value

    def share_first(self, value: SharedValue, *, now: int) -> bool:
        with self._lock:
            found = self._shared.get(value.name)
            if found is not None and found.expires_at > now:
                return False
            self._shared[value.name] = value
            return True

    def unshare(self, value: SharedValue) -> None:
        with self._lock:
            if self._shared.get(value.name) == value:
                del self._shared[value.name]

    def note_revoked_keys(self, revoked: Mapping[str, int]) -> None:
        with self._lock:
            self._revoked_keys = {**revoked, **self._revoked_keys}

    def revoked_keys(self) -> dict[str, int]:
        with self._lock:
            return dict(self._revoked_keys)

    def ping(self) -> None:
        pass

    def close(self) -> None:
        pass
