"""The side store on real database servers: addresses, the schema, connections that are lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg.errors import DeadlockDetected
from pymysql.err import OperationalError as MySQLError  # type: ignore[import-untyped]
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError

from authsvc.errors import SettingsError, StoreUnavailable, UserBanned
from authsvc.store import STATE_BANNED, LoginRow, open_store, prepare_store, store_address
from authsvc.store.schema import LOGINS, METADATA, USERS
from authsvc.store.server import server_engine
from authsvc.store.sql import SqlStore
from tests.support.databases import POSTGRESQL, SERVERS, Server, database
from tests.support.service import Running, service
from tests.support.users import USER, audit_line, ban, forget, user_id

ROOT = Path(__file__).parents[2]
NOW = 1_800_000_000
LOGIN = LoginRow(USER, "s1", b"sealed", NOW * 1_000_000, NOW, NOW + 3600)


@pytest.fixture(params=SERVERS, ids=lambda server: server.name)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.param
    return found


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with database(server) as it:
        yield it


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql://user:SECRETMARKER@db.example:6000/auth?sslkey=/SECRETMARKER",
            "postgresql://user:***@db.example:6000/auth",
        ),
        ("postgresql+psycopg://db/auth", "postgresql+psycopg://db/auth"),
        (
            "postgresql://me:SECRETMARKER@/auth?host=a:5432&host=b:5432&target_session_attrs=read-write",
            "postgresql://me:***@/auth?host=a%3A5432&host=b%3A5432",
        ),
        ("mysql://user:SECRETMARKER@db/auth", "mysql://user:***@db/auth"),
        ("mariadb+pymysql://user@db/auth", "mariadb+pymysql://user@db/auth"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    found = store_address(url)
    assert (found.shown, found.file, found.is_missing) == (shown, None, False)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql://db",
        "postgresql:///auth",
        "mysql+aiomysql://db/auth",
        "postgresql+asyncpg://db/auth",
        "postgresql://db/auth?options=-csearch_path=x",
        "postgresql://db/auth?connect_timeout=60",
        "mysql://db/auth?foo=1",
        "mysql://db/auth?read_default_file=/etc/my.cnf",
        "mysql://db/auth?host=a&host=b",
    ],
)
def test_a_url_without_host_or_database_or_of_another_driver_is_refused(url: str) -> None:
    for use in (store_address, prepare_store, open_store):
        with pytest.raises(SettingsError):
            use(url)


def test_the_schema_that_is_made_is_the_one_that_is_used(url: str) -> None:
    prepare_store(url)
    prepare_store(url)
    engine = server_engine(make_url(url))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_of_ten_programs_that_start_at_once_one_makes_the_schema(url: str) -> None:
    program = f"from authsvc.store import prepare_store; prepare_store({url!r})"
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in started] == [("", 0)] * 10
    with closing(open_store(url)) as store:
        store.put_login(LOGIN, unionid=None)


def test_an_older_program_refuses_a_newer_schema(url: str) -> None:
    prepare_store(url)
    engine = server_engine(make_url(url))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(StoreUnavailable, match="newer authsvc"):
        prepare_store(url)


@pytest.mark.parametrize("statement", ["DELETE FROM audit", "UPDATE audit SET reason = 'none'", "TRUNCATE audit"])
@pytest.mark.parametrize("server", [POSTGRESQL], ids=["PostgreSQL"])  # MySQL lets administrators alone make triggers
def test_no_line_of_the_audit_log_is_changed_or_taken_away(url: str, statement: str) -> None:
    prepare_store(url)
    engine = server_engine(make_url(url))
    with closing(open_store(url)) as store:
        store.note(audit_line("export", USER))
    with engine.begin() as connection, pytest.raises(DBAPIError, match="audit lines are not"):
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_ban_that_is_being_written_is_not_forgotten_with_the_user(url: str) -> None:
    prepare_store(url)
    engine = server_engine(make_url(url))
    with closing(open_store(url)) as store, ThreadPoolExecutor(1) as thread:
        store.put_login(LOGIN, unionid=None)
        with engine.begin() as connection:
            connection.execute(USERS.update().values(state=STATE_BANNED, state_since=NOW))
            forgetting = thread.submit(forget, store, USER)
            with pytest.raises(TimeoutError):
                forgetting.result(0.5)
        assert forgetting.result(30) == 1
        with pytest.raises(UserBanned):
            store.put_login(LOGIN, unionid=None)
    engine.dispose()


def test_a_ban_and_a_forgetting_in_the_midst_of_a_first_login_keep_it_out(url: str) -> None:
    prepare_store(url)
    with closing(open_store(url)) as store, closing(open_store(url)) as operators:
        assert isinstance(store, SqlStore)
        add_user = store._add_user

        class Late:
            def run(self, cursor: DBAPICursor, values: Mapping[str, object]) -> None:
                ban(operators, USER)
                forget(operators, USER)
                add_user.run(cursor, values)

        store._add_user = Late()  # type: ignore[assignment]
        with pytest.raises(UserBanned):
            store.put_login(LOGIN, unionid=None)
        assert store.logins(USER, now=NOW) == ()
        found = store.user(USER)
        assert found is not None
        assert (found.state, found.first_login_at) == (STATE_BANNED, 0)


def test_a_login_that_is_the_victim_of_a_deadlock_is_done_again(server: Server, url: str) -> None:
    prepare_store(url)
    with closing(open_store(url)) as store:
        assert isinstance(store, SqlStore)
        drop_old_logins, met = store._drop_old_logins, []

        class Deadlocked:
            def run(self, cursor: DBAPICursor, values: Mapping[str, object]) -> None:
                met.append(1)
                if len(met) < 3:
                    # As the server says it, and it has rolled back.
                    raise DeadlockDetected if server is POSTGRESQL else MySQLError(1213, "Deadlock found")
                drop_old_logins.run(cursor, values)

        store._drop_old_logins = Deadlocked()  # type: ignore[assignment]
        store.put_login(LOGIN, unionid=None)
        assert store.logins(USER, now=NOW) == (LOGIN,)


def test_an_upgrade_that_was_killed_between_two_steps_is_gone_on_with(url: str) -> None:
    prepare_store(url)
    engine = server_engine(make_url(url))
    with engine.begin() as connection:
        for statement in ("DROP TABLE audit", "UPDATE alembic_version SET version_num = '0003'"):
            connection.exec_driver_sql(statement)
    engine.dispose()
    prepare_store(url)
    with closing(open_store(url)) as store:
        store.note(audit_line("export", USER))


def test_a_purge_does_not_wait_for_a_login_that_is_being_written(url: str) -> None:
    prepare_store(url)
    engine = server_engine(make_url(url))
    with closing(open_store(url)) as store:
        others = [replace(LOGIN, user=user_id(openid=f"oUser{n}")) for n in range(3)]
        for row in (LOGIN, *others):
            store.put_login(row, unionid=None)
        with engine.begin() as connection:
            connection.execute(LOGINS.update().where(LOGINS.c.openid == USER.openid).values(created_at=NOW))
            assert store.purge(now=LOGIN.expires_at, at_most=10) == 3
        assert store.purge(now=LOGIN.expires_at, at_most=10) == 1
    engine.dispose()


def test_a_connection_that_the_server_has_ended_is_not_noticed(server: Server, url: str) -> None:
    prepare_store(url)
    with closing(open_store(url)) as store:
        store.put_login(LOGIN, unionid=None)
        engine = server_engine(make_url(url))
        with engine.connect() as connection:
            if server is POSTGRESQL:
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            else:
                others = connection.exec_driver_sql(
                    "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
                ).scalars()
                for number in others.all():
                    connection.exec_driver_sql(f"KILL {number}")
        engine.dispose()
        assert store.logins(USER, now=NOW) == (LOGIN,)


@pytest.mark.parametrize("server", [POSTGRESQL], ids=["PostgreSQL"])
def test_of_several_hosts_the_one_that_takes_writes_is_found(url: str) -> None:
    found = make_url(url)
    hosts = {"host": ["127.0.0.1:1", f"{found.host}:{found.port}"], "target_session_attrs": "read-write"}
    several = found.set(host=None, port=None, query=hosts).render_as_string(hide_password=False)
    prepare_store(several)
    with closing(open_store(several)) as store:
        store.put_login(LOGIN, unionid=None)
        assert store.logins(USER, now=NOW) == (LOGIN,)


@pytest.mark.parametrize("made", ["postgresql://{}@127.0.0.1:1/auth", "mysql://{}@127.0.0.1:1/auth"])
def test_with_nobody_listening_it_is_unavailable_and_no_password_is_said(made: str) -> None:
    url = made.format("user:SECRETMARKER")
    with pytest.raises(StoreUnavailable) as failed:
        prepare_store(url)
    assert "127.0.0.1:1" in str(failed.value)
    with closing(open_store(url)) as store, pytest.raises(StoreUnavailable) as failed_later:
        store.ping()
    for error in (failed, failed_later):
        assert "SECRETMARKER" not in str(error.value) + repr(error.getrepr(showlocals=False, style="native"))


def test_the_service_runs_on_it_with_two_workers(tmp_path: Path, wechat: Running, server: Server, url: str) -> None:
    with service(tmp_path, wechat_url=wechat.url, STORE=url, WORKERS="2") as it:
        token = it.token("on-a-server")
        assert it.check(token)["is_login"] is True
        data = it.order("open_data", user="on-a-server")
        assert it.ask("decrypt", token, data).status_code == 200
        assert it.session.get(f"{it.url}/readyz", timeout=10).json()["store"] == "ok"
        shown = store_address(url).shown
        assert f"store: {shown}" in it.output()
    assert not list(tmp_path.glob("authsvc.db*"))
