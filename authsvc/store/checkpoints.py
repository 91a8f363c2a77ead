"""SQLite's write-ahead log, copied into the database beside the logins and not within one of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from threading import Thread
from typing import Final

from sqlalchemy.exc import DisconnectionError

from authsvc.errors import StoreUnavailable

PAGES_OF_OWN_ACCORD: Final = 50_000
"""From this length of the log on, of 4 KiB each, SQLite copies it within a commit: if nobody else could."""

_USES: Final = 200  # of the connection, from one copying to the next: some 800 pages, 50 ms
_LONG_PAGES: Final = 40_000
_WAIT_MS: Final = 5
_END_WAIT_S: Final = 2.0


class Checkpoints:
    """Counts the uses of a connection, and has a thread copy the log after so many of them.

    By itself SQLite does that within the commit that makes the log longer than 1,000 pages. With two processes that
    write, the log is hardly ever copied to its end at a moment when nobody writes, so it is not begun anew, and from
    then on nearly every commit copies.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._uses = 0
        self._thread: Thread | None = None

    def note_use(self) -> None:
        """To be called by one thread at a time, as who has the one connection."""
        self._uses += 1
        if self._uses < _USES or (self._thread is not None and self._thread.is_alive()):
            return
        self._uses = 0
        self._thread = Thread(target=self._copy, name="authsvc-checkpoint", daemon=True)
        with suppress(RuntimeError):  # no thread is to be had: SQLite copies by itself in the end
            self._thread.start()

    def end(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(_END_WAIT_S)

    def _copy(self) -> None:
        # What fails here fails in the logins too, which say so; and the log waits.
        with suppress(sqlite3.Error, OSError, DisconnectionError, StoreUnavailable), closing(self._connect()) as own:
            # Who begins the log anew keeps those who write waiting, and waits for those who read: not for long.
            own.execute(f"PRAGMA busy_timeout={_WAIT_MS}").close()
            _busy, pages, _copied = own.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > _LONG_PAGES:
                own.execute("PRAGMA wal_checkpoint(RESTART)").close()
