"""The side store's SQLite file: made for its owner alone, and watched, because a file can be taken away."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

from authsvc.errors import StoreUnavailable
from authsvc.store.checkpoints import PAGES_OF_OWN_ACCORD, Checkpoints

# How long a caller waits: for the process's one connection, and then for another process's lock. A login has
# WECHAT_TIMEOUT behind it already, so both together are 3 s.
_CONNECTION_WAIT_S: Final = 1.0
_LOCK_WAIT_S: Final = 2.0

_HEADER: Final = b"SQLite format 3\0"

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class _Connection(sqlite3.Connection):
    """A connection that knows which file it has open."""

    file_id: tuple[int, int]


class SqliteFile:
    """A database file in one place. Another file in that place is another database."""

    def __init__(self, path: Path, *, as_is: bool = False) -> None:
        """`as_is`: leave its mode and its form alone, as who only looks does."""
        self._path = path
        self._as_is = as_is
        self._looked_at = os.fspath(path)  # twice in each login, and a Path takes as long to say its name as to look
        # mode=rw: SQLite would make an empty database in the place of a deleted one.
        self._uri = f"file:{quote(os.fspath(path))}?mode=rw"

    def create(self) -> None:
        """Make an empty file that only its owner can read, if there is none.

        Raises: StoreUnavailable if that cannot be done.
        """
        try:
            # SQLite would make it 0644, and gives its -wal and -shm the mode it finds.
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            self.check_header()
            return
        except OSError as error:
            raise StoreUnavailable(f"cannot make {self._path}: {error.strerror}") from None
        os.fchmod(file, 0o600)  # whatever the umask
        os.close(file)

    def check_header(self) -> None:
        """Raises: StoreUnavailable if this is no SQLite database. Not in a process that has a connection to it."""
        if not self._path.is_file():
            raise StoreUnavailable(f"{self._path} is not a file; give AUTHSVC_STORE another path")
        # SQLite would find out too, and take away the -wal and -shm of a damaged database, which may still be rescued.
        # Reading it here is safe: this process has no connection yet whose locks closing the file could drop.
        try:
            with self._path.open("rb") as file:
                start = file.read(len(_HEADER))
        except OSError as error:
            raise StoreUnavailable(f"it cannot be read: {error.strerror}") from None
        if start not in (b"", _HEADER):
            raise StoreUnavailable(
                "it is no SQLite database, or a damaged one; mend: copy it and its -wal before anything else"
            )

    def connect(self) -> _Connection:
        """Open the file. It is never opened by other means: closing it would drop SQLite's locks (POSIX).

        Raises: StoreUnavailable if it is not ours alone; OSError or sqlite3.Error if it does not open.
        """
        found = os.stat(self._path)
        if not stat.S_ISREG(found.st_mode):
            raise StoreUnavailable(f"{self._path} is not a file; give AUTHSVC_STORE another path")
        if found.st_mode & _OTHERS and found.st_uid != os.geteuid():
            raise StoreUnavailable(f"others may read {self._path}; let its owner (uid {found.st_uid}) chmod it to 0600")
        connection = sqlite3.connect(
            self._uri,
            uri=True,
            timeout=_LOCK_WAIT_S,
            isolation_level=None,  # transactions are begun by who writes, not by the driver's guess
            check_same_thread=False,  # the pool gives it to one thread at a time
            factory=_Connection,
        )
        try:
            if not self._as_is:
                _use_wal(connection)
            # NORMAL: a power cut can lose the last logins, never the file; a user then logs in again.
            connection.execute("PRAGMA synchronous=NORMAL").close()
            connection.execute(f"PRAGMA wal_autocheckpoint={PAGES_OF_OWN_ACCORD}").close()
            connection.file_id = found.st_dev, found.st_ino
            self._expect(connection.file_id)
            if not self._as_is:
                self._tighten()  # only now that SQLite has found it to be a database
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self, connection: DBAPIConnection) -> None:
        """Raises: DisconnectionError if the connection's file is not the one in the place any more."""
        self._expect(connection.file_id)

    def _expect(self, file_id: tuple[int, int]) -> None:
        try:
            found = os.stat(self._looked_at)
        except OSError:
            raise DisconnectionError("the database file is gone") from None
        if (found.st_dev, found.st_ino) != file_id:
            raise DisconnectionError("the database file is another one")

    def _tighten(self) -> None:
        place = os.path.realpath(self._path)  # SQLite puts -wal and -shm beside the file, not beside a link to it
        for path in (place, f"{place}-wal", f"{place}-shm"):
            try:
                mode = os.stat(path).st_mode
            except FileNotFoundError:
                continue
            if mode & _OTHERS:
                os.chmod(path, stat.S_IMODE(mode) & ~_OTHERS)


def _use_wal(connection: sqlite3.Connection) -> None:
    give_up_at = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            # The one place where SQLite does not wait: when two connections change a new file over at once.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.005)
        else:
            return


def sqlite_engine(file: SqliteFile) -> Engine:
    """An engine with one connection for all threads: SQLite lets one write at a time anyway."""
    engine = create_engine(
        "sqlite://",
        creator=file.connect,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=_CONNECTION_WAIT_S,
        pool_reset_on_return=None,  # every transaction is ended by who began it
        hide_parameters=True,
    )

    checkpoints = Checkpoints(file.connect)

    def check(connection: DBAPIConnection, _record: Any, _proxy: Any) -> None:
        file.check(connection)

    def note_use(_connection: DBAPIConnection | None, _record: Any) -> None:
        checkpoints.note_use()

    def end(_engine: Engine) -> None:
        checkpoints.end()

    event.listen(engine, "checkout", check)
    event.listen(engine, "checkin", note_use)
    event.listen(engine, "engine_disposed", end)
    return engine
