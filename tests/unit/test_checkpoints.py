"""When SQLite's log is copied, and what is said to SQLite for it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from typing import Any, Final, cast

import pytest

from authsvc.store.checkpoints import Checkpoints

USES: Final = 200


class FakeConnection:
    """Writes down what is said to it; its log is `pages` long."""

    def __init__(self, said: list[str], pages: int) -> None:
        self._said = said
        self._pages = pages

    def execute(self, statement: str) -> Any:
        self._said.append(statement)
        return FakeConnection(self._said, self._pages)  # as a cursor

    def fetchone(self) -> tuple[int, int, int]:
        return 0, self._pages, self._pages

    def close(self) -> None:
        pass


def fake(said: list[str], pages: int) -> sqlite3.Connection:
    return cast(sqlite3.Connection, FakeConnection(said, pages))


def use(of: Checkpoints, times: int = USES) -> None:
    for _ in range(times):
        of.note_use()


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Keeps those who copy waiting until it is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    ("pages", "modes"), [(1, ["PASSIVE"]), (40_000, ["PASSIVE"]), (40_001, ["PASSIVE", "RESTART"])]
)
def test_the_log_is_copied_beside_those_who_write_and_begun_anew_only_when_it_is_long(
    pages: int, modes: list[str]
) -> None:
    said: list[str] = []
    found = Checkpoints(lambda: fake(said, pages))
    use(found)
    found.end()
    # The wait first: who begins the log anew keeps the writers waiting for as long as somebody reads.
    assert said == ["PRAGMA busy_timeout=5", *(f"PRAGMA wal_checkpoint({mode})" for mode in modes)]


def test_it_is_copied_once_in_two_hundred_uses() -> None:
    copies: list[str] = []
    found = Checkpoints(lambda: fake(copies, 1))
    use(found, USES - 1)
    found.end()
    assert not copies
    for copied in (1, 2, 3):
        use(found, 1 if copied == 1 else USES)
        found.end()
        assert copies.count("PRAGMA wal_checkpoint(PASSIVE)") == copied


def test_two_never_copy_at_once_and_uses_meanwhile_are_not_forgotten(held: threading.Event) -> None:
    begun: list[str] = []

    def connect() -> sqlite3.Connection:
        begun.append(threading.current_thread().name)
        held.wait(30)
        return fake([], 1)

    found = Checkpoints(connect)
    use(found, 3 * USES)
    assert begun == ["authsvc-checkpoint"]
    held.set()
    found.end()
    use(found, 1)
    found.end()
    assert len(begun) == 2


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_copy_that_fails_is_made_up_for_by_the_next() -> None:
    said: list[str] = []
    errors = [sqlite3.OperationalError("disk I/O error")]

    def connect() -> sqlite3.Connection:
        if errors:
            raise errors.pop()
        return fake(said, 1)

    found = Checkpoints(connect)
    for _ in range(2):
        use(found)
        found.end()
    assert "PRAGMA wal_checkpoint(PASSIVE)" in said


def test_without_a_thread_to_be_had_logins_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    said: list[str] = []
    found = Checkpoints(lambda: fake(said, 1))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        use(found)
    found.end()
    assert not said
    use(found)
    found.end()
    assert said


def test_the_end_waits_for_who_copies(held: threading.Event) -> None:
    closed: list[bool] = []

    class Slow(FakeConnection):
        def close(self) -> None:
            closed.append(True)

    def connect() -> sqlite3.Connection:
        held.wait(30)
        return cast(sqlite3.Connection, Slow([], 1))

    found = Checkpoints(connect)
    use(found)
    threading.Timer(0.05, held.set).start()
    found.end()
    assert closed == [True]
