"""The SQLite store on a real disk: modes, files that vanish or break, locks, processes, migrations."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from authsvc.errors import SettingsError, StoreUnavailable, UserBanned
from authsvc.store import migrate
from authsvc.store.checkpoints import Checkpoints
from authsvc.store.migrate import upgrade
from authsvc.store.open import check_store, open_store, prepare_store, store_address
from authsvc.store.protocol import Store
from authsvc.store.rows import LoginRow, UserRow
from authsvc.store.schema import METADATA, REVISION
from authsvc.store.sql import SqlStore
from authsvc.store.sqlite import SqliteFile, sqlite_engine
from tests.support.servers import until
from tests.support.users import USER, audit_line, ban, forget, unban, user_id

ROOT: Final = Path(__file__).parents[2]
NOW: Final = 1_800_000_000
MARKER: Final = b"marker-of-what-is-sealed"
STRANGER_UID: Final = 12345


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    prepare_store(url)
    store = open_store(url)
    assert isinstance(store, SqlStore)
    yield store
    store.close()


def login(sid: str, *, openid: str = "oUser", at: int = NOW) -> LoginRow:
    return LoginRow(user_id(openid=openid), sid, MARKER, at * 1_000_000, at, at + 3600)


def put(store: Store, sid: str) -> None:
    store.put_login(login(sid), unionid=None)


def sids(store: Store) -> set[str]:
    return {row.sid for row in store.logins(USER, now=NOW)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def side_files(path: Path) -> list[Path]:
    return [path, Path(f"{path}-wal"), Path(f"{path}-shm")]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def outside(path: Path) -> closing[sqlite3.Connection]:
    """Someone else's connection to the file."""
    return closing(sqlite3.connect(path, isolation_level=None, timeout=0.0))


CALLS: Final[dict[str, Callable[[Store], object]]] = {
    "put_login": lambda store: put(store, "x"),
    "logins": lambda store: store.logins(USER, now=NOW),
    "user": lambda store: store.user(USER),
    "ban": lambda store: ban(store, USER),
    "purge": lambda store: store.purge(now=NOW, at_most=1),
    "ping": lambda store: store.ping(),
}


# ---- who may read -------------------------------------------------------------------------------


def test_the_files_are_for_their_owner_alone_whatever_the_umask(path: Path, url: str) -> None:
    for mask in (0o022, 0o000, 0o777):
        with umask(mask):
            prepare_store(url)
            with closing(open_store(url)) as store:
                put(store, f"s{mask}")
                assert [mode(file) for file in side_files(path)] == [0o600] * 3
        path.unlink()


def test_a_file_that_others_may_read_is_closed_to_them(path: Path, url: str, store: SqlStore) -> None:
    put(store, "s1")
    for file in side_files(path):
        file.chmod(0o666)
    with closing(open_store(url)) as again:
        again.ping()
        assert [mode(file) for file in side_files(path)] == [0o600] * 3


def test_the_files_beside_a_linked_database_are_closed_to_others_too(
    tmp_path: Path, path: Path, store: SqlStore
) -> None:
    put(store, "s1")
    for file in side_files(path):
        file.chmod(0o644)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with closing(open_store(f"sqlite:///{link}")) as again:
        assert sids(again) == {"s1"}
        assert [mode(file) for file in side_files(path)] == [0o600] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_strangers_file_that_others_may_read_is_refused_with_its_name(path: Path, url: str, store: SqlStore) -> None:
    store.close()
    path.chmod(0o644)
    os.chown(path, STRANGER_UID, STRANGER_UID)
    for call in (lambda _: prepare_store(url), *CALLS.values()):
        with pytest.raises(StoreUnavailable, match=f"{path}.*{STRANGER_UID}.*0600"):
            call(store)
    assert mode(path) == 0o644
    path.chmod(0o600)
    put(store, "s1")


def test_a_folder_is_not_taken_for_a_database(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    with pytest.raises(StoreUnavailable, match="folder is not a file"):
        prepare_store(f"sqlite:///{folder}")
    assert mode(folder) == 0o755


def test_a_file_that_is_no_database_is_left_as_it_is(path: Path, url: str) -> None:
    path.write_bytes(b"somebody's notes\n" * 100)
    path.chmod(0o644)
    with pytest.raises(StoreUnavailable, match="no SQLite database"):
        prepare_store(url)
    assert path.read_bytes() == b"somebody's notes\n" * 100
    assert mode(path) == 0o644


def test_a_look_leaves_the_file_as_it_is(path: Path, url: str, store: SqlStore) -> None:
    store.close()
    path.chmod(0o644)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    before = path.read_bytes()
    check_store(url)
    looked_at = open_store(url, as_is=True)
    looked_at.ping()
    looked_at.census(now=0, start_bytes=1)
    looked_at.close()
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_look_at_what_is_no_database_leaves_what_lies_beside_it(path: Path, url: str) -> None:
    path.write_bytes(b"not a database at all, and no empty one" * 100)
    beside = path.with_name(f"{path.name}-wal")
    beside.write_bytes(b"may still be rescued")
    with pytest.raises(StoreUnavailable, match="no SQLite database"):
        check_store(url)
    assert beside.read_bytes() == b"may still be rescued"


def test_a_link_that_leads_nowhere_is_not_followed_to_make_a_database(tmp_path: Path, path: Path, url: str) -> None:
    path.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StoreUnavailable):
        prepare_store(url)
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"nowhere/store\.db: No such file or directory"):
        prepare_store(f"sqlite:///{tmp_path}/nowhere/store.db")


# ---- a file that goes away ----------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_store_without_its_file_is_unavailable_and_makes_none(
    path: Path, store: SqlStore, call: Callable[[Store], object]
) -> None:
    put(store, "s1")
    path.unlink()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            call(store)
    assert not path.exists()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_opening_a_store_that_was_never_prepared_makes_no_file(
    path: Path, url: str, call: Callable[[Store], object]
) -> None:
    with closing(open_store(url)) as store, pytest.raises(StoreUnavailable):
        call(store)
    assert not path.exists()


def test_a_login_is_not_written_to_a_file_that_was_deleted(tmp_path: Path, path: Path, store: SqlStore) -> None:
    put(store, "s1")
    for file, kept in zip(side_files(path), side_files(tmp_path / "kept.db"), strict=True):
        os.link(file, kept)
    path.unlink()
    with pytest.raises(StoreUnavailable):
        put(store, "s2")
    with outside(tmp_path / "kept.db") as kept_db:
        assert kept_db.execute("SELECT sid FROM logins").fetchall() == [("s1",)]


def test_a_store_recovers_when_its_file_is_made_again(path: Path, url: str, store: SqlStore) -> None:
    put(store, "s1")
    path.unlink()
    with pytest.raises(StoreUnavailable):
        put(store, "s2")
    prepare_store(url)
    put(store, "s3")
    assert sids(store) == {"s3"}
    with outside(path) as database:
        assert database.execute("SELECT sid FROM logins").fetchall() == [("s3",)]


def test_a_store_goes_on_in_the_file_that_replaces_its_own(tmp_path: Path, path: Path, store: SqlStore) -> None:
    put(store, "s1")
    with outside(path) as database:
        database.execute("VACUUM INTO ?", (os.fspath(tmp_path / "backup.db"),))
    put(store, "s2")
    for file in side_files(path)[1:]:
        file.unlink()
    (tmp_path / "backup.db").rename(path)
    put(store, "s3")
    assert sids(store) == {"s1", "s3"}
    assert [mode(file) for file in side_files(path)] == [0o600] * 3


def test_a_login_whose_file_goes_away_while_it_is_written_is_not_reported_as_kept(path: Path, store: SqlStore) -> None:
    connection = store._database._engine.raw_connection()
    assert connection.dbapi_connection is not None
    connection.dbapi_connection.create_function("lose_the_file", 0, path.unlink)
    connection.cursor().execute("CREATE TEMP TRIGGER lost AFTER INSERT ON logins BEGIN SELECT lose_the_file(); END")
    connection.close()
    with pytest.raises(StoreUnavailable, match="DisconnectionError"):
        put(store, "s1")
    assert not path.exists()


def test_a_file_that_is_deleted_as_it_is_opened_is_not_made_again(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_opening(monkeypatch, path.unlink)
    with pytest.raises(StoreUnavailable, match="SQLITE_CANTOPEN"):
        put(store, "s1")
    assert not path.exists()


def test_a_file_that_is_replaced_as_it_is_opened_is_not_written_to(
    tmp_path: Path, path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_store(f"sqlite:///{tmp_path}/other.db")
    before_opening(monkeypatch, lambda: (tmp_path / "other.db").replace(path))
    with pytest.raises(StoreUnavailable, match="DisconnectionError"):
        put(store, "s1")
    put(store, "s2")
    assert sids(store) == {"s2"}


def before_opening(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have `act` happen once, in the moment before SQLite next opens a file."""
    connect = sqlite3.connect

    def act_and_connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        monkeypatch.undo()
        act()
        connection: sqlite3.Connection = connect(*args, **kwargs)
        return connection

    monkeypatch.setattr(sqlite3, "connect", act_and_connect)


# ---- a file that breaks -------------------------------------------------------------------------


def test_a_corrupt_file_makes_the_store_unavailable_until_it_is_mended(path: Path, url: str) -> None:
    prepare_store(url)
    sound = path.read_bytes()
    path.write_bytes(b"\xff" * 100 + sound[100:])
    with closing(open_store(url)) as store:
        for call in CALLS.values():
            with pytest.raises(StoreUnavailable, match="SQLITE_NOTADB"):
                call(store)
        path.write_bytes(sound)
        put(store, "s1")
        assert sids(store) == {"s1"}


def test_a_torn_page_makes_the_store_unavailable(path: Path, url: str) -> None:
    prepare_store(url)
    sound = path.read_bytes()
    path.write_bytes(sound[:4096] + b"\xff" * (len(sound) - 4096))
    with closing(open_store(url)) as store:
        with pytest.raises(StoreUnavailable, match="SQLITE_CORRUPT"):
            put(store, "s1")
        path.write_bytes(sound)
        put(store, "s1")


def test_a_database_without_its_tables_makes_the_store_unavailable(path: Path, store: SqlStore) -> None:
    with outside(path) as database:
        database.execute("ALTER TABLE logins RENAME TO elsewhere")
        with pytest.raises(StoreUnavailable):
            put(store, "s1")
        database.execute("ALTER TABLE elsewhere RENAME TO logins")
    put(store, "s2")


def test_a_login_that_cannot_be_kept_leaves_no_trace_of_the_visit(path: Path, store: SqlStore) -> None:
    with outside(path) as database:
        database.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON logins BEGIN SELECT RAISE(ABORT, 'oUser cannot be kept'); END"
        )
        with pytest.raises(StoreUnavailable):
            put(store, "s1")
    assert store.user(USER) is None


def test_a_full_disk_makes_the_store_unavailable_until_there_is_room(path: Path, store: SqlStore) -> None:
    put(store, "s1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Nothing grows beyond what the log has now; that the write fails is what counts, not with which errno.
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{path}-wal").stat().st_size, limits[1]))
    try:
        for n in range(3):
            with pytest.raises(StoreUnavailable):
                put(store, f"full{n}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    put(store, "s2")
    assert sids(store) == {"s1", "s2"}


def test_a_store_that_may_only_read_refuses_logins_and_still_reads(url: str, store: SqlStore) -> None:
    put(store, "s1")
    engine = store._database._engine
    connection = engine.raw_connection()
    connection.cursor().execute("PRAGMA query_only=ON")
    connection.close()
    assert sids(store) == {"s1"}
    with pytest.raises(StoreUnavailable, match="SQLITE_READONLY"):
        put(store, "s2")
    put(store, "s3")  # on a connection that is new, and may write
    assert sids(store) == {"s1", "s3"}


def test_a_locked_store_is_unavailable_within_three_seconds_and_back_at_once(path: Path, store: SqlStore) -> None:
    put(store, "s1")
    with outside(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            put(store, "s2")
        assert time.monotonic() - started < 3
        assert sids(store) == {"s1"}  # who writes does not keep readers out
        other.execute("ROLLBACK")
    put(store, "s3")
    assert sids(store) == {"s1", "s3"}


def test_a_login_is_in_the_log_at_once_and_synced_with_the_next_checkpoint(store: SqlStore) -> None:
    connection = store._database._engine.raw_connection()
    cursor = connection.cursor()
    pragmas = {}
    for name in ("journal_mode", "synchronous", "wal_autocheckpoint"):
        cursor.execute(f"PRAGMA {name}")
        (pragmas[name],) = cursor.fetchone() or (None,)
    connection.close()
    # 1 is NORMAL. The log is not copied within a commit, but for the one in need.
    assert pragmas == {"journal_mode": "wal", "synchronous": 1, "wal_autocheckpoint": 50_000}


def test_the_log_is_copied_while_logins_go_on(path: Path, store: SqlStore) -> None:
    size = path.stat().st_size
    for number in range(300):
        store.put_login(login("s1", openid=f"o{number}"), unionid=None)
    until(lambda: path.stat().st_size > size, within_s=10, what="the log is copied into the file")


def test_a_closed_store_leaves_nobody_copying(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_store(url)
    ended: list[bool] = []
    monkeypatch.setattr(Checkpoints, "end", lambda _self: ended.append(True))
    with closing(open_store(url)) as store:
        put(store, "s1")
        assert not ended
    assert ended == [True]


def test_what_an_operator_does_is_synced_at_once_and_logins_are_not_again(store: SqlStore) -> None:
    said: list[str] = []
    engine = store._database._engine
    with engine.connect() as connection:
        kept = connection.connection.dbapi_connection
        assert kept is not None
        kept.set_trace_callback(said.append)
    acts: list[Callable[[], object]] = [
        lambda: put(store, "s1"),
        lambda: ban(store, USER),
        lambda: unban(store, USER),
        lambda: store.note(audit_line("export", USER)),
        lambda: forget(store, USER),
        lambda: put(store, "s2"),
    ]
    for act in acts:
        act()
    with pytest.raises(StoreUnavailable):
        store.note(replace(audit_line("export", USER), reason=None))  # type: ignore[arg-type]
    put(store, "s3")
    level, commits = "NORMAL", []
    for statement in said:
        if "synchronous=" in statement:
            level = statement.split("synchronous=")[1]
        elif statement == "COMMIT":
            commits.append(level)
    assert commits == ["NORMAL", "FULL", "FULL", "FULL", "FULL", "NORMAL", "NORMAL"]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit",
        "UPDATE audit SET reason = 'none'",
        "REPLACE INTO audit SELECT id, 0, actor, what, appid, digest, 'none' FROM audit",
    ],
)
def test_no_line_of_the_audit_log_is_changed_or_taken_away(path: Path, store: SqlStore, statement: str) -> None:
    store.note(audit_line("export", USER))
    with outside(path) as database, pytest.raises(sqlite3.IntegrityError, match="audit lines are not"):
        database.execute(statement)


def test_a_ban_that_was_written_by_hand_is_one(path: Path, store: SqlStore) -> None:
    put(store, "s1")
    with outside(path) as database:
        database.execute("UPDATE users SET state = 0")
    with pytest.raises(UserBanned):
        put(store, "s2")
    assert forget(store, USER) == 1
    with pytest.raises(UserBanned):
        put(store, "s3")


def test_a_caller_who_cannot_have_the_connection_is_told_within_three_seconds(store: SqlStore) -> None:
    taken = store._database._engine.raw_connection()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="TimeoutError"):
        store.ping()
    assert time.monotonic() - started < 3
    taken.close()
    store.ping()


# ---- what an error says -------------------------------------------------------------------------


def test_an_error_has_neither_the_row_nor_the_statement_nor_a_cause(path: Path, store: SqlStore) -> None:
    with outside(path) as database:
        database.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON logins BEGIN SELECT RAISE(ABORT, 'oUser cannot be kept'); END"
        )
    with pytest.raises(StoreUnavailable) as caught:
        put(store, "s1")
    assert str(caught.value) == "the side store did not answer (IntegrityError, SQLITE_CONSTRAINT_TRIGGER)"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file:store.db",
        "sqlite:///store.db?mode=memory",
        "sqlite:///store.db?uri=true",
        "sqlite:///st\0re.db",
        "sqlite://user:s3cret@host/store.db",
        "sqlite+aiosqlite:///store.db",
        "oracle://user:s3cret@host/db",
        "postgresql://user:s3cret@host:port/db",
    ],
)
@pytest.mark.parametrize("use", [store_address, prepare_store, open_store])
def test_a_url_that_names_no_file_is_refused_without_being_repeated(use: Callable[[str], object], url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        use(url)
    assert "AUTHSVC_STORE" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_relative_path_means_the_folder_the_store_was_opened_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_address("sqlite:///a b/c?d".replace("?", "%")).file == tmp_path / "a b" / "c%d"
    prepare_store("sqlite:///store.db")
    with closing(open_store("sqlite:///store.db")) as store:
        monkeypatch.chdir("/")
        put(store, "s1")
        assert sids(store) == {"s1"}


@pytest.mark.parametrize("name", ["a b.db", "a#b.db", "100%.db", "登录.db"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    prepare_store(f"sqlite:///{tmp_path}/{name}")
    with closing(open_store(f"sqlite:///{tmp_path}/{name}")) as store:
        put(store, "s1")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_what_was_sealed_is_in_the_files_as_it_came_and_nowhere_else_in_the_row(path: Path, store: SqlStore) -> None:
    put(store, "s1")
    assert sum(file.read_bytes().count(MARKER) for file in side_files(path)) > 0
    with outside(path) as database:
        (row,) = database.execute("SELECT * FROM logins").fetchall()
        assert row == ("wx-a", "oUser", "s1", MARKER, NOW * 1_000_000, NOW, NOW + 3600)
        assert database.execute("SELECT * FROM users").fetchall() == [("wx-a", "oUser", 1, None, NOW, NOW, 0)]


# ---- processes ----------------------------------------------------------------------------------

PREPARER: Final = """
import sys
import authsvc.store.migrate
from authsvc.store.open import prepare_store
print("ready", flush=True)
for line in sys.stdin:
    try:
        prepare_store(line.strip())
    except Exception as error:
        print(repr(error), flush=True)
    else:
        print("done", flush=True)
"""

WRITER: Final = """
import sys
from concurrent.futures import ThreadPoolExecutor
from authsvc.store.open import open_store
from authsvc.store.rows import LoginRow
from tests.support.users import user_id
url, name = sys.argv[1:]
store = open_store(url)
def visit(thread):
    for n in range(25):
        for openid in ("oShared", f"o{name}{thread}"):
            at = 1_800_000_000 + n
            user = user_id(openid=openid)
            row = LoginRow(user, f"{name}{thread}-{n}", b"sealed", at * 1_000_000, at, at + 3600)
            store.put_login(row, unionid=None)
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(16) as threads:
    list(threads.map(visit, range(16)))
store.close()
print("done", flush=True)
"""


@contextmanager
def two_processes(code: str, *arguments: tuple[str, ...]) -> Iterator[Callable[[str], list[str]]]:
    """Start one process for each tuple; the function gives all of them a line at once, and returns what each says."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *given], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for given in arguments
    ]

    def ask(line: str) -> list[str]:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
        return answers()

    def answers() -> list[str]:
        return [process.stdout.readline().strip() for process in processes if process.stdout is not None]

    try:
        assert answers() == ["ready"] * len(processes)
        yield ask
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_processes_of_sixteen_threads_write_and_none_finds_the_database_locked(url: str, store: SqlStore) -> None:
    with two_processes(WRITER, (url, "a"), (url, "b")) as ask:
        assert ask("go") == ["done", "done"]
    last = NOW + 24
    for name in ("a", "b"):
        for thread in range(16):
            kept = store.logins(user_id(openid=f"o{name}{thread}"), now=NOW)
            assert [row.sid for row in kept] == [f"{name}{thread}-{n}" for n in (24, 23, 22)]
    shared = store.logins(user_id(openid="oShared"), now=NOW)
    assert [row.created_at for row in shared] == [last] * 3
    user = store.user(user_id(openid="oShared"))
    assert user is not None
    assert (user.first_login_at >= NOW, user.last_login_at) == (True, last)


def test_two_processes_that_prepare_one_store_at_once_both_succeed(tmp_path: Path) -> None:
    with two_processes(PREPARER, (), ()) as ask:
        for n in range(40):
            assert ask(f"sqlite:///{tmp_path}/store{n}.db") == ["done", "done"]


# ---- migrations ---------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_uses(path: Path, url: str) -> None:
    prepare_store(url)
    engine = sqlite_engine(SqliteFile(path))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()
    with outside(path) as database:
        tables = database.execute("SELECT sql FROM sqlite_master WHERE name IN ('logins', 'users')").fetchall()
        assert [("WITHOUT ROWID" in sql) for (sql,) in tables] == [True, True]


def test_the_newest_migration_is_the_one_that_a_prepared_store_is_known_by(url: str) -> None:
    folder = Path(migrate.__file__).with_name("migrations")
    assert ScriptDirectory(folder).get_heads() == [REVISION]


def test_preparing_a_store_again_changes_nothing_in_it(path: Path, url: str, store: SqlStore) -> None:
    put(store, "s1")
    with outside(path) as database:
        before = list(database.iterdump())
        prepare_store(url)
        assert list(database.iterdump()) == before


def test_users_of_an_older_program_are_taken_over(path: Path, url: str) -> None:
    with outside(path) as database:
        for table in (
            "logins (appid, openid, sid, sealed_session_key, started_at_us, created_at, expires_at)",
            "users (appid VARCHAR(64), openid VARCHAR(128), state SMALLINT, unionid VARCHAR(128), "
            "first_login_at BIGINT, last_login_at BIGINT, PRIMARY KEY (appid, openid))",
            "revoked_keys (key_id, revoked_at)",
            "shared_values (name, value, expires_at)",
            "alembic_version (version_num VARCHAR(32) NOT NULL)",
        ):
            database.execute(f"CREATE TABLE {table}")
        database.execute("INSERT INTO alembic_version VALUES ('0003')")
        database.execute("INSERT INTO users VALUES ('wx-a', 'oUser', 0, 'u1', 1, 2)")
    prepare_store(url)
    with closing(open_store(url)) as store:
        assert store.user(USER) == UserRow(USER, 0, 0, "u1", 1, 2)
        assert unban(store, USER)
        put(store, "s1")


def test_a_store_of_a_newer_program_is_refused_and_left_as_it_is(path: Path, url: str, store: SqlStore) -> None:
    put(store, "s1")
    with outside(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        before = list(database.iterdump())
        with pytest.raises(StoreUnavailable, match=r"newer authsvc.*9999"):
            prepare_store(url)
        assert list(database.iterdump()) == before


def test_a_migration_that_fails_leaves_nothing_half_made(path: Path, url: str) -> None:
    with outside(path) as database:
        database.execute("CREATE TABLE users (name TEXT)")
        with pytest.raises(StoreUnavailable):
            prepare_store(url)
        assert database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("users",)]


def test_preparing_a_store_says_nothing_and_leaves_logging_alone(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from authsvc.store.open import prepare_store; prepare_store(sys.argv[1]);"
        "root = logging.getLogger(); assert (root.handlers, root.level) == ([], logging.WARNING)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, f"sqlite:///{tmp_path}/store.db"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_program_in_a_folder_with_a_percent_sign_finds_its_migrations(tmp_path: Path) -> None:
    program = tmp_path / "100%(here)s"
    shutil.copytree(ROOT / "authsvc", program / "authsvc", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from authsvc.store.open import prepare_store; prepare_store(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{tmp_path}/store.db"], cwd=program, timeout=60, check=True)
    with outside(tmp_path / "store.db") as database:
        assert database.execute("SELECT count(*) FROM logins").fetchone() == (0,)


def test_opening_a_store_does_not_load_the_migrations() -> None:
    code = (
        "import sys; from authsvc.store.open import open_store; open_store('sqlite:///store.db').close();"
        "assert not any(name.split('.')[0] == 'alembic' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)


def test_a_locked_database_is_not_migrated(path: Path, url: str, store: SqlStore) -> None:
    store.ping()
    engine = sqlite_engine(SqliteFile(path))
    with outside(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            upgrade(engine)
    engine.dispose()
