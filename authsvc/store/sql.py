"""The side store in a SQL database: the same statements for every engine SQLAlchemy speaks.

Here is what the service does for each request; sqlusers and sqlwhole have what operators and the purge do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sqlalchemy import bindparam, case, exists, func, literal_column, select
from sqlalchemy.engine import Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import PoolProxiedConnection

from authsvc.errors import UserBanned
from authsvc.store.database import Database, Statement, cursor_of
from authsvc.store.protocol import Identify
from authsvc.store.rows import (
    KEPT_LOGINS,
    STATE_ACTIVE,
    STATE_BANNED,
    AuditLine,
    Census,
    LoginRow,
    Row,
    SharedValue,
    UserId,
    UserRow,
    banned_row,
)
from authsvc.store.schema import BANS, LOGINS, REVOKED_KEYS, SHARED, USERS
from authsvc.store.sqlusers import ban, forget, note, unban
from authsvc.store.sqlwhole import census, drop_sealed, merge, note_revoked_keys, page, purge

# Names that end in `_` are values of the call; without it they would be taken for columns to be set.
_IS_USER = (USERS.c.appid == bindparam("appid_"), USERS.c.openid == bindparam("openid_"))
_IS_USERS_LOGIN = (LOGINS.c.appid == bindparam("appid_"), LOGINS.c.openid == bindparam("openid_"))
_LAST_STARTED_FIRST = (LOGINS.c.started_at_us.desc(), LOGINS.c.sid.desc())

_NOTE_VISIT: Final = (
    USERS.update()
    .where(
        *_IS_USER,
        USERS.c.state != literal_column(str(STATE_BANNED)),
        # A ban holds also where there should be no user beside it, as after two stores were mixed up.
        ~exists().where(BANS.c.digest == bindparam("digest_")),
    )
    .values(
        unionid=func.coalesce(bindparam("unionid_", type_=USERS.c.unionid.type), USERS.c.unionid),
        last_login_at=case(
            (USERS.c.last_login_at < bindparam("now_"), bindparam("now_", type_=USERS.c.last_login_at.type)),
            else_=USERS.c.last_login_at,
        ),
    )
)
_ADD_USER: Final = USERS.insert()
_ADD_LOGIN: Final = LOGINS.insert()

# The derived table is for MySQL, which does not delete from a table that the WHERE reads, nor take a LIMIT in an IN.
_KEPT = (
    select(LOGINS.c.sid)
    .where(*_IS_USERS_LOGIN, LOGINS.c.expires_at > bindparam("now_"))
    .order_by(*_LAST_STARTED_FIRST)
    .limit(literal_column(str(KEPT_LOGINS)))
    .offset(literal_column("0"))
    .subquery("kept")
)
_DROP_OLD_LOGINS: Final = LOGINS.delete().where(*_IS_USERS_LOGIN, LOGINS.c.sid.not_in(select(_KEPT.c.sid)))

_LOCKED_STATE: Final = select(USERS.c.state).where(*_IS_USER).with_for_update()  # SQLite has the lock already
_BAN: Final = select(BANS.c.since).where(BANS.c.digest == bindparam("digest_"))
_USER: Final = select(
    USERS.c.state, USERS.c.state_since, USERS.c.unionid, USERS.c.first_login_at, USERS.c.last_login_at
).where(*_IS_USER)
_LIVE_LOGINS: Final = (
    select(
        LOGINS.c.sid,
        LOGINS.c.sealed_session_key,
        LOGINS.c.started_at_us,
        LOGINS.c.created_at,
        LOGINS.c.expires_at,
    )
    .where(*_IS_USERS_LOGIN, LOGINS.c.expires_at > bindparam("now_"))
    .order_by(*_LAST_STARTED_FIRST)
)
_DROP_THIS_LOGIN: Final = LOGINS.delete().where(
    *_IS_USERS_LOGIN,
    LOGINS.c.sid == bindparam("sid_"),
    LOGINS.c.sealed_session_key == bindparam("sealed_", type_=LOGINS.c.sealed_session_key.type),
)
_IS_SHARED = SHARED.c.name == bindparam("name_")
_SHARED: Final = select(SHARED.c.value, SHARED.c.expires_at).where(_IS_SHARED, SHARED.c.expires_at > bindparam("now_"))
_ADD_SHARED: Final = SHARED.insert()
_SET_SHARED: Final = (
    SHARED.update().where(_IS_SHARED).values(value=bindparam("value_"), expires_at=bindparam("expires_at_"))
)
_SET_EXPIRED: Final = _SET_SHARED.where(SHARED.c.expires_at <= bindparam("now_"))
_DROP_SHARED: Final = SHARED.delete().where(
    _IS_SHARED,
    SHARED.c.value == bindparam("value_", type_=SHARED.c.value.type),
    SHARED.c.expires_at == bindparam("expires_at_"),
)
_REVOKED_KEYS: Final = select(REVOKED_KEYS.c.key_id, REVOKED_KEYS.c.revoked_at)
_TOUCH_NOBODY: Final = USERS.update().where(*_IS_USER).values(state=literal_column(str(STATE_ACTIVE)))


class SqlStore:
    """A Store in the database behind `engine`, whose schema is there already.

    Engines other than SQLite want isolation_level="READ COMMITTED": MySQL's default locks gaps, and first logins that
    meet in one are a deadlock. `confirm`: see Database.
    """

    def __init__(self, engine: Engine, *, confirm: Callable[[DBAPIConnection], None] | None = None) -> None:
        self._database = Database(engine, confirm=confirm)
        self._note_visit = Statement(_NOTE_VISIT, engine.dialect)
        self._locked_state = Statement(_LOCKED_STATE, engine.dialect)
        self._ban = Statement(_BAN, engine.dialect)
        self._add_user = Statement(_ADD_USER, engine.dialect)
        self._add_login = Statement(_ADD_LOGIN, engine.dialect)
        self._drop_old_logins = Statement(_DROP_OLD_LOGINS, engine.dialect)
        self._user = Statement(_USER, engine.dialect)
        self._live_logins = Statement(_LIVE_LOGINS, engine.dialect)
        self._drop_this_login = Statement(_DROP_THIS_LOGIN, engine.dialect)
        self._shared_value = Statement(_SHARED, engine.dialect)
        self._add_shared = Statement(_ADD_SHARED, engine.dialect)
        self._set_shared = Statement(_SET_SHARED, engine.dialect)
        self._set_expired = Statement(_SET_EXPIRED, engine.dialect)
        self._drop_shared = Statement(_DROP_SHARED, engine.dialect)
        self._revoked_keys = Statement(_REVOKED_KEYS, engine.dialect)
        self._touch_nobody = Statement(_TOUCH_NOBODY, engine.dialect)

    # ---- a user's logins ----

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        values = {
            **_login_values(login),
            **_of_user(login.user),
            "state": STATE_ACTIVE,
            "state_since": 0,
            "unionid": unionid,
            "first_login_at": login.created_at,
            "last_login_at": login.created_at,
            "unionid_": unionid,
            "now_": login.created_at,
        }
        with self._database.connection() as connection:
            # Two first logins of one user meet, or one and a ban.
            self._database.retried(lambda: self._put(connection, values), undo=connection.rollback)

    def _put(self, connection: PoolProxiedConnection, values: Mapping[str, object]) -> None:
        with self._database.written(connection) as cursor:
            # The usual case first, and it locks the user's row, so that two logins of one user come one by one.
            self._note_visit.run(cursor, values)
            if cursor.rowcount == 0:
                self._locked_state.run(cursor, values)
                row = cursor.fetchone()
                if row is not None and row[0] == STATE_BANNED:
                    raise UserBanned("this user is banned")
                if row is None:
                    self._add_user.run(cursor, values)
                # Only now that who bans the user has to wait for this one: else a ban, and the user's being forgotten,
                # could come in between.
                self._ban.run(cursor, values)
                if cursor.fetchone() is not None:
                    raise UserBanned("this user is banned")
                if row is not None:  # added by another first login between the first two statements
                    self._note_visit.run(cursor, values)
            self._add_login.run(cursor, values)
            self._drop_old_logins.run(cursor, values)

    def logins(self, user: UserId, *, now: int) -> tuple[LoginRow, ...]:
        with self._database.connection() as connection, cursor_of(connection) as cursor:
            self._live_logins.run(cursor, _of_user(user) | {"now_": now})
            return tuple(LoginRow(user, row[0], bytes(row[1]), *row[2:]) for row in cursor.fetchall())

    def replace_logins(self, user: UserId, gone: Sequence[LoginRow], *, by: LoginRow | None) -> None:
        with self._database.connection() as connection:
            self._database.retried(lambda: self._replace(connection, user, gone, by), undo=connection.rollback)

    def _replace(
        self, connection: PoolProxiedConnection, user: UserId, gone: Sequence[LoginRow], by: LoginRow | None
    ) -> None:
        values = _of_user(user)
        with self._database.written(connection) as cursor:
            # The user's row first, as a login does: they come one by one.
            self._locked_state.run(cursor, values)
            row = cursor.fetchone()
            for login in gone:
                self._drop_this_login.run(cursor, values | {"sid_": login.sid, "sealed_": login.sealed_session_key})
            if by is not None and row is not None and row[0] != STATE_BANNED:
                self._add_login.run(cursor, _login_values(by))

    # ---- a user ----

    def user(self, user: UserId) -> UserRow | None:
        with self._database.connection() as connection, cursor_of(connection) as cursor:
            self._user.run(cursor, _of_user(user))
            row = cursor.fetchone()
            self._ban.run(cursor, _of_user(user))
            ban = cursor.fetchone()
            found = None if row is None else UserRow(user, *row)
            return found if ban is None else banned_row(user, found, since=ban[0])

    def ban(self, user: UserId, *, line: AuditLine) -> bool:
        return ban(self._database, user, line)

    def unban(self, user: UserId, *, line: AuditLine) -> bool:
        return unban(self._database, user, line)

    def forget(self, user: UserId, *, line: AuditLine) -> int | None:
        return forget(self._database, user, line)

    def note(self, line: AuditLine) -> None:
        note(self._database, line)

    # ---- values that processes share ----

    def shared(self, name: str, *, now: int) -> SharedValue | None:
        with self._database.connection() as connection, cursor_of(connection) as cursor:
            self._shared_value.run(cursor, {"name_": name, "now_": now})
            row = cursor.fetchone()
            return None if row is None else SharedValue(name, bytes(row[0]), row[1])

    def share(self, value: SharedValue) -> None:
        values = _shared_values(value)
        with self._database.connection() as connection:
            self._database.retried(lambda: self._share(connection, values), undo=connection.rollback)

    def _share(self, connection: PoolProxiedConnection, values: Mapping[str, object]) -> None:
        with self._database.written(connection) as cursor:
            self._set_shared.run(cursor, values)
            if cursor.rowcount == 0:
                self._add_shared.run(cursor, values)

    def share_first(self, value: SharedValue, *, now: int) -> bool:
        values = _shared_values(value) | {"now_": now}
        with self._database.connection() as connection:
            return self._database.retried(lambda: self._share_first(connection, values), undo=connection.rollback)

    def _share_first(self, connection: PoolProxiedConnection, values: Mapping[str, object]) -> bool:
        with self._database.written(connection) as cursor:
            self._set_expired.run(cursor, values)
            if cursor.rowcount == 1:
                return True
            self._shared_value.run(cursor, values)
            if cursor.fetchone() is not None:
                return False
            self._add_shared.run(cursor, values)
            return True

    def unshare(self, value: SharedValue) -> None:
        with self._database.connection() as connection, self._database.written(connection) as cursor:
            self._drop_shared.run(cursor, _shared_values(value))

    # ---- keys ----

    def note_revoked_keys(self, revoked: Mapping[str, int]) -> None:
        note_revoked_keys(self._database, revoked)

    def revoked_keys(self) -> dict[str, int]:
        with self._database.connection() as connection, cursor_of(connection) as cursor:
            self._revoked_keys.run(cursor, {})
            return dict(cursor.fetchall())

    def drop_sealed(self, sealed_start: bytes) -> int:
        return drop_sealed(self._database, sealed_start)

    # ---- the store as a whole ----

    def purge(self, *, now: int, at_most: int) -> int:
        return purge(self._database, now=now, at_most=at_most)

    def census(self, *, now: int, start_bytes: int) -> Census:
        return census(self._database, now=now, start_bytes=start_bytes)

    def page(self, kind: type[Row], *, after: str, at_most: int, identify: Identify) -> tuple[list[Row], str | None]:
        return page(self._database, kind, after=after, at_most=at_most, identify=identify)

    def merge(self, rows: Sequence[Row]) -> None:
        merge(self._database, rows)

    def ping(self) -> None:
        # Nobody has this name; but a store that is locked, full or read-only says so.
        with self._database.connection() as connection, self._database.written(connection) as cursor:
            self._touch_nobody.run(cursor, {"appid_": "", "openid_": ""})

    def close(self) -> None:
        self._database.close()


def _of_user(user: UserId) -> dict[str, object]:
    return {"appid_": user.appid, "openid_": user.openid, "digest_": user.digest}


def _login_values(login: LoginRow) -> dict[str, object]:
    return {
        "appid": login.user.appid,
        "openid": login.user.openid,
        "sid": login.sid,
        "sealed_session_key": login.sealed_session_key,
        "started_at_us": login.started_at_us,
        "created_at": login.created_at,
        "expires_at": login.expires_at,
    }


def _shared_values(value: SharedValue) -> dict[str, object]:
    values = {"name": value.name, "value": value.value, "expires_at": value.expires_at}
    return values | {f"{name}_": given for name, given in values.items()}
