"""From AUTHSVC_STORE to a side store."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from authsvc.errors import SettingsError, StoreUnavailable
from authsvc.store.sql import SqlStore
from authsvc.store.sqlite import SqliteFile, sqlite_engine


def store_path(url: str) -> Path:
    """The absolute path of the database file that `url` names.

    Raises: SettingsError if it is not of the form sqlite:///path.
    """
    # `from None`, and no URL in the message: it may have a password in it.
    refusal = SettingsError(["AUTHSVC_STORE is not sqlite:///path/of/file (four slashes for an absolute path)"])
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise refusal from None
    path = parsed.database or ":memory:"
    beyond_path = parsed.query or parsed.username or parsed.password or parsed.host or parsed.port
    if parsed.drivername != "sqlite" or beyond_path or path.startswith((":", "file:")) or not path.isprintable():
        raise refusal
    return Path(path).absolute()


def prepare_store(url: str) -> None:
    """Make the database if there is none, and bring its schema up to date; once, before the workers start.

    Raises: SettingsError for a URL that is not supported; StoreUnavailable if the database cannot be used as it is.
    """
    # Not above: Alembic takes a third of a second and 10 MB, and the workers have no use for it.
    from authsvc.store.migrate import upgrade

    path = store_path(url)
    file = SqliteFile(path)
    engine = sqlite_engine(file)
    try:
        file.create()
        upgrade(engine)
    except StoreUnavailable as error:
        raise StoreUnavailable(f"the side store {path} cannot be used: {error}") from None
    finally:
        engine.dispose()


def open_store(url: str) -> SqlStore:
    """The side store at `url`, prepared before. Call it in the process that uses it: connections do not survive a fork.

    Neither makes nor looks for the database: until there is one, the store raises StoreUnavailable.
    Raises: SettingsError for a URL that is not supported.
    """
    file = SqliteFile(store_path(url))
    return SqlStore(sqlite_engine(file), confirm=file.check)
