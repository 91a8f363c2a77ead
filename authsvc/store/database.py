"""A SQL database as the side store uses it: connections, transactions, and one error for all that may go wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from typing import Any, Final, TypeVar

from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement

from authsvc.errors import StoreUnavailable

_Done = TypeVar("_Done")

# Long enough for the other one to be done, and short enough to go unnoticed.
_PAUSES_S: Final = (0.002, 0.01, 0.05, 0.2)
_MET_BY_SQLSTATE: Final = ("40001", "40P01")  # PostgreSQL: serialization_failure, deadlock_detected
_MET_BY_NUMBER: Final = (1213,)  # MySQL: ER_LOCK_DEADLOCK


class Database:
    """The database behind `engine`, whose schema is there already. Thread-safe.

    Two ways lead in: `connection` for what a login waits for, `transact` for all else. `confirm` gets the
    connection after each commit and raises if the database is no longer where others look for it.
    """

    def __init__(self, engine: Engine, *, confirm: Callable[[DBAPIConnection], None] | None) -> None:
        self.dialect = engine.dialect
        self._dbapi = engine.dialect.loaded_dbapi
        self._engine = engine
        self._confirm = confirm
        # A text that the database's own character set does not have is one of them.
        self._engine_errors = (SQLAlchemyError, self._dbapi.Error, OSError, UnicodeError)
        # The write lock first: a transaction that began by reading cannot wait for it, and fails if another one writes.
        self._begin = "BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else None

    @contextmanager
    def connection(self) -> Iterator[PoolProxiedConnection]:
        """A kept connection of the driver, and every error of the engine as StoreUnavailable.

        A connection that has failed is not used again: what is wrong with it is not worth finding out.
        """
        try:
            connection = self._engine.raw_connection()
            try:
                yield connection
            except self._engine_errors:
                connection.invalidate()
                raise
            except BaseException:
                connection.rollback()
                raise
            finally:
                connection.close()
        except self._engine_errors as error:
            raise _unavailable(error) from None

    @contextmanager
    def written(self, connection: PoolProxiedConnection) -> Iterator[DBAPICursor]:
        """A transaction, committed at the end; `connection` rolls back what is left open."""
        cursor = connection.cursor()
        try:
            if self._begin is not None:
                cursor.execute(self._begin)
            yield cursor
        finally:
            cursor.close()
        connection.commit()
        self._confirmed(connection.dbapi_connection)

    def transact(self, act: Callable[[Connection], _Done], *, durable: bool = False) -> _Done:
        """Do it in a transaction of its own; see `retried`. `durable`: what is committed is on the disk, whatever the
        database does with the rest."""
        with self._said():
            return self.retried(lambda: self._transaction(act, durable=durable), undo=lambda: None)

    def look(self, act: Callable[[Connection], _Done]) -> _Done:
        """Read, and keep nobody who writes waiting."""
        with self._said(), self._engine.connect() as connection:
            return act(connection)

    def retried(self, act: Callable[[], _Done], *, undo: Callable[[], None]) -> _Done:
        """Do it, and again from the beginning if it met somebody who wrote the same: a row that is there by now, or a
        deadlock, which the database ends by refusing one of the two."""
        for pause_s in _PAUSES_S:
            try:
                return act()
            except self._engine_errors as error:
                if not self._has_met_another(error):
                    raise
                undo()
                time.sleep(pause_s)
        return act()

    def close(self) -> None:
        self._engine.dispose()

    def _transaction(self, act: Callable[[Connection], _Done], *, durable: bool) -> _Done:
        with self._engine.connect() as connection, self._synced(connection) if durable else nullcontext():
            try:
                if self._begin is not None:
                    connection.exec_driver_sql(self._begin)
                done = act(connection)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            self._confirmed(connection.connection.dbapi_connection)
            return done

    @contextmanager
    def _synced(self, connection: Connection) -> Iterator[None]:
        match self.dialect.name:
            case "sqlite":
                connection.exec_driver_sql("PRAGMA synchronous=FULL")
                try:
                    yield
                finally:
                    connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
            case "postgresql":
                connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
                yield
            case _:
                yield  # MySQL has it for the whole server: innodb_flush_log_at_trx_commit, 1 unless somebody changed it

    def _has_met_another(self, error: BaseException) -> bool:
        original = getattr(error, "orig", None) or error
        number = original.args[0] if original.args else None
        return (
            isinstance(original, self._dbapi.IntegrityError)
            or getattr(original, "sqlstate", None) in _MET_BY_SQLSTATE
            or number in _MET_BY_NUMBER
        )

    def _confirmed(self, connection: DBAPIConnection | None) -> None:
        if self._confirm is not None and connection is not None:
            self._confirm(connection)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except self._engine_errors as error:
            raise _unavailable(error) from None


def _unavailable(error: Exception) -> StoreUnavailable:
    """To be raised `from None`: the original may carry the row, and the URL with its password."""
    return StoreUnavailable(f"the side store did not answer ({cause(error)})")


class Statement:
    """A statement in the words of one driver.

    `Connection.execute` of SQLAlchemy alone costs two to three times what SQLite takes for the row, and it is paid
    while the other writers wait.
    """

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        self._sql = str(compiled)
        self._names = tuple(compiled.params)
        self._in_order = _picker(compiled.positiontup) if compiled.positional else None

    def run(self, cursor: DBAPICursor, values: Mapping[str, object]) -> None:
        """Execute it with those of `values` that it names."""
        if self._in_order is None:
            cursor.execute(self._sql, {name: values[name] for name in self._names})
        else:
            cursor.execute(self._sql, self._in_order(values))


def _picker(names: Sequence[str] | None) -> Callable[[Mapping[str, object]], Any]:
    # itemgetter of one name gives no tuple, and there is none of no name.
    many = tuple(names or ())
    return itemgetter(*many) if len(many) > 1 else lambda values: [values[name] for name in many]


@contextmanager
def cursor_of(connection: PoolProxiedConnection) -> Iterator[DBAPICursor]:
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
