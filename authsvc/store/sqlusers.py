"""What an operator does to a user in a SQL database, and the line about it, in one transaction that is on the disk."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from sqlalchemy import Select, select
from sqlalchemy.engine import Connection
from sqlalchemy.sql.elements import ColumnElement

from authsvc.store.database import Database
from authsvc.store.rows import STATE_ACTIVE, STATE_BANNED, AuditLine, UserId
from authsvc.store.schema import AUDIT, BANS, LOGINS, USERS

_NEVER: Final = 0


def ban(database: Database, user: UserId, line: AuditLine) -> bool:
    def act(connection: Connection) -> bool:
        found = connection.execute(_locked(user)).one_or_none()
        if found is None:
            if _is_in_bans(connection, user):
                return False
            # Of somebody who has never come. In the same table as the others, so that a first login meets it.
            connection.execute(
                USERS.insert().values(
                    appid=user.appid,
                    openid=user.openid,
                    state=STATE_BANNED,
                    state_since=line.at,
                    first_login_at=_NEVER,
                    last_login_at=_NEVER,
                )
            )
        elif found.state == STATE_BANNED:
            return False
        else:
            connection.execute(USERS.update().where(*_is(user)).values(state=STATE_BANNED, state_since=line.at))
        _add(connection, line)
        return True

    return database.transact(act, durable=True)


def unban(database: Database, user: UserId, line: AuditLine) -> bool:
    def act(connection: Connection) -> bool:
        found = connection.execute(_locked(user)).one_or_none()
        lifted = connection.execute(BANS.delete().where(BANS.c.digest == user.digest)).rowcount > 0
        if found is not None and found.state == STATE_BANNED:
            lifted = True
            if found.first_login_at == _NEVER:
                connection.execute(USERS.delete().where(*_is(user)))
            else:
                connection.execute(USERS.update().where(*_is(user)).values(state=STATE_ACTIVE, state_since=line.at))
        if lifted:
            _add(connection, line)
        return lifted

    return database.transact(act, durable=True)


def forget(database: Database, user: UserId, line: AuditLine) -> int | None:
    def act(connection: Connection) -> int | None:
        found = connection.execute(_locked(user)).one_or_none()
        if found is None:
            return None
        is_users = (LOGINS.c.appid == user.appid, LOGINS.c.openid == user.openid)
        gone = connection.execute(LOGINS.delete().where(*is_users)).rowcount
        connection.execute(USERS.delete().where(*_is(user)))
        if found.state == STATE_BANNED and not _is_in_bans(connection, user):
            connection.execute(BANS.insert().values(digest=user.digest, since=found.state_since))
        _add(connection, line)
        return gone

    return database.transact(act, durable=True)


def note(database: Database, line: AuditLine) -> None:
    database.transact(lambda connection: _add(connection, line), durable=True)


def _locked(user: UserId) -> Select[tuple[int, int, int]]:
    """The user's row first, as a login does: they come one by one."""
    return select(USERS.c.state, USERS.c.state_since, USERS.c.first_login_at).where(*_is(user)).with_for_update()


def _is_in_bans(connection: Connection, user: UserId) -> bool:
    return connection.execute(select(BANS.c.since).where(BANS.c.digest == user.digest)).first() is not None


def _is(user: UserId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return USERS.c.appid == user.appid, USERS.c.openid == user.openid


def _add(connection: Connection, line: AuditLine) -> None:
    connection.execute(AUDIT.insert().values(asdict(line)))
