"""The commands on the side store as a whole: status, purge, the move to another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from authsvc.sessionkeys import kept_session_key
from authsvc.store import (
    STATE_BANNED,
    AuditLine,
    Ban,
    LoginRow,
    RevokedKey,
    Store,
    UserRow,
    open_store,
    prepare_store,
)
from tests.support.commands import audit_lines
from tests.support.databases import MARIADB, POSTGRESQL, REDIS, database, redis_place
from tests.support.place import OPENID, SESSION_KEY, Place
from tests.support.service import APPID, Running, clean_environment, service
from tests.support.users import rows_of

ENGINES: Final = ("sqlite", "postgresql", "mariadb", "redis")


@contextmanager
def engine(name: str, folder: Path) -> Iterator[str]:
    """The URL of an empty store."""
    match name:
        case "sqlite":
            yield f"sqlite:///{folder}/authsvc.db"
        case "redis":
            with redis_place(REDIS) as url:
                yield url
        case _:
            with database({"postgresql": POSTGRESQL, "mariadb": MARIADB}[name]) as url:
                yield url


@contextmanager
def place(name: str, folder: Path, *, hashed: bool = False) -> Iterator[Place]:
    with engine(name, folder) as url:
        here = Place(folder, url, hashed=hashed)
        with closing(here.store):
            yield here


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place("sqlite", tmp_path) as it:
        yield it


@pytest.fixture
def other(tmp_path: Path) -> str:
    """Another store, which is not there yet."""
    return f"sqlite:///{tmp_path}/other.db"


# ---- status -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_status_counts_what_lies_there_and_under_which_key(tmp_path: Path, name: str) -> None:
    with place(name, tmp_path) as here:
        for n in range(3):
            here.log_in(f"sid-{n}", at=here.now - n)
        here.run("user", "ban", "oSomebody")
        found = here.json("store", "status")
        shown = here.run("store", "status").stdout
    assert (found["users"], found["banned"], found["logins"], found["ended_logins"]) == (2, 1, 3, 0)
    assert (found["audit_lines"], found["oldest_login_at"]) == (1, here.now - 2)
    assert found["engine"].lower().startswith(name)
    assert found["size_bytes"] > 0
    sealing = here.keyring.sealing_key(now=here.now).id
    assert found["keys"] == [{"key": sealing, "state": "active", "logins": 3}]
    assert found["problems"] == []
    for said in (found["engine"], sealing, "active", "oldest login", "nothing needs you"):
        assert said in shown


def test_status_of_an_empty_store_is_well(here: Place) -> None:
    assert "nothing needs you" in here.run("store", "status").stdout


def test_logins_under_a_key_that_the_folder_does_not_have_need_the_operator(here: Place, tmp_path: Path) -> None:
    here.log_in()
    (tmp_path / "keys").rename(tmp_path / "lost")
    Place(tmp_path, here.url).store.close()
    found = here.json("store", "status", status=1)
    assert [(row["state"], row["logins"]) for row in found["keys"]] == [(None, 1)]
    assert "NEEDS YOU: 1 logins are sealed under" in here.run("store", "status", status=1).stdout


def test_status_works_without_keys_and_says_so(here: Place, tmp_path: Path) -> None:
    here.log_in()
    (tmp_path / "keys").rename(tmp_path / "lost")
    found = here.json("store", "status", status=1)
    assert found["logins"] == 1
    assert "cannot be looked up" in found["problems"][0]


def test_where_there_is_no_store_none_is_made(here: Place, tmp_path: Path) -> None:
    for command in ("status", "purge"):
        refused = here.run("store", command, status=2, settings={"STORE": f"sqlite:///{tmp_path}/none.db"})
        assert "there is no side store" in refused.stderr
    assert not (tmp_path / "none.db").exists()


# ---- purge --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sqlite", "postgresql", "mariadb"])
def test_what_is_over_is_purged_and_nothing_else(tmp_path: Path, name: str) -> None:
    with place(name, tmp_path) as here:
        over = here.now - 50
        here.store.merge(
            [
                LoginRow(here.user(f"oOld{n}"), "s1", b"sealed", over * 1_000_000, over, over + n % 50)
                for n in range(1_100)
            ]
        )
        here.log_in()
        assert here.json("store", "purge") == {"purged": 1_100}
        assert here.run("store", "purge").stdout == "Nothing is over.\n"
        assert [row.user.openid for row in rows_of(here.store, LoginRow) if isinstance(row, LoginRow)] == [OPENID]
        assert len(rows_of(here.store, UserRow)) == 1


def test_the_running_service_purges_by_itself(tmp_path: Path, wechat: Running) -> None:
    with place("sqlite", tmp_path) as here:
        for n in range(700):
            here.log_in(openid=f"oOld{n}", at=here.now - 100, ttl_s=50)
        with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
            token = it.token()
            give_up_at = time.monotonic() + 20
            while "store_purged" not in it.output():
                assert time.monotonic() < give_up_at
                time.sleep(0.05)
            assert len(rows_of(here.store, LoginRow)) == 1
            assert it.check(token)["is_login"] is True
        assert it.output().count("store_purged") == 1
        assert '"rows": 700' in it.output()


# ---- migrate ------------------------------------------------------------------------------------


def fill(here: Place, *, users: int = 20) -> None:
    for n in range(users):
        for m in range(3):
            here.log_in(f"sid-{m}", openid=f"oUser{n}", at=here.now + m)
    here.log_in("over", openid="oOver", at=here.now - 100, ttl_s=50)
    here.run("user", "ban", "oUser0", "--reason", "原因")
    here.run("user", "ban", "oUser1")
    here.run("user", "forget", "oUser1", "--yes")
    here.run("user", "ban", "oNever")
    here.store.note_revoked_keys({"kid-1": 1, "kid-2": 2})


KINDS: Final = (UserRow, LoginRow, Ban, AuditLine, RevokedKey)


def same(here: Place, there: Store) -> bool:
    """Whether the other store has all of the first, and not more, but for what is over."""

    def rows(store: Store) -> set[object]:
        found = {row for kind in KINDS for row in rows_of(store, kind, identify=here.users.stored)}
        return {row for row in found if not isinstance(row, LoginRow) or row.expires_at > here.now}

    return rows(here.store) == rows(there)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("sqlite", "postgresql"),
        ("sqlite", "redis"),
        ("postgresql", "mariadb"),
        ("mariadb", "redis"),
        ("redis", "sqlite"),
        ("redis", "postgresql"),
    ],
)
def test_everything_moves_to_another_engine_and_is_proved(tmp_path: Path, name: str, to: str) -> None:
    (tmp_path / "other").mkdir()
    with place(name, tmp_path) as here, engine(to, tmp_path / "other") as url:
        fill(here)
        found = here.json("store", "migrate", "--to", url)
        assert found["whole"] is True
        counts = {kind["kind"]: (kind["rows"], kind["found"]) for kind in found["kinds"]}
        assert counts["bans"] == (1, 1)
        assert counts["audit lines"] == (4, 4)
        assert counts["revoked keys"] == (2, 2)
        assert counts["users"] == (21, 21)  # 20 and the one whose login is over and the one who never came, less one
        assert counts["logins"] == (57, 57)
        with closing(open_store(url)) as there:
            assert same(here, there)
            (row, *_) = there.logins(here.user("oUser5"), now=here.now)
            assert kept_session_key(row, here.keyring, now=here.now) == SESSION_KEY
        moved = {"STORE": url}
        assert here.json("user", "show", "oUser0", settings=moved)["state"] == STATE_BANNED
        assert here.json("user", "show", "oUser1", settings=moved)["state"] == STATE_BANNED


def test_a_person_is_told_what_was_moved_and_what_to_do_next(here: Place, other: str) -> None:
    fill(here)
    said = here.run("store", "migrate", "--to", other).stdout
    for words in ("logins", "57", "was read again and is in the other store", "set AUTHSVC_STORE", "Left out"):
        assert words in said
    assert "copying" not in said


def test_what_came_in_between_is_fetched_when_the_command_is_given_again(here: Place, other: str) -> None:
    fill(here)
    here.run("store", "migrate", "--to", other)
    here.log_in("late", openid="oUser3", at=here.now + 50)
    here.log_in("late", openid="oLate")
    here.run("user", "ban", "oUser4")
    with closing(open_store(other)) as there:
        # The service has changed over meanwhile, and this one has come back there.
        at = here.now + 60
        row = LoginRow(here.user("oUser7"), "there", b"sealed", at * 1_000_000, at, at + 3600)
        there.put_login(row, unionid=None)
        assert here.json("store", "migrate", "--to", other)["whole"] is True
        assert there.logins(here.user("oUser3"), now=here.now)[0].sid == "late"
        assert there.user(here.user("oLate")) is not None
        banned = there.user(here.user("oUser4"))
        assert banned is not None
        assert banned.state == STATE_BANNED
        assert there.logins(here.user("oUser7"), now=here.now)[0].sid == "there"


@pytest.mark.parametrize("to", ENGINES)
def test_what_was_done_to_users_on_the_other_store_since_stays_done(tmp_path: Path, to: str) -> None:
    (tmp_path / "other").mkdir()
    with place("sqlite", tmp_path) as here, engine(to, tmp_path / "other") as url:
        for n in range(6):
            here.log_in("sid-1", openid=f"oUser{n}", at=here.now - 50)
        here.run("user", "ban", "oNever")
        here.log_in(openid="oGone", at=here.now - 50)
        here.run("user", "ban", "oGone")
        here.run("user", "forget", "oGone", "--yes")
        here.run("store", "migrate", "--to", url)
        moved = {"STORE": url}
        time.sleep(1.1)  # times are whole seconds
        for command in (
            ["ban", "oUser0"],
            ["forget", "oUser0", "--yes"],
            ["forget", "oUser1", "--yes"],
            ["unban", "oNever"],
            ["unban", "oGone"],
            ["ban", "oUser2"],
        ):
            here.run("user", *command, settings=moved)
        here.log_in("sid-2", openid="oUser3")
        with closing(open_store(url)) as there:
            renewed = there.logins(here.user("oUser4"), now=here.now)
            by = replace(renewed[0], sealed_session_key=b"renewed")
            there.replace_logins(here.user("oUser4"), renewed, by=by)
            assert here.json("store", "migrate", "--to", url)["whole"] is True
            found = {name: there.user(here.user(name)) for name in ("oUser0", "oUser1", "oNever", "oGone", "oUser2")}
            assert {name: row and row.state for name, row in found.items()} == {
                "oUser0": STATE_BANNED,
                "oUser1": None,
                "oNever": None,
                "oGone": None,
                "oUser2": STATE_BANNED,
            }
            assert [there.logins(here.user(f"oUser{n}"), now=here.now) for n in (0, 1)] == [(), ()]
            assert len(there.logins(here.user("oUser3"), now=here.now)) == 2
            assert there.logins(here.user("oUser4"), now=here.now) == (by,)


def test_a_login_that_a_renewal_on_the_other_store_has_dropped_does_not_come_back(here: Place, other: str) -> None:
    for n in range(2):
        here.log_in(f"sid-{n}", at=here.now - 1000 + n, ttl_s=7200)
    here.run("store", "migrate", "--to", other)
    with closing(open_store(other)) as there:
        rows = there.logins(here.user(), now=here.now)
        by = replace(rows[0], sealed_session_key=b"renewed")
        there.replace_logins(here.user(), rows, by=by)
        found = here.json("store", "migrate", "--to", other)
        assert found["whole"] is True
        assert there.logins(here.user(), now=here.now) == (by,)


def test_while_a_store_is_moved_nobody_is_forgotten_or_let_in_on_the_old_one(here: Place, other: str) -> None:
    fill(here)
    here.run("store", "migrate", "--to", other)
    for command in (["forget", "oUser5", "--yes"], ["unban", "oUser0"]):
        assert "being copied" in here.run("user", *command, status=2).stderr
    here.run("user", "ban", "oUser6")
    moved = {"STORE": other}
    here.run("user", "forget", "oUser5", "--yes", settings=moved)
    here.run("user", "unban", "oUser0", settings=moved)


def test_a_move_that_was_interrupted_goes_on_where_it_was(here: Place, other: str, tmp_path: Path) -> None:
    for n in range(3_000):
        here.log_in(openid=f"oUser{n:04}")
    environment = clean_environment(**here.settings)
    command = [sys.executable, "-m", "authsvc", "store", "migrate", "--to", other, "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    prepare_store(other)
    with closing(open_store(other)) as there:
        give_up_at = time.monotonic() + 30
        while len(rows_of(there, UserRow)) < 1_000:
            assert process.poll() is None, "it was done before it could be interrupted"
            assert time.monotonic() < give_up_at
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done = len(rows_of(there, UserRow)) + len(rows_of(there, LoginRow))
        assert done < 6_000
        read = _pages_read(here, other)
        assert read < 6_000, "it began again from the beginning"
        assert same(here, there)
        assert _pages_read(here, other) == 0, "what is there is not copied again"


def _pages_read(here: Place, other: str) -> int:
    """Go on with the move in this process, and count what is copied on the way."""
    from authsvc.storecopy import StoreCopy

    told: list[int] = []
    with closing(open_store(other)) as target:
        copy = StoreCopy(
            here.store,
            target,
            users=here.users,
            source_name=str(here.path / "authsvc.db"),
            now=lambda: here.now,
            told=lambda _kind, rows: told.append(rows),
        )
        assert all(one.rows == one.found for one in copy.run())
    return sum(told)


def test_a_store_with_hashes_in_place_of_openids_is_made_of_one_with_openids(
    here: Place, other: str, tmp_path: Path
) -> None:
    fill(here)
    hashed = {"STORE_OPENID": "hash"}
    found = here.json("store", "migrate", "--to", other, settings=hashed)
    assert found["whole"] is True
    kinds = {kind["kind"]: kind for kind in found["kinds"]}
    assert (kinds["users"]["rows"], kinds["logins"]["rows"], kinds["logins"]["left_out"]) == (21, 0, 58)
    moved = {"STORE": other, **hashed}
    assert here.json("user", "show", "oUser0", settings=moved)["state"] == STATE_BANNED
    assert here.json("user", "show", "oUser1", settings=moved)["state"] == STATE_BANNED
    assert here.json("user", "show", "oUser2", settings=moved)["unionid"] == "uUnion"
    assert not any(b"oUser" in file.read_bytes() for file in tmp_path.glob("other.db*"))


def test_hashes_are_not_turned_back_into_openids(tmp_path: Path, other: str) -> None:
    with place("sqlite", tmp_path, hashed=True) as here:
        here.log_in()
        refused = here.run("store", "migrate", "--to", other, status=2, settings={"STORE_OPENID": "clear"})
    assert "nobody turns back" in refused.stderr


def test_the_address_of_the_other_store_may_come_from_standard_input(here: Place, other: str, tmp_path: Path) -> None:
    here.log_in()
    command = [sys.executable, "-m", "authsvc", "store", "migrate", "--to", "-", "--json"]
    environment = clean_environment(**here.settings)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input=f"{other}\n", text=True, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["target"] == str(tmp_path / "other.db")


def test_a_store_is_not_moved_into_itself(here: Place) -> None:
    assert "already" in here.run("store", "migrate", "--to", here.url, status=2).stderr


@pytest.mark.parametrize("to", ["x://y", "sqlite://", "redis://user:SECRETMARKER@h/x"])
def test_a_target_that_is_none_is_refused_without_being_repeated(here: Place, to: str) -> None:
    refused = here.run("store", "migrate", "--to", to, status=2)
    assert "SECRETMARKER" not in refused.stderr + refused.stdout


def test_a_target_that_does_not_answer_is_said_without_its_password(here: Place) -> None:
    here.log_in()
    refused = here.run("store", "migrate", "--to", "redis://user:SECRETMARKER@127.0.0.1:1/0", status=2)
    assert "127.0.0.1:1" in refused.stderr
    assert "SECRETMARKER" not in refused.stderr + refused.stdout


def test_what_was_done_to_a_store_is_one_line_of_the_audit_log(here: Place, other: str) -> None:
    for command, event in ((("migrate", "--to", other), "store_copied"), (("adopt", "--yes"), "store_adopted")):
        (line,) = audit_lines(here.run("store", *command).stderr)
        assert (line["event"], "@" in line["by"], bool(line["store"])) == (event, True, True)


def test_the_service_goes_on_while_its_store_is_moved_and_on_the_other_one_after(
    tmp_path: Path, wechat: Running, other: str
) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        tokens = {f"user-{n}": it.token(f"user-{n}") for n in range(30)}
        command = [sys.executable, "-m", "authsvc", "store", "migrate", "--to", other, "--json"]
        environment = clean_environment(APPID=APPID)
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
        n = 30
        while process.poll() is None:
            tokens[f"user-{n}"] = it.token(f"user-{n}")
            n += 1
        assert json.loads(process.communicate()[0])["source"] == str(tmp_path / "authsvc.db")
        data = {user: it.order("open_data", user=user) for user in tokens}
    with service(tmp_path, wechat_url=wechat.url, STORE=other) as it:
        assert subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
        for user, token in tokens.items():
            verified = it.ask("verify", token, {name: data[user][name] for name in ("rawData", "signature")})
            assert verified.json() == {"valid": True}
    assert os.stat(tmp_path / "other.db").st_mode & 0o077 == 0
