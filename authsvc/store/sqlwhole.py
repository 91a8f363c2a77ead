"""A SQL database as a whole: clear it up, count it, read it page by page, take over another one's rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, fields
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Delete,
    Select,
    Table,
    and_,
    bindparam,
    case,
    column,
    func,
    or_,
    select,
    tuple_,
)
from sqlalchemy import values as table_of
from sqlalchemy.engine import Connection, RowMapping

from authsvc.store.database import Database
from authsvc.store.protocol import Identify
from authsvc.store.rows import (
    KEPT_LOGINS,
    STATE_BANNED,
    AuditLine,
    Ban,
    Census,
    LoginRow,
    RevokedKey,
    Row,
    UserId,
    UserRow,
    merged,
)
from authsvc.store.schema import AUDIT, BANS, LOGINS, REVOKED_KEYS, SHARED, USERS

# So many in one transaction: logins that wait for the same lock are not to notice that a store is emptied.
_DROPPED_AT_ONCE: Final = 500
_READ_AT_ONCE: Final = 5_000
# No more than what a statement may have parameters for, three for each row, and SQLite depth for an OR.
_MERGED_AT_ONCE: Final = 250

_LOGIN_KEY: Final = (LOGINS.c.appid, LOGINS.c.openid, LOGINS.c.sid)
_DROP_LOGIN: Final = LOGINS.delete().where(*(column == bindparam(f"{column.name}_") for column in _LOGIN_KEY))

_ENGINES: Final = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB"}
_SIZES: Final = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
    "postgresql": "SELECT pg_database_size(current_database())",
    "mysql": "SELECT sum(data_length + index_length) FROM information_schema.tables WHERE table_schema = database()",
}


def note_revoked_keys(database: Database, revoked: Mapping[str, int]) -> None:
    merge(database, [RevokedKey(key_id, at) for key_id, at in revoked.items()])


def purge(database: Database, *, now: int, at_most: int) -> int:
    def act(connection: Connection) -> int:
        # What a login has locked goes with that login. To wait for it, with other users' rows locked here, would be
        # half of a deadlock.
        ended = select(*_LOGIN_KEY).where(LOGINS.c.expires_at <= now).order_by(LOGINS.c.expires_at).limit(at_most)
        found = connection.execute(ended.with_for_update(skip_locked=True)).all()
        _drop_logins(connection, found)
        values = connection.execute(SHARED.delete().where(SHARED.c.expires_at <= now)).rowcount
        return len(found) + values

    return database.transact(act)


def drop_sealed(database: Database, sealed_start: bytes) -> int:
    def starts(column: ColumnElement[bytes]) -> ColumnElement[bool]:
        return func.substr(column, 1, len(sealed_start)) == bindparam("start", sealed_start, type_=column.type)

    drop = _DROP_LOGIN.where(starts(LOGINS.c.sealed_session_key))
    start = func.substr(LOGINS.c.sealed_session_key, 1, len(sealed_start))
    database.transact(lambda connection: connection.execute(SHARED.delete().where(starts(SHARED.c.value))))
    dropped = 0
    after: Sequence[str] | None = ("", "", "")
    while after is not None:
        # By the key, whatever they are sealed under: no database has an index by the beginning of a blob.
        some = select(*_LOGIN_KEY, start).where(_is_after(_LOGIN_KEY, after, database))
        some = some.order_by(*_LOGIN_KEY).limit(_READ_AT_ONCE)
        found = _looked_up(database, some)
        burnt = [row[:-1] for row in found if bytes(row[-1]) == sealed_start]
        for n in range(0, len(burnt), _DROPPED_AT_ONCE):
            dropped += _dropped(database, drop, burnt[n : n + _DROPPED_AT_ONCE])
        after = found[-1][:-1] if found else None
    return dropped


def _looked_up(database: Database, statement: Select[Any]) -> Sequence[Any]:
    return database.look(lambda connection: connection.execute(statement).all())


def _dropped(database: Database, drop: Delete, keys: Sequence[Any]) -> int:
    return database.transact(lambda connection: _drop_logins(connection, keys, drop))


def _drop_logins(connection: Connection, found: Sequence[Any], drop: Delete = _DROP_LOGIN) -> int:
    if not found:
        return 0
    keys = [dict(zip((f"{column.name}_" for column in _LOGIN_KEY), row, strict=True)) for row in found]
    return connection.execute(drop, keys).rowcount


def census(database: Database, *, now: int, start_bytes: int) -> Census:
    def counted(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    start = func.substr(LOGINS.c.sealed_session_key, 1, start_bytes)
    of_users = select(func.count(), counted(USERS.c.state == STATE_BANNED)).select_from(USERS)
    of_logins = select(func.count(), counted(LOGINS.c.expires_at <= now), func.min(LOGINS.c.created_at))

    def act(connection: Connection) -> Census:
        users, banned = connection.execute(of_users).one()
        logins, ended, oldest = connection.execute(of_logins).one()
        by_start = connection.execute(select(start, func.count()).select_from(LOGINS).group_by(start)).all()
        forgotten = connection.execute(select(func.count()).select_from(BANS)).scalar_one()
        name = "mariadb" if getattr(database.dialect, "is_mariadb", False) else database.dialect.name
        version = getattr(database.dialect, "server_version_info", None) or ()
        size = connection.exec_driver_sql(_SIZES["mysql" if name == "mariadb" else name]).scalar_one()
        return Census(
            engine=f"{_ENGINES[name]} {'.'.join(str(part) for part in version[:3])}",
            size_bytes=None if size is None else int(size),
            users=users,
            banned=int(banned) + forgotten,
            logins=logins,
            ended_logins=int(ended),
            logins_by_start={bytes(begins): count for begins, count in by_start},
            oldest_login_at=oldest,
            audit_lines=connection.execute(select(func.count()).select_from(AUDIT)).scalar_one(),
        )

    return database.look(act)


def page(
    database: Database, kind: type[Row], *, after: str, at_most: int, identify: Identify
) -> tuple[list[Row], str | None]:
    """`after` is the primary key of the last row, as JSON."""
    table = _TABLES[kind]
    key = tuple(table.primary_key.columns)
    last = tuple(json.loads(after)) if after else ("",) * len(key)
    statement = select(table).where(_is_after(key, last, database)).order_by(*key).limit(at_most)
    found = database.look(lambda connection: connection.execute(statement).mappings().all())
    rows = [_READ[kind](row, identify) for row in found]
    return rows, json.dumps([found[-1][column.name] for column in key]) if len(found) == at_most else None


def merge(database: Database, rows: Sequence[Row]) -> None:
    for n in range(0, len(rows), _MERGED_AT_ONCE):
        _merge_some(database, rows[n : n + _MERGED_AT_ONCE])


def _merge_some(database: Database, rows: Sequence[Row]) -> None:
    def act(connection: Connection) -> None:
        for kind, table in _TABLES.items():
            values = {_key(table, written): written for written in map(_written, (r for r in rows if type(r) is kind))}
            if not values:
                continue
            key = tuple(table.primary_key.columns)
            known = connection.execute(
                # In order, so that two who take over the same rows wait for one another in the same order.
                select(table).where(_is_one_of(key, list(values), database)).order_by(*key).with_for_update()
            ).mappings()
            for row in known.all():
                came = values.pop(_key(table, row))
                if kind is UserRow:
                    _merge_user(connection, row, came)
            if values:
                connection.execute(table.insert(), list(values.values()))
            if kind is LoginRow:
                _trim(connection, {(row["appid"], row["openid"]) for row in values.values()}, database)

    database.transact(act, durable=True)


def _trim(connection: Connection, users: Set[tuple[str, str]], database: Database) -> None:
    """Leave no more logins to these users than a user has."""
    if not users:
        return
    of_user = (LOGINS.c.appid, LOGINS.c.openid)
    crowded = select(*of_user).where(_is_one_of(of_user, sorted(users), database)).group_by(*of_user)
    for appid, openid in connection.execute(crowded.having(func.count() > KEPT_LOGINS)).all():
        is_users = and_(LOGINS.c.appid == appid, LOGINS.c.openid == openid)
        by_start = select(*_LOGIN_KEY).where(is_users).order_by(LOGINS.c.started_at_us.desc(), LOGINS.c.sid.desc())
        _drop_logins(connection, connection.execute(by_start).all()[KEPT_LOGINS:])


def _merge_user(connection: Connection, here: RowMapping, came: Mapping[str, Any]) -> None:
    values = _written(merged(_read_user(here, _unidentified), _read_user(came, _unidentified)))
    if values != dict(here):
        is_user = (USERS.c.appid == values["appid"], USERS.c.openid == values["openid"])
        connection.execute(USERS.update().where(*is_user).values(values))


def _unidentified(appid: str, openid: str) -> UserId:
    return UserId(appid, openid, digest="")


# ---- rows, as the tables have them ----


def _read_user(row: Mapping[Any, Any], identify: Identify) -> UserRow:
    user = identify(row["appid"], row["openid"])
    return UserRow(user, row["state"], row["state_since"], row["unionid"], row["first_login_at"], row["last_login_at"])


def _read_login(row: Mapping[Any, Any], identify: Identify) -> LoginRow:
    user = identify(row["appid"], row["openid"])
    sealed = bytes(row["sealed_session_key"])
    return LoginRow(user, row["sid"], sealed, row["started_at_us"], row["created_at"], row["expires_at"])


_TABLES: Final[Mapping[type[Row], Table]] = {
    UserRow: USERS,
    LoginRow: LOGINS,
    Ban: BANS,
    AuditLine: AUDIT,
    RevokedKey: REVOKED_KEYS,
}
_READ: Final[Mapping[type[Row], Callable[[Mapping[Any, Any], Identify], Row]]] = {
    UserRow: _read_user,
    LoginRow: _read_login,
    Ban: lambda row, _: Ban(row["digest"], row["since"]),
    AuditLine: lambda row, _: AuditLine(**row),
    RevokedKey: lambda row, _: RevokedKey(row["key_id"], row["revoked_at"]),
}


def _written(row: Row) -> dict[str, Any]:
    match row:
        case UserRow() | LoginRow():
            others = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "user"}
            return {"appid": row.user.appid, "openid": row.user.openid, **others}
        case RevokedKey():
            return {"key_id": row.id, "revoked_at": row.revoked_at}
        case _:
            return asdict(row)


def _key(table: Table, row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in table.primary_key.columns)


def _is_one_of(
    key: Sequence[Column[Any]], values: Sequence[tuple[Any, ...]], database: Database
) -> ColumnElement[bool]:
    if database.dialect.name == "postgresql":
        # It takes a list of rows for so many conditions, and tries them all on every row of a table that it has not
        # looked at lately (ANALYZE). A table of them it joins.
        these = table_of(*(column(each.name, each.type) for each in key), name="these").data(list(values))
        return tuple_(*key).in_(select(these))
    if database.dialect.name != "sqlite":
        return tuple_(*key).in_(values)
    # SQLite finds no index for a list of rows.
    return or_(*(and_(*(column == one for column, one in zip(key, value, strict=True))) for value in values))


def _is_after(key: Sequence[Column[Any]], last: Sequence[str], database: Database) -> ColumnElement[bool]:
    if database.dialect.name not in ("mysql", "mariadb"):
        return tuple_(*key) > tuple_(*last)
    # MySQL finds no index in a comparison of rows, and SQLite none in this.
    ways = [and_(*(key[n] == last[n] for n in range(place)), key[place] > last[place]) for place in range(len(key))]
    return or_(*ways)
