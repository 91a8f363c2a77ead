"""The side store in this process's memory: for tests, and to show what the others must do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from authsvc.errors import StoreUnavailable, UserBanned
from authsvc.store.protocol import Identify
from authsvc.store.rows import (
    KEPT_LOGINS,
    STATE_ACTIVE,
    STATE_BANNED,
    AuditLine,
    Ban,
    Census,
    LoginRow,
    RevokedKey,
    Row,
    SharedValue,
    UserId,
    UserRow,
    banned_row,
    merged,
)


def _by_start(login: LoginRow) -> tuple[int, str]:
    return login.started_at_us, login.sid


class MemoryStore:
    """A Store that ends with the process and is not shared between processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[tuple[str, str], UserRow] = {}
        self._logins: dict[tuple[str, str], tuple[LoginRow, ...]] = {}  # the one that started last first
        self._bans: dict[str, int] = {}
        self._audit: dict[str, AuditLine] = {}
        self._revoked_keys: dict[str, int] = {}
        self._shared: dict[str, SharedValue] = {}

    # ---- a user's logins ----

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        key = _key(login.user)
        with self._lock:
            user = self._user(login.user)
            kept = self._logins.get(key, ())
            if user is not None and user.state == STATE_BANNED:
                raise UserBanned("this user is banned")
            if any(login.sid == other.sid for other in kept):
                raise StoreUnavailable("the side store did not take the login: its sid is taken")
            if user is None:
                user = UserRow(login.user, STATE_ACTIVE, 0, unionid, login.created_at, login.created_at)
            else:
                user = replace(
                    user,
                    unionid=user.unionid if unionid is None else unionid,
                    last_login_at=max(user.last_login_at, login.created_at),
                )
            live = [row for row in (*kept, login) if row.expires_at > login.created_at]
            self._users[key] = user
            self._logins[key] = tuple(sorted(live, key=_by_start, reverse=True)[:KEPT_LOGINS])

    def logins(self, user: UserId, *, now: int) -> tuple[LoginRow, ...]:
        with self._lock:
            kept = self._logins.get(_key(user), ())
        return tuple(login for login in kept if login.expires_at > now)

    def replace_logins(self, user: UserId, gone: Sequence[LoginRow], *, by: LoginRow | None) -> None:
        key = _key(user)
        with self._lock:
            left = tuple(login for login in self._logins.get(key, ()) if login not in gone)
            row = self._users.get(key)
            if by is not None and row is not None and row.state != STATE_BANNED:
                left = tuple(sorted((*left, by), key=_by_start, reverse=True))
            self._logins[key] = left

    # ---- a user ----

    def user(self, user: UserId) -> UserRow | None:
        with self._lock:
            return self._user(user)

    def ban(self, user: UserId, *, line: AuditLine) -> bool:
        with self._lock:
            row = self._user(user)
            if row is not None and row.state == STATE_BANNED:
                return False
            self._add(line)
            row = row or UserRow(user, STATE_ACTIVE, 0, None, 0, 0)
            self._users[_key(user)] = replace(row, state=STATE_BANNED, state_since=line.at)
            return True

    def unban(self, user: UserId, *, line: AuditLine) -> bool:
        with self._lock:
            row = self._user(user)
            if row is None or row.state != STATE_BANNED:
                return False
            self._add(line)
            self._bans.pop(user.digest, None)
            self._users.pop(_key(user), None)
            if row.first_login_at:
                self._users[_key(user)] = replace(row, state=STATE_ACTIVE, state_since=line.at)
            return True

    def forget(self, user: UserId, *, line: AuditLine) -> int | None:
        with self._lock:
            row = self._users.get(_key(user))
            if row is None:
                return None
            self._add(line)
            del self._users[_key(user)]
            if row.state == STATE_BANNED:
                self._bans.setdefault(user.digest, row.state_since)
            return len(self._logins.pop(_key(user), ()))

    def note(self, line: AuditLine) -> None:
        with self._lock:
            self._add(line)

    def _add(self, line: AuditLine) -> None:
        if line.id in self._audit:
            raise StoreUnavailable("the side store did not take the line: its id is taken")
        self._audit[line.id] = line

    def _user(self, user: UserId) -> UserRow | None:
        row = self._users.get(_key(user))
        return banned_row(user, row, since=self._bans[user.digest]) if user.digest in self._bans else row

    # ---- values that processes share ----

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

    # ---- keys ----

    def note_revoked_keys(self, revoked: Mapping[str, int]) -> None:
        with self._lock:
            self._revoked_keys = {**revoked, **self._revoked_keys}

    def revoked_keys(self) -> dict[str, int]:
        with self._lock:
            return dict(self._revoked_keys)

    def drop_sealed(self, sealed_start: bytes) -> int:
        with self._lock:
            self._shared = {n: kept for n, kept in self._shared.items() if not kept.value.startswith(sealed_start)}
            return self._drop([row for row in self._all() if row.sealed_session_key.startswith(sealed_start)])

    # ---- the store as a whole ----

    def purge(self, *, now: int, at_most: int) -> int:
        with self._lock:
            values = [name for name, kept in self._shared.items() if kept.expires_at <= now]
            for name in values:
                del self._shared[name]
            return self._drop([row for row in self._all() if row.expires_at <= now][:at_most]) + len(values)

    def census(self, *, now: int, start_bytes: int) -> Census:
        with self._lock:
            logins = self._all()
            return Census(
                engine="memory",
                size_bytes=None,
                users=len(self._users),
                banned=sum(row.state == STATE_BANNED for row in self._users.values()) + len(self._bans),
                logins=len(logins),
                ended_logins=sum(row.expires_at <= now for row in logins),
                logins_by_start=Counter(row.sealed_session_key[:start_bytes] for row in logins),
                oldest_login_at=min((row.created_at for row in logins), default=None),
                audit_lines=len(self._audit),
            )

    def page(self, kind: type[Row], *, after: str, at_most: int, identify: Identify) -> tuple[list[Row], str | None]:
        start = int(after or "0")
        with self._lock:
            everything: dict[type[Row], Sequence[Row]] = {
                UserRow: [replace(r, user=identify(*_key(r.user))) for r in self._users.values()],
                LoginRow: [replace(r, user=identify(*_key(r.user))) for r in self._all()],
                Ban: [Ban(digest, since) for digest, since in self._bans.items()],
                AuditLine: list(self._audit.values()),
                RevokedKey: [RevokedKey(key_id, at) for key_id, at in self._revoked_keys.items()],
            }
        rows = everything[kind]
        end = start + at_most
        return list(rows[start:end]), str(end) if end < len(rows) else None

    def merge(self, rows: Sequence[Row]) -> None:
        with self._lock:
            for row in rows:
                match row:
                    case UserRow():
                        here = self._users.get(_key(row.user))
                        self._users[_key(row.user)] = row if here is None else merged(here, row)
                    case LoginRow():
                        kept = self._logins.get(_key(row.user), ())
                        if all(row.sid != other.sid for other in kept):
                            in_order = sorted((*kept, row), key=_by_start, reverse=True)
                            self._logins[_key(row.user)] = tuple(in_order[:KEPT_LOGINS])
                    case Ban():
                        self._bans.setdefault(row.digest, row.since)
                    case AuditLine():
                        self._audit.setdefault(row.id, row)
                    case RevokedKey():
                        self._revoked_keys.setdefault(row.id, row.revoked_at)

    def ping(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _all(self) -> list[LoginRow]:
        return [row for kept in self._logins.values() for row in kept]

    def _drop(self, gone: Sequence[LoginRow]) -> int:
        for row in gone:
            key = _key(row.user)
            self._logins[key] = tuple(other for other in self._logins[key] if other != row)
        return len(gone)


def _key(user: UserId) -> tuple[str, str]:
    return user.appid, user.openid
