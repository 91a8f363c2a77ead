"""The side store in a SQL database: the same statements for every engine SQLAlchemy speaks.

Core writes the SQL, its pool keeps the connections, and the driver runs it: `Connection.execute` alone costs
two to three times what SQLite takes for the row, and it is paid while the other writers wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Final

from sqlalchemy import Integer, bindparam, case, func, literal_column, select, tuple_
from sqlalchemy.engine import Engine
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor, Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement

from authsvc.errors import StoreUnavailable, UserBanned
from authsvc.store.protocol import KEPT_LOGINS, STATE_ACTIVE, STATE_BANNED, LoginRow, SharedValue, UserRow
from authsvc.store.schema import LOGINS, REVOKED_KEYS, SHARED, USERS

# Names that end in `_` are values of the call; without it they would be taken for columns to be set.
_IS_USER = (USERS.c.appid == bindparam("appid_"), USERS.c.openid == bindparam("openid_"))
_IS_USERS_LOGIN = (LOGINS.c.appid == bindparam("appid_"), LOGINS.c.openid == bindparam("openid_"))
_LAST_STARTED_FIRST = (LOGINS.c.started_at_us.desc(), LOGINS.c.sid.desc())

_NOTE_VISIT: Final = (
    USERS.update()
    .where(*_IS_USER, USERS.c.state != literal_column(str(STATE_BANNED)))
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
_SET_STATE: Final = USERS.update().where(*_IS_USER).values(state=bindparam("state_"))
_USER: Final = select(*(USERS.c[field.name] for field in fields(UserRow))).where(*_IS_USER)
_LIVE_LOGINS: Final = (
    select(*(LOGINS.c[field.name] for field in fields(LoginRow)))
    .where(*_IS_USERS_LOGIN, LOGINS.c.expires_at > bindparam("now_"))
    .order_by(*_LAST_STARTED_FIRST)
)
# So many in one transaction: logins that wait for the same lock are not to notice that a store is emptied.
_DROPPED_AT_ONCE: Final = 500
_LOGIN_KEY = (LOGINS.c.appid, LOGINS.c.openid, LOGINS.c.sid)
_SOME_SEALED_LOGINS: Final = (
    select(*_LOGIN_KEY)
    .where(
        func.substr(
            LOGINS.c.sealed_session_key,
            literal_column("1"),
            bindparam("start_bytes_", type_=Integer),
        )
        == bindparam("start_", type_=LOGINS.c.sealed_session_key.type),
        # Onwards from the last one found: what lies before it has been looked at.
        tuple_(*_LOGIN_KEY) > tuple_(*(bindparam(f"after_{column.name}", type_=column.type) for column in _LOGIN_KEY)),
    )
    .order_by(*_LOGIN_KEY)
    .limit(literal_column(str(_DROPPED_AT_ONCE)))
    .offset(literal_column("0"))
)
_DROP_LOGIN: Final = LOGINS.delete().where(*_IS_USERS_LOGIN, LOGINS.c.sid == bindparam("sid_"))
_DROP_THIS_LOGIN: Final = _DROP_LOGIN.where(
    LOGINS.c.sealed_session_key == bindparam("sealed_", type_=LOGINS.c.sealed_session_key.type)
)
_DROP_SEALED_VALUES: Final = SHARED.delete().where(
    func.substr(SHARED.c.value, literal_column("1"), bindparam("start_bytes_", type_=Integer))
    == bindparam("start_", type_=SHARED.c.value.type)
)
_IS_SHARED = SHARED.c.name == bindparam("name_")
_SHARED: Final = select(*(SHARED.c[field.name] for field in fields(SharedValue))).where(
    _IS_SHARED, SHARED.c.expires_at > bindparam("now_")
)
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
_ADD_REVOKED_KEY: Final = REVOKED_KEYS.insert()
_REVOKED_KEYS: Final = select(REVOKED_KEYS.c.key_id, REVOKED_KEYS.c.revoked_at)


class _Statement:
    """A statement in the words of one driver."""

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        self._sql = str(compiled)
        self._positions = compiled.positiontup
        self._names = tuple(compiled.params)

    def run(self, cursor: DBAPICursor, values: Mapping[str, object]) -> None:
        """Execute it with those of `values` that it names."""
        if self._positions is None:
            cursor.execute(self._sql, {name: values[name] for name in self._names})
        else:
            cursor.execute(self._sql, [values[name] for name in self._positions])


class SqlStore:
    """A Store in the database behind `engine`, whose schema is there already.

    Engines other than SQLite want isolation_level="READ COMMITTED": MySQL's default locks gaps, and first logins that
    meet in one are a deadlock. `confirm` gets the connection after each commit and raises if the database is no
    longer where others look for it.
    """

    def __init__(self, engine: Engine, *, confirm: Callable[[DBAPIConnection], None] | None = None) -> None:
        self._engine = engine
        self._confirm = confirm
        self._dbapi = engine.dialect.loaded_dbapi
        self._engine_errors = (SQLAlchemyError, self._dbapi.Error, OSError)
        # The write lock first: a transaction that began by reading cannot wait for it, and fails if another one writes.
        self._begin = "BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else None
        self._note_visit = _Statement(_NOTE_VISIT, engine.dialect)
        self._locked_state = _Statement(_LOCKED_STATE, engine.dialect)
        self._add_user = _Statement(_ADD_USER, engine.dialect)
        self._add_login = _Statement(_ADD_LOGIN, engine.dialect)
        self._drop_old_logins = _Statement(_DROP_OLD_LOGINS, engine.dialect)
        self._set_state = _Statement(_SET_STATE, engine.dialect)
        self._user = _Statement(_USER, engine.dialect)
        self._live_logins = _Statement(_LIVE_LOGINS, engine.dialect)
        self._some_sealed_logins = _Statement(_SOME_SEALED_LOGINS, engine.dialect)
        self._drop_login = _Statement(_DROP_LOGIN, engine.dialect)
        self._drop_this_login = _Statement(_DROP_THIS_LOGIN, engine.dialect)
        self._drop_sealed_values = _Statement(_DROP_SEALED_VALUES, engine.dialect)
        self._shared_value = _Statement(_SHARED, engine.dialect)
        self._add_shared = _Statement(_ADD_SHARED, engine.dialect)
        self._set_shared = _Statement(_SET_SHARED, engine.dialect)
        self._set_expired = _Statement(_SET_EXPIRED, engine.dialect)
        self._drop_shared = _Statement(_DROP_SHARED, engine.dialect)
        self._add_revoked_key = _Statement(_ADD_REVOKED_KEY, engine.dialect)
        self._revoked_keys = _Statement(_REVOKED_KEYS, engine.dialect)

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        values = {
            **_values(login),
            "state": STATE_ACTIVE,
            "unionid": unionid,
            "first_login_at": login.created_at,
            "last_login_at": login.created_at,
            "appid_": login.appid,
            "openid_": login.openid,
            "unionid_": unionid,
            "now_": login.created_at,
        }
        with self._connection() as connection:
            try:
                self._put(connection, values)
            except self._dbapi.IntegrityError:
                # Two first logins of one user met, and the other one has added the user by now.
                connection.rollback()
                self._put(connection, values)

    def _put(self, connection: PoolProxiedConnection, values: Mapping[str, object]) -> None:
        with self._written(connection) as cursor:
            # The usual case first, and it locks the user's row, so that two logins of one user come one by one.
            self._note_visit.run(cursor, values)
            if cursor.rowcount == 0:
                self._locked_state.run(cursor, values)
                row = cursor.fetchone()
                if row is None:
                    self._add_user.run(cursor, values)
                elif row[0] == STATE_BANNED:
                    raise UserBanned("this user is banned")
                else:  # added by another first login between the two statements
                    self._note_visit.run(cursor, values)
            self._add_login.run(cursor, values)
            self._drop_old_logins.run(cursor, values)

    def logins(self, appid: str, openid: str, *, now: int) -> tuple[LoginRow, ...]:
        with self._connection() as connection, _cursor(connection) as cursor:
            self._live_logins.run(cursor, {"appid_": appid, "openid_": openid, "now_": now})
            return tuple(LoginRow(*row) for row in cursor.fetchall())

    def replace_logins(self, gone: Sequence[LoginRow], *, by: LoginRow | None) -> None:
        ((appid, openid),) = {(login.appid, login.openid) for login in gone}
        values: dict[str, object] = {"appid_": appid, "openid_": openid}
        with self._connection() as connection, self._written(connection) as cursor:
            # The user's row first, as a login does: they come one by one.
            self._locked_state.run(cursor, values)
            row = cursor.fetchone()
            for login in gone:
                self._drop_this_login.run(cursor, values | {"sid_": login.sid, "sealed_": login.sealed_session_key})
            if by is not None and row is not None and row[0] != STATE_BANNED:
                self._add_login.run(cursor, _values(by))

    def user(self, appid: str, openid: str) -> UserRow | None:
        with self._connection() as connection, _cursor(connection) as cursor:
            self._user.run(cursor, {"appid_": appid, "openid_": openid})
            row = cursor.fetchone()
            return None if row is None else UserRow(*row)

    def set_user_state(self, appid: str, openid: str, state: int) -> bool:
        with self._connection() as connection, self._written(connection) as cursor:
            self._set_state.run(cursor, {"appid_": appid, "openid_": openid, "state_": state})
            return bool(cursor.rowcount)

    def drop_sealed(self, sealed_start: bytes) -> int:
        dropped = 0
        values: dict[str, object] = {"start_": sealed_start, "start_bytes_": len(sealed_start)}
        with self._connection() as connection, self._written(connection) as cursor:
            self._drop_sealed_values.run(cursor, values)
        after = ("", "", "")
        while True:
            with self._connection() as connection:
                with _cursor(connection) as cursor:
                    values |= zip(("after_appid", "after_openid", "after_sid"), after, strict=True)
                    self._some_sealed_logins.run(cursor, values)
                    found = cursor.fetchall()
                if not found:
                    return dropped
                with self._written(connection) as cursor:
                    for appid, openid, sid in found:
                        self._drop_login.run(cursor, {"appid_": appid, "openid_": openid, "sid_": sid})
                        dropped += cursor.rowcount
            after = found[-1]

    def shared(self, name: str, *, now: int) -> SharedValue | None:
        with self._connection() as connection, _cursor(connection) as cursor:
            self._shared_value.run(cursor, {"name_": name, "now_": now})
            row = cursor.fetchone()
            return None if row is None else SharedValue(row[0], bytes(row[1]), row[2])

    def share(self, value: SharedValue) -> None:
        values = _shared_values(value)
        with self._connection() as connection:
            while True:
                try:
                    with self._written(connection) as cursor:
                        self._set_shared.run(cursor, values)
                        if cursor.rowcount == 0:
                            self._add_shared.run(cursor, values)
                    return
                except self._dbapi.IntegrityError:
                    connection.rollback()  # another process added one between the two statements

    def share_first(self, value: SharedValue, *, now: int) -> bool:
        values = _shared_values(value) | {"now_": now}
        with self._connection() as connection:
            try:
                with self._written(connection) as cursor:
                    self._set_expired.run(cursor, values)
                    if cursor.rowcount == 0:
                        self._add_shared.run(cursor, values)
                return True
            except self._dbapi.IntegrityError:
                connection.rollback()
                return False

    def unshare(self, value: SharedValue) -> None:
        with self._connection() as connection, self._written(connection) as cursor:
            self._drop_shared.run(cursor, _shared_values(value))

    def note_revoked_keys(self, revoked: Mapping[str, int]) -> None:
        with self._connection() as connection:
            try:
                self._note_revoked_keys(connection, revoked)
            except self._dbapi.IntegrityError:
                # Another process noted one of them between our look and our insert.
                connection.rollback()
                self._note_revoked_keys(connection, revoked)

    def _note_revoked_keys(self, connection: PoolProxiedConnection, revoked: Mapping[str, int]) -> None:
        with self._written(connection) as cursor:
            self._revoked_keys.run(cursor, {})
            known = {row[0] for row in cursor.fetchall()}
            for key_id in sorted(revoked.keys() - known):
                self._add_revoked_key.run(cursor, {"key_id": key_id, "revoked_at": revoked[key_id]})

    def revoked_keys(self) -> dict[str, int]:
        with self._connection() as connection, _cursor(connection) as cursor:
            self._revoked_keys.run(cursor, {})
            return dict(cursor.fetchall())

    def ping(self) -> None:
        # Nobody has this name; but a store that is locked, full or read-only says so.
        with self._connection() as connection, self._written(connection) as cursor:
            self._set_state.run(cursor, {"appid_": "", "openid_": "", "state_": STATE_ACTIVE})

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _connection(self) -> Iterator[PoolProxiedConnection]:
        """The kept connection, and every error of the engine as StoreUnavailable.

        A connection that has failed is not used again: what is wrong with it is not worth finding out.
        """
        try:
            connection = self._engine.raw_connection()
            try:
                yield connection
            except self._engine_errors:
                connection.invalidate()
                raise
            finally:
                connection.close()
        except self._engine_errors as error:
            # `from None`: the original may carry the row, and the URL with its password.
            raise StoreUnavailable(f"the side store did not answer ({cause(error)})") from None

    @contextmanager
    def _written(self, connection: PoolProxiedConnection) -> Iterator[DBAPICursor]:
        """A transaction, committed at the end; the pool rolls back what is left open."""
        with _cursor(connection) as cursor:
            if self._begin is not None:
                cursor.execute(self._begin)
            yield cursor
        connection.commit()
        if self._confirm is not None and connection.dbapi_connection is not None:
            self._confirm(connection.dbapi_connection)


def _values(row: LoginRow | SharedValue) -> dict[str, object]:
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _shared_values(value: SharedValue) -> dict[str, object]:
    return _values(value) | {f"{name}_": given for name, given in _values(value).items()}


@contextmanager
def _cursor(connection: PoolProxiedConnection) -> Iterator[DBAPICursor]:
    cursor = connection.cursor()
    try:
        yield cursor
    finally:
        cursor.close()


def cause(error: BaseException) -> str:
    """What went wrong, in words that cannot hold data: names of classes, and SQLite's name of its error."""
    original = getattr(error, "orig", None) or error
    names = (type(original).__name__, getattr(original, "sqlite_errorname", None))
    return ", ".join(name for name in names if name)
