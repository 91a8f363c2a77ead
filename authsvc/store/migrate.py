"""Brings a database to the schema this program knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from authsvc.errors import StoreUnavailable
from authsvc.store.database import cause


def upgrade(engine: Engine) -> None:
    """Bring the database to the newest revision, or leave it as it is; one thread of a process at a time.

    Raises: StoreUnavailable if a newer program made the database, or if it does not answer.
    """
    try:
        with engine.connect() as connection:
            # Of two processes that start at once the second waits here, and then finds nothing to do.
            _lock(connection)
            _upgrade(connection)
            connection.commit()
    except (SQLAlchemyError, CommandError, OSError) as error:
        # `from None`: the original may carry the URL with its password.
        raise StoreUnavailable(f"the side store's schema could not be set up ({cause(error)})") from None


# Those of SQLite and PostgreSQL end with the transaction, MySQL's with the connection: its DDL commits by itself.
_LOCKS: Final = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_xact_lock(hashtext('authsvc schema'))",
    **dict.fromkeys(("mysql", "mariadb"), "SELECT GET_LOCK('authsvc schema', 20)"),
}


def _lock(connection: Connection) -> None:
    result = connection.exec_driver_sql(_LOCKS[connection.dialect.name])
    if connection.dialect.name in ("mysql", "mariadb") and result.scalar() != 1:
        raise StoreUnavailable("another program is changing the schema of the side store")
    result.close()


def _upgrade(connection: Connection) -> None:
    config = Config()
    folder = os.fspath(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))  # an ini value, where % is special
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        raise StoreUnavailable(
            "the side store was made by a newer authsvc than this one (schema revision "
            f"{', '.join(sorted(unknown))!a:.80}); run that one, or give AUTHSVC_STORE another database"
        )
    command.upgrade(config, "head")
