"""From AUTHSVC_STORE to a side store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import inspect
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from authsvc.errors import SettingsError, StoreUnavailable
from authsvc.store.database import cause
from authsvc.store.protocol import Store
from authsvc.store.redisurl import is_redis, need_driver, redis_address
from authsvc.store.schema import REVISION
from authsvc.store.server import check_options, is_server, server_engine
from authsvc.store.sql import SqlStore
from authsvc.store.sqlite import SqliteFile, sqlite_engine

_FORMS: Final = (
    "AUTHSVC_STORE is not sqlite:///path/of/file (four slashes for an absolute path), "
    "postgresql://user:password@host/database, mysql:// or mariadb:// alike, or redis://user:password@host:6379/0"
)


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a side store is, in words without a password. `file`: the absolute path, of SQLite alone."""

    shown: str
    file: Path | None

    @property
    def is_missing(self) -> bool:
        """Whether it is known, without asking anybody, that there is none."""
        return self.file is not None and not self.file.exists()


def store_address(url: str) -> StoreAddress:
    """Raises: SettingsError if the URL is not one of a side store."""
    if is_redis(url):
        return StoreAddress(redis_address(url).shown, None)
    parsed = _parsed(url)
    if is_server(parsed):
        # Other options of the driver may hold the path of a key, or a password.
        hosts = {"host": parsed.query["host"]} if "host" in parsed.query else {}
        return StoreAddress(parsed.set(query=hosts).render_as_string(hide_password=True), None)
    path = _path(parsed)
    return StoreAddress(str(path), path)


def prepare_store(url: str) -> tuple[str, ...]:
    """Make the tables, for SQLite the file too, and bring them up to date; once, before the workers start. Returns what
    an operator should know.

    Raises: SettingsError for a URL that is not supported; StoreUnavailable if the database cannot be used as it is.
    """
    try:
        return _prepared_redis(url) if is_redis(url) else _prepared_database(_parsed(url))
    except StoreUnavailable as error:
        raise StoreUnavailable(f"the side store {store_address(url).shown} cannot be used: {error}") from None


def _prepared_database(parsed: URL) -> tuple[str, ...]:
    file = None if is_server(parsed) else SqliteFile(_path(parsed))
    engine = server_engine(parsed, patient=True) if file is None else sqlite_engine(file)
    try:
        if file is not None:
            file.create()
        if not _is_up_to_date(engine):
            # Not above: Alembic takes a third of a second and 10 MB, and who finds everything in order needs none.
            from authsvc.store.migrate import upgrade

            upgrade(engine)
    finally:
        engine.dispose()
    return ()


def _is_up_to_date(engine: Engine) -> bool:
    try:
        return _revision(engine) == REVISION
    except StoreUnavailable:
        return False  # and will say so again


def _prepared_redis(url: str) -> tuple[str, ...]:
    address = redis_address(url)
    need_driver()
    from authsvc.store.redis import prepared

    return prepared(address)


def check_store(url: str) -> None:
    """Look whether there is a side store of this program's form at `url`; nothing is made or changed.

    Raises: SettingsError for a URL that is not supported; StoreUnavailable if there is none.
    """
    shown = store_address(url).shown
    try:
        found = _form_of_redis(url) if is_redis(url) else _form_of_database(_parsed(url))
    except StoreUnavailable as error:
        raise StoreUnavailable(f"the side store {shown} cannot be used: {error}") from None
    if found is None:
        raise StoreUnavailable(f"there is no side store in {shown}; is AUTHSVC_STORE what the service has?")
    if found != REVISION:
        raise StoreUnavailable(
            f"the side store {shown} is of another version of authsvc (schema {found!a:.20}, not {REVISION} as here); "
            "mend: start the service of this version on it first, or use the version that made it"
        )


def _form_of_redis(url: str) -> str | None:
    address = redis_address(url)
    need_driver()
    from authsvc.store.redis import is_there

    return REVISION if is_there(address) else None


def _form_of_database(parsed: URL) -> str | None:
    file = None if is_server(parsed) else SqliteFile(_path(parsed), as_is=True)
    engine = server_engine(parsed, patient=False) if file is None else sqlite_engine(file)
    try:
        if file is not None:
            file.check_header()
        return _revision(engine)
    finally:
        engine.dispose()


def _revision(engine: Engine) -> str | None:
    """Raises: StoreUnavailable if the database does not answer."""
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
    except (SQLAlchemyError, OSError) as error:
        raise StoreUnavailable(f"it did not answer ({cause(error)})") from None
    return "+".join(found) or None


def open_store(url: str, *, patient: bool = False, as_is: bool = False) -> Store:
    """The side store at `url`, prepared before. Call it in the process that uses it: connections do not survive a fork.

    `patient`: for who may wait long for an answer that takes long. `as_is`: for who only looks; the mode of a SQLite
    file is left as it is. Neither makes nor looks for the database: until
    there is one, the store raises StoreUnavailable.
    Raises: SettingsError for a URL that is not supported.
    """
    if is_redis(url):
        address = redis_address(url)
        need_driver()
        # redis-py is an extra, as the drivers are.
        from authsvc.store.redis import RedisStore

        return RedisStore(address)
    parsed = _parsed(url)
    if is_server(parsed):
        return SqlStore(server_engine(parsed, patient=patient))
    file = SqliteFile(_path(parsed), as_is=as_is)
    return SqlStore(sqlite_engine(file), confirm=file.check)


def _parsed(url: str) -> URL:
    # `from None`, and no URL in the message: it may have a password in it.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError([_FORMS]) from None
    # Several hosts, of which one takes writes, are options of PostgreSQL's driver.
    if is_server(parsed) and not ((parsed.host or "host" in parsed.query) and parsed.database):
        raise SettingsError([_FORMS])
    if is_server(parsed):
        check_options(parsed)
    return parsed


def _path(parsed: URL) -> Path:
    path = parsed.database or ":memory:"
    beyond_path = parsed.query or parsed.username or parsed.password or parsed.host or parsed.port
    if parsed.drivername != "sqlite" or beyond_path or path.startswith((":", "file:")) or not path.isprintable():
        raise SettingsError([_FORMS])
    return Path(path).absolute()
