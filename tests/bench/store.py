"""What the side store costs, on SQLite beside a bare `sqlite3`, and on every engine that is there.

`python -m tests.bench.store`; with `--full` also with 10^6 logins in each store. Whoever is compared takes turns, a few
calls each, so that all meet the same weather. Absolute figures move by a third from hour to hour: believe the ratios.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from authsvc.encoding import base64url_encode
from authsvc.keyring import Keyring
from authsvc.sessionkeys import kept_session_key, sealed_login
from authsvc.store import (
    KEPT_LOGINS,
    STATE_ACTIVE,
    LoginRow,
    Row,
    Store,
    UserId,
    UserRow,
    open_store,
    prepare_store,
)
from authsvc.store.memory import MemoryStore
from authsvc.store.server import server_engine
from tests.support.databases import MARIADB, POSTGRESQL, REDIS, database, redis_place
from tests.support.keys import keyring
from tests.support.users import NOW, TTL_S, user_id

SEED: Final = 20_260_101
SMALL: Final = 1_000  # logins in a store
LARGE: Final = 100_000
LARGEST: Final = 1_000_000
PAGE: Final = 500  # rows taken over at once

PUTS: Final = 6_000  # of each contender, first logins and returning users each
PUTS_IN_TURN: Final = 20  # then it is another one's turn

PROCESSES: Final = 2
OFFERED_PER_S: Final = 500  # to each process
TURN_S: Final = 5.0
TURNS: Final = 3

THREADS: Final = (1, 16)
ROUNDS: Final = 5
ROUND_S: Final = 0.3
VISITORS: Final = 5_000  # users that a round chooses from

BARE: Final = "bare sqlite3, upsert of the login"
BY_HAND: Final = "bare sqlite3, the statements of a put"
OURS: Final = "authsvc, sealed"
IN_CLEAR: Final = "authsvc, session_key in clear"
BEFOREHAND: Final = "authsvc, sealed beforehand"
NOTHING: Final = "nothing (the machine)"
FIRST: Final = "first login"
RETURNING: Final = "returning user"
CASES: Final = (FIRST, RETURNING)
FILES: Final = (BARE, BY_HAND, OURS, BEFOREHAND, IN_CLEAR)

APPID: Final = "wx1234567890abcdef"
SESSION_KEY: Final = "tiihtNczf5v6AKRyjwEUhQ=="

Prepared = Callable[[], object]
Prepare = Callable[[UserId, int], Prepared]
"""Makes ready the put of a login of this user, the one with this number; what it returns is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store")
    parser.add_argument("--full", action="store_true", help="also with 10^6 logins in each store")
    sizes = (SMALL, LARGE, LARGEST) if parser.parse_args().full else (SMALL, LARGE)
    console = Console(width=None if os.isatty(1) else 140)
    ring = keyring(made_at=NOW)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        files = _copies(Path(folder), ring)
        took = _puts(files, ring)
        console.print(_puts_table(took))
        offered = _offered(files)
        console.print(_offered_table(offered))
    for line in (*_put_aims(took), *_offered_aims(offered)):
        console.print(line, highlight=False)
    with ExitStack() as stack:
        found = {name: _opened(stack, backend, sizes, ring) for name, backend in BACKENDS.items()}
        _visit_all([place for places in found.values() for place in places], ring)
        console.print(_rates_table(found))
        console.print(_sizes_table(found))
    load = f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores"
    console.print(f"load average: {load}", highlight=False)


# ---- users and their logins ---------------------------------------------------------------------


def _user(number: int) -> UserId:
    """As long as WeChat's, and in no order: a new one comes anywhere in the tree of an index."""
    openid = base64url_encode(hashlib.sha256(b"%d" % number).digest())[:27]
    return user_id(APPID, f"o{openid}")


def _row(ring: Keyring, user: UserId, number: int) -> LoginRow:
    """A login, one each millisecond; those with negative numbers are in the stores from the beginning."""
    created_at = NOW + number // 1_000
    return sealed_login(
        SESSION_KEY,
        ring,
        user=user,
        sid=f"{number:022}",
        started_at_us=NOW * 1_000_000 + number * 1_000,
        created_at=created_at,
        expires_at=created_at + TTL_S,
        now=NOW,
        random_bytes=os.urandom,
    )


def _row_in_clear(user: UserId, number: int) -> LoginRow:
    at = NOW + number // 1_000
    return LoginRow(
        user, f"{number:022}", SESSION_KEY.encode("ascii"), NOW * 1_000_000 + number * 1_000, at, at + TTL_S
    )


def _users(logins: int) -> int:
    return logins // KEPT_LOGINS


def _user_rows(logins: int) -> Iterator[Row]:
    return (UserRow(_user(number), STATE_ACTIVE, 0, None, NOW, NOW) for number in range(_users(logins)))


def _login_rows(logins: int, ring: Keyring) -> Iterator[Row]:
    for number in range(_users(logins)):
        user = _user(number)
        for login in range(number * KEPT_LOGINS, (number + 1) * KEPT_LOGINS):
            # Of the last day and a half, in no order.
            yield _row(ring, user, -1 - login * 2_654_435_761 % (TTL_S * 500))


def _merge(store: Store, rows: Iterator[Row]) -> None:
    while page := list(itertools.islice(rows, PAGE)):
        store.merge(page)


# ---- a put on SQLite, beside a bare sqlite3 -----------------------------------------------------


def _copies(folder: Path, ring: Keyring) -> dict[str, Path]:
    """The same database for each contender."""
    first = folder / "store.db"
    url = f"sqlite:///{first}"
    prepare_store(url)
    with closing(open_store(url)) as store:
        _merge(store, _user_rows(LARGE))
        _merge(store, _login_rows(LARGE, ring))
    return {name: Path(shutil.copy(first, folder / f"{number}.db")) for number, name in enumerate(FILES)}


@contextmanager
def _contender(name: str, files: dict[str, Path], ring: Keyring) -> Iterator[Prepare]:
    if name == NOTHING:
        yield lambda user, number: int
    elif name in (OURS, BEFOREHAND, IN_CLEAR):
        with closing(open_store(f"sqlite:///{files[name]}")) as store:
            row = _row_in_clear if name == IN_CLEAR else partial(_row, ring)
            if name == BEFOREHAND:
                yield lambda user, number: partial(store.put_login, row(user, number), unionid=None)
            else:
                yield lambda user, number: lambda: store.put_login(row(user, number), unionid=None)
    else:
        connection = sqlite3.connect(files[name], isolation_level=None, timeout=2)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        put = _upsert if name == BARE else _put_by_hand
        yield lambda user, number: partial(put, connection, _row(ring, user, number))
        connection.close()


def _upsert(connection: sqlite3.Connection, row: LoginRow) -> None:
    connection.execute(
        "INSERT INTO logins (appid, openid, sid, sealed_session_key, started_at_us, created_at, expires_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (appid, openid, sid) DO UPDATE SET "
        "sealed_session_key = excluded.sealed_session_key, started_at_us = excluded.started_at_us, "
        "created_at = excluded.created_at, expires_at = excluded.expires_at",
        _values(row),
    )


def _put_by_hand(connection: sqlite3.Connection, row: LoginRow) -> None:
    """What SqlStore.put_login says to the database, and nothing around it."""
    user, now = (row.user.appid, row.user.openid), row.created_at
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    visited = execute(
        "UPDATE users SET unionid = coalesce(?, unionid), last_login_at = CASE WHEN last_login_at < ? THEN ? "
        "ELSE last_login_at END WHERE appid = ? AND openid = ? AND state != 0",
        (None, now, now, *user),
    )
    if visited.rowcount == 0:
        execute("SELECT state FROM users WHERE appid = ? AND openid = ?", user).fetchone()
        execute("SELECT since FROM bans WHERE digest = ?", (row.user.digest,)).fetchone()
        execute(
            "INSERT INTO users (appid, openid, state, unionid, first_login_at, last_login_at, state_since) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*user, STATE_ACTIVE, None, now, now, 0),
        )
    execute(
        "INSERT INTO logins (appid, openid, sid, sealed_session_key, started_at_us, created_at, expires_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        _values(row),
    )
    execute(
        "DELETE FROM logins WHERE appid = ? AND openid = ? AND sid NOT IN (SELECT sid FROM logins WHERE appid = ? "
        f"AND openid = ? AND expires_at > ? ORDER BY started_at_us DESC, sid DESC LIMIT {KEPT_LOGINS})",
        (*user, *user, now),
    )
    execute("COMMIT")


def _values(row: LoginRow) -> tuple[object, ...]:
    user = row.user
    times = (row.started_at_us, row.created_at, row.expires_at)
    return (user.appid, user.openid, row.sid, row.sealed_session_key, *times)


def _puts(files: dict[str, Path], ring: Keyring) -> dict[str, dict[str, list[float]]]:
    """Microseconds of each put, by contender and case."""
    choose = random.Random(SEED)
    took: dict[str, dict[str, list[float]]] = {name: {case: [] for case in CASES} for name in FILES}
    new = itertools.count(_users(LARGE))
    numbers = itertools.count()
    with ExitStack() as stack:
        contenders = [(name, stack.enter_context(_contender(name, files, ring))) for name in took]
        for _ in range(PUTS // PUTS_IN_TURN):
            users = {
                FIRST: [_user(next(new)) for _ in range(PUTS_IN_TURN)],
                RETURNING: [_user(choose.randrange(_users(LARGE))) for _ in range(PUTS_IN_TURN)],
            }
            number = [next(numbers) for _ in range(PUTS_IN_TURN)]
            choose.shuffle(contenders)
            for (name, prepare), case in itertools.product(contenders, CASES):
                puts = [prepare(*given) for given in zip(users[case], number, strict=True)]
                took[name][case].extend(map(_timed, puts))
    return took


def _timed(put: Prepared) -> float:
    began = time.perf_counter()
    put()
    return (time.perf_counter() - began) * 1e6


def _puts_table(took: dict[str, dict[str, list[float]]]) -> Table:
    table = Table("", title=f"a put on SQLite among {LARGE:,} logins, median of {PUTS:,}")
    for case in CASES:
        table.add_column(f"{case}, µs")
        table.add_column("of bare")
    for name, found in took.items():
        cells = [
            (f"{statistics.median(found[case]):.1f}", f"{_ratio(took[BARE][case], found[case]):.2f}") for case in CASES
        ]
        table.add_row(name, *itertools.chain.from_iterable(cells))
    return table


def _put_aims(took: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    for case in CASES:
        put = {name: statistics.median(found[case]) for name, found in took.items()}
        yield (
            f"{case}: {put[OURS] / put[BARE]:.2f} × the bare upsert (aim: at most 2), {put[OURS] / put[BY_HAND]:.2f} × "
            f"the bare statements, {put[OURS] / put[IN_CLEAR]:.2f} × the same without encryption"
        )
        # By what is missing without it: alone, in a loop, sealing takes a third of that, with everything at hand.
        sealing, rest = put[OURS] - put[BEFOREHAND], put[BEFOREHAND] - put[BY_HAND]
        yield f"{case}: sealing {sealing:.0f} µs, SQL {put[BY_HAND]:.0f} µs, the rest of authsvc {rest:.0f} µs"


def _ratio(of: Sequence[float], to: Sequence[float]) -> float:
    return statistics.median(to) / statistics.median(of)


# ---- 1,000 puts a second, from two processes ----------------------------------------------------


def _offered(files: dict[str, Path]) -> dict[str, list[float]]:
    """Milliseconds from when each put was due until it was done."""
    took: dict[str, list[float]] = {name: [] for name in (OURS, BARE, NOTHING)}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
        list(pool.map(time.sleep, [1] * PROCESSES))  # both have started
        for turn in range(TURNS):
            for name, found in took.items():
                starts_at = time.monotonic() + 1
                parts = [pool.submit(_offer, name, files, turn, number, starts_at) for number in range(PROCESSES)]
                for part in parts:
                    found += part.result()
    return took


def _offer(name: str, files: dict[str, Path], turn: int, process: int, starts_at: float) -> list[float]:
    """Half of the puts are first logins. They come as calls do, at random, and do not wait for one another's end."""
    choose = random.Random(f"{SEED} {turn} {process}")
    puts = int(TURN_S * OFFERED_PER_S)
    numbers = range(LARGEST + turn * LARGE + process, LARGEST + (turn + 1) * LARGE, PROCESSES)[: puts + 1]
    took = []
    with _contender(name, files, keyring(made_at=NOW)) as prepare:
        users = [number if choose.random() < 0.5 else choose.randrange(_users(LARGE)) for number in numbers]
        connect, *prepared = (prepare(_user(user), number) for user, number in zip(users, numbers, strict=True))
        connect()
        due_at = max(starts_at, time.monotonic())
        for put in prepared:
            due_at += choose.expovariate(OFFERED_PER_S)
            time.sleep(max(0.0, due_at - time.monotonic()))
            put()
            took.append((time.monotonic() - due_at) * 1e3)
    return took


def _offered_table(took: dict[str, list[float]]) -> Table:
    table = Table(
        *("", "p50 ms", "p99 ms", "max ms"),
        title=f"{PROCESSES * OFFERED_PER_S:,} puts/s offered by {PROCESSES} processes, SQLite",
        caption="from when a put was due until it was done",
    )
    for name, found in took.items():
        table.add_row(name, f"{statistics.median(found):.2f}", f"{_p99(found):.2f}", f"{max(found):.1f}")
    return table


def _offered_aims(took: dict[str, list[float]]) -> Iterator[str]:
    yield f"offered: p99 {_p99(took[OURS]):.2f} ms (aim: at most 5), {_p99(took[OURS]) / _p99(took[BARE]):.2f} × bare"


def _p99(found: list[float]) -> float:
    return statistics.quantiles(found, n=100)[98]


# ---- every engine that is there -----------------------------------------------------------------


@contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/store.db"


BACKENDS: Final[dict[str, Callable[[], AbstractContextManager[str | None]]]] = {
    "memory": nullcontext,
    "SQLite": _sqlite,
    "PostgreSQL": partial(database, POSTGRESQL),
    "MariaDB": partial(database, MARIADB),
    "Redis": partial(redis_place, REDIS),
}
"""URLs for stores that are empty; None is that of the store in memory."""


@dataclass(frozen=True)
class Visits:
    """Of one kind, by so many threads."""

    per_s: list[float] = field(default_factory=list)  # of each round
    took: list[float] = field(default_factory=list)  # of each call, microseconds


@dataclass(frozen=True)
class FilledStore:
    store: Store
    logins: int
    bytes_a_user: float
    bytes_a_login: float
    numbers: Iterator[int] = field(default_factory=itertools.count)
    puts: dict[int, Visits] = field(default_factory=lambda: {threads: Visits() for threads in THREADS})
    gets: dict[int, Visits] = field(default_factory=lambda: {threads: Visits() for threads in THREADS})

    def put(self, ring: Keyring, user: UserId) -> None:
        self.store.put_login(_row(ring, user, next(self.numbers)), unionid=None)

    def get(self, ring: Keyring, user: UserId) -> None:
        for row in self.store.logins(user, now=NOW):
            kept_session_key(row, ring, now=NOW)


def _opened(
    stack: ExitStack, backend: Callable[[], AbstractContextManager[str | None]], sizes: Sequence[int], ring: Keyring
) -> list[FilledStore]:
    """A store for each size; none if there is no such engine here."""
    try:
        urls = [stack.enter_context(backend()) for _ in sizes]
    except (pytest.skip.Exception, pytest.fail.Exception):
        return []
    return [_filled(stack, url, logins, ring) for url, logins in zip(urls, sizes, strict=True)]


def _filled(stack: ExitStack, url: str | None, logins: int, ring: Keyring) -> FilledStore:
    if url is None:
        tracemalloc.start()
        store: Store = MemoryStore()
        sizes = _fill(store, url, logins, ring)
        tracemalloc.stop()
    else:
        prepare_store(url)
        with closing(open_store(url, patient=True)) as patient:
            sizes = _fill(patient, url, logins, ring)
        store = stack.enter_context(closing(open_store(url)))
    gc.freeze()  # or each collection from now on would walk through the store in memory
    empty, with_users, full = sizes
    return FilledStore(store, logins, (with_users - empty) / _users(logins), (full - with_users) / logins)


def _fill(store: Store, url: str | None, logins: int, ring: Keyring) -> list[int]:
    """Its sizes before, with all users, and with their logins, in bytes."""
    sizes = [_size_bytes(store)]
    for rows in (_user_rows(logins), _login_rows(logins, ring)):
        _merge(store, rows)
        _settle(url)
        sizes.append(_size_bytes(store))
    return sizes


def _settle(url: str | None) -> None:
    """Have an engine do what it does by itself sooner or later: look at its tables, by which it plans and from which
    MariaDB has their sizes, and copy what its log has."""
    settle = {
        "sqlite": ["PRAGMA wal_checkpoint(TRUNCATE)"],
        "postgresql": ["ANALYZE", "CHECKPOINT"],
        "mysql": ["ANALYZE TABLE users, logins"],
    }
    parsed = make_url(url or "redis://")
    for statement in settle.get(parsed.get_backend_name(), []):
        engine = create_engine(parsed) if parsed.drivername == "sqlite" else server_engine(parsed, patient=True)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
            connection.commit()
        engine.dispose()


def _size_bytes(store: Store) -> int:
    size = store.census(now=NOW, start_bytes=5).size_bytes
    return tracemalloc.get_traced_memory()[0] if size is None else size


def _visit_all(places: Sequence[FilledStore], ring: Keyring) -> None:
    choose = random.Random(SEED)
    for _ in range(ROUNDS):
        for place, threads in itertools.product(places, THREADS):
            if threads > 1 and place.logins == SMALL:
                continue  # it is there for the latency of one call alone
            users = [_user(choose.randrange(_users(place.logins))) for _ in range(VISITORS)]
            _visit(partial(place.put, ring), users, threads, place.puts[threads])
            _visit(partial(place.get, ring), users, threads, place.gets[threads])


def _visit(act: Callable[[UserId], None], users: Sequence[UserId], threads: int, visits: Visits) -> None:
    todo = itertools.cycle(users)
    ends_at = time.perf_counter() + ROUND_S

    def work() -> list[float]:
        took = []
        while (began := time.perf_counter()) < ends_at:
            act(next(todo))
            took.append((time.perf_counter() - began) * 1e6)
        return took

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        parts = [part.result() for part in [pool.submit(work) for _ in range(threads)]]
        elapsed_s = time.perf_counter() - began
    visits.per_s.append(sum(map(len, parts)) / elapsed_s)
    visits.took.extend(itertools.chain.from_iterable(parts))


def _rates_table(found: dict[str, list[FilledStore]]) -> Table:
    columns = [f"{what}/s, {threads} thread{'s' * (threads > 1)}" for what in ("put", "get") for threads in THREADS]
    table = Table("", "logins", *columns, title=f"sealing and opening included, median of {ROUNDS} rounds")
    for name, places in found.items():
        for place in places:
            visits = [kind[threads].per_s for kind in (place.puts, place.gets) for threads in THREADS]
            if all(visits):
                table.add_row(name, f"{place.logins:,}", *(f"{statistics.median(per_s):,.0f}" for per_s in visits))
        if not places:
            table.add_row(name, "MISSING")
    return table


def _sizes_table(found: dict[str, list[FilledStore]]) -> Table:
    table = Table(
        *("", "logins", "put, µs", f"of {SMALL:,}", "get, µs", f"of {SMALL:,}", "bytes a login", "bytes a user"),
        title=f"one thread, median of each call; a user has {KEPT_LOGINS} logins",
    )
    for name, places in found.items():
        for place in places:
            cells = []
            for of, to in ((places[0].puts[1], place.puts[1]), (places[0].gets[1], place.gets[1])):
                cells += [f"{statistics.median(to.took):,.0f}", f"{_ratio(of.took, to.took):.2f}"]
            is_small = place.logins == SMALL  # and most of its pages are empty
            sizes = ("", "") if is_small else (f"{place.bytes_a_login:.0f}", f"{place.bytes_a_user:.0f}")
            table.add_row(name, f"{place.logins:,}", *cells, *sizes)
        if not places:
            table.add_row(name, "MISSING")
    return table


if __name__ == "__main__":
    main()
