"""The commands on a user, as operators run them: what they do, what they say, how they end."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from authsvc.encoding import base64url_decode
from authsvc.store import STATE_ACTIVE, STATE_BANNED
from tests.support.commands import audit_lines
from tests.support.databases import MARIADB, POSTGRESQL, REDIS, database, redis_place
from tests.support.place import OPENID, SESSION_KEY, Place
from tests.support.service import APPID, OTHER_APPID, OTHER_SECRET, SECRET, Running, authsvc, service


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path, f"sqlite:///{tmp_path}/authsvc.db")
    with closing(place.store):
        yield place


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "redis"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The same on each engine."""
    match request.param:
        case "sqlite":
            url = f"sqlite:///{tmp_path}/authsvc.db"
        case "redis":
            url = request.getfixturevalue("redis")
        case server:
            url = request.getfixturevalue(server)
    place = Place(tmp_path, url)
    with closing(place.store):
        yield place


@pytest.fixture
def postgresql() -> Iterator[str]:
    with database(POSTGRESQL) as url:
        yield url


@pytest.fixture
def mariadb() -> Iterator[str]:
    with database(MARIADB) as url:
        yield url


@pytest.fixture
def redis() -> Iterator[str]:
    with redis_place(REDIS) as url:
        yield url


# ---- one life, on every engine ------------------------------------------------------------------


def test_a_user_is_shown_banned_forgotten_and_let_in_again(anywhere: Place) -> None:
    here = anywhere
    here.log_in()
    assert here.json("user", "show", OPENID)["state"] == STATE_ACTIVE
    assert here.json("user", "ban", OPENID, "--reason", "spam")["changed"] is True
    shown = here.json("user", "show", OPENID)
    assert (shown["state"], shown["state_since"] >= here.now) == (STATE_BANNED, True)
    forgotten = here.json("user", "forget", OPENID, "--yes")
    assert (forgotten["logins"], forgotten["ban_stays"]) == (1, True)
    shown = here.json("user", "show", OPENID)
    assert (shown["state"], shown["unionid"], shown["first_login_at"], shown["logins"]) == (
        STATE_BANNED,
        None,
        None,
        [],
    )
    assert here.json("user", "unban", OPENID)["changed"] is True
    assert here.json("user", "show", OPENID, status=1)["known"] is False
    here.log_in("sid-2")
    lines = here.json("user", "audit", OPENID)["lines"]
    assert sorted(line["what"] for line in lines) == ["ban", "forget", "unban"]
    assert {line["digest"] for line in lines} == {here.user().digest}
    assert [line.get("reason") for line in lines if line["what"] == "ban"] == ["spam"]


# ---- what is said -------------------------------------------------------------------------------


def test_a_person_is_told_in_words(here: Place) -> None:
    here.log_in()
    assert OPENID in here.run("user", "show", OPENID).stdout
    assert "may log in" in here.run("user", "show", OPENID).stdout
    assert f"{OPENID} is banned in {APPID}" in here.run("user", "ban", OPENID, "--reason", "[red]spam").stdout
    assert "already; nothing was changed" in here.run("user", "ban", OPENID).stdout
    assert "banned, since" in here.run("user", "show", OPENID).stdout
    assert "[red]spam" in here.run("user", "audit").stdout
    assert "1 login erased. The ban stays" in here.run("user", "forget", OPENID, "--yes").stdout
    assert "Nothing but the ban" in here.run("user", "forget", OPENID, "--yes", status=1).stdout
    assert "may log in" in here.run("user", "unban", OPENID).stdout
    assert "is not banned" in here.run("user", "unban", OPENID).stdout
    assert "Nothing is known" in here.run("user", "show", OPENID, status=1).stdout
    assert "Nothing is known" in here.run("user", "forget", OPENID, status=1).stdout


def test_an_export_has_all_that_is_kept_but_no_key_and_is_itself_in_the_audit_log(here: Place) -> None:
    here.log_in()
    here.run("user", "ban", OPENID)
    done = here.run("user", "export", OPENID, "--reason", "asked for it")
    found = json.loads(done.stdout)
    assert (found["openid"], found["appid"], found["unionid"]) == (OPENID, APPID, "uUnion")
    assert [(login["sid"], login["opens"]) for login in found["logins"]] == [("sid-1", True)]
    assert [line["what"] for line in found["audit"]] == ["ban"]
    assert SESSION_KEY not in done.stdout
    assert here.lines()[-1].what == "export"
    assert here.lines()[-1].reason == "asked for it"


def test_a_line_says_who_gave_the_command(here: Place) -> None:
    here.log_in()
    here.run("user", "ban", OPENID, "--by", "王 of support")
    here.run("user", "unban", OPENID)
    assert {line.what: line.actor for line in here.lines()}["ban"] == "王 of support"
    assert "@" in {line.what: line.actor for line in here.lines()}["unban"]


def test_what_was_done_to_a_user_is_one_line_of_the_audit_log_without_the_openid(here: Place) -> None:
    here.log_in()
    acts = {"ban": "user_banned", "export": "user_exported", "forget": "user_forgotten", "unban": "user_unbanned"}
    for act, event in acts.items():
        done = here.run("user", act, OPENID, "--reason", "spam", *(["--yes"] if act == "forget" else []))
        (line,) = audit_lines(done.stderr)
        assert (line["event"], line["by"], line["appid"], line["reason"]) == (
            event,
            next(kept.actor for kept in here.lines() if kept.what == act),
            APPID,
            "spam",
        )
        assert line["user"] == here.keyring.pseudonym(APPID, OPENID), "as in the lines about requests"
        assert OPENID not in done.stderr
    for act in ("show", "unban", "forget"):
        status = 0 if act == "unban" else 1
        assert audit_lines(here.run("user", act, OPENID, status=status).stderr) == []
    (line,) = audit_lines(here.run("user", "ban", OPENID, "--by", "王 of support").stderr)
    assert line["by"] == "王 of support"
    assert "reason" not in line
    assert audit_lines(here.run("user", "ban", OPENID).stderr) == [], "banned already"


def test_who_does_not_confirm_forgets_nobody(here: Place) -> None:
    here.log_in()
    # With nothing to read an answer from; not 1, which says that there is nobody to forget.
    done = here.run("user", "forget", OPENID, status=2)
    assert "cannot be undone" in done.stdout
    assert "nothing was changed: nobody confirmed it" in done.stderr
    assert here.json("user", "show", OPENID)["known"] is True
    assert here.lines() == []


# ---- which user ---------------------------------------------------------------------------------


def test_with_several_mini_programs_one_has_to_be_named(here: Place) -> None:
    apps = {"APPS": json.dumps({APPID: SECRET, OTHER_APPID: OTHER_SECRET}), "APPID": ""}
    here.log_in()
    here.log_in(appid=OTHER_APPID)
    refused = here.run("user", "ban", OPENID, status=2, settings=apps)
    assert APPID in refused.stderr
    assert OTHER_APPID in refused.stderr
    here.run("user", "ban", OPENID, "--appid", OTHER_APPID, settings=apps)
    assert here.json("user", "show", OPENID, "--appid", APPID, settings=apps)["state"] == STATE_ACTIVE
    assert here.json("user", "show", OPENID, "--appid", OTHER_APPID, settings=apps)["state"] == STATE_BANNED


def test_an_appid_that_the_settings_do_not_have_is_pointed_out(here: Place) -> None:
    assert "none of the mini-programs" in here.run("user", "ban", OPENID, "--appid", "wx-old").stderr
    assert here.json("user", "show", OPENID, "--appid", "wx-old")["state"] == STATE_BANNED


def test_a_shell_without_any_mini_program_has_to_name_one(here: Place) -> None:
    assert "--appid" in here.run("user", "show", OPENID, status=2, settings={"APPID": ""}).stderr
    here.run("user", "ban", OPENID, "--appid", APPID, settings={"APPID": ""})


@pytest.mark.parametrize("openid", ["", "a b", "x" * 129, "名", "#" + "0" * 32])
def test_what_is_no_openid_is_refused(here: Place, openid: str) -> None:
    assert "openid is 1 to 128" in here.run("user", "ban", openid, status=2).stderr
    assert here.lines() == []


@pytest.mark.parametrize("option", ["--reason", "--by"])
@pytest.mark.parametrize("text", ["x" * 300, "two\nlines"])
def test_what_is_no_line_is_refused(here: Place, option: str, text: str) -> None:
    assert "one line" in here.run("user", "ban", OPENID, option, text, status=2).stderr
    assert here.lines() == []


def test_a_ban_of_somebody_who_has_never_come_is_pointed_out(here: Place) -> None:
    here.log_in()
    assert "is it the right one?" in here.run("user", "ban", "oTypo").stdout
    assert here.json("user", "ban", "oTypo2")["known"] is False
    assert "is it the right one?" not in here.run("user", "ban", OPENID).stdout


def test_who_gives_a_command_is_known_without_a_name_too(here: Place) -> None:
    for variable, value, expected in (("SUDO_USER", "alice", "alice@"), ("SUDO_USER", "evil\nroot", "@")):
        before = len(here.lines())
        environment = {**os.environ, **{f"AUTHSVC_{n}": v for n, v in here.settings.items()}, variable: value}
        command = [sys.executable, "-m", "authsvc", "user", "ban", f"oUser{before}"]
        assert subprocess.run(command, cwd=here.path, env=environment, check=False).returncode == 0
        (line,) = [line for line in here.lines() if line.digest == here.user(f"oUser{before}").digest]
        assert expected in line.actor
        assert "\n" not in line.actor
    assert "--by is empty" in here.run("user", "ban", OPENID, "--by", " ", status=2).stderr


# ---- where --------------------------------------------------------------------------------------


def test_in_a_folder_without_a_store_nobody_is_banned_in_a_new_one(here: Place) -> None:
    refused = here.run("user", "ban", OPENID, status=2, settings={"STORE": "sqlite:///elsewhere.db"})
    assert "there is no side store" in refused.stderr
    assert not (here.path / "elsewhere.db").exists()


def test_a_shell_that_names_users_otherwise_than_the_service_bans_nobody(here: Place) -> None:
    here.log_in()
    refused = here.run("user", "ban", OPENID, status=2, settings={"STORE_OPENID": "hash"})
    assert "STORE_OPENID has to be clear" in refused.stderr
    assert here.json("user", "show", OPENID)["state"] == STATE_ACTIVE


def test_a_shell_with_another_key_folder_bans_nobody(here: Place, tmp_path: Path) -> None:
    here.log_in()
    (tmp_path / "elsewhere").mkdir()
    Place(tmp_path / "elsewhere", f"sqlite:///{tmp_path}/elsewhere/authsvc.db").store.close()
    other = {"KEYS": str(tmp_path / "elsewhere" / "keys")}
    for command in (["ban", OPENID], ["forget", OPENID, "--yes"], ["show", OPENID]):
        assert "not the key folder of this side store" in here.run("user", *command, status=2, settings=other).stderr
    assert here.lines() == []
    assert "nobody confirmed it" in here.run("store", "adopt", status=2, settings=other).stderr
    adopted = here.run("store", "adopt", "--yes", settings=other)
    assert "will be found no more" in adopted.stdout
    here.run("user", "ban", OPENID, settings=other)
    assert here.run("user", "show", OPENID, status=2).stderr


def test_a_store_of_another_version_is_left_as_it_is(here: Place, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "authsvc.db", isolation_level=None)) as database:
        database.execute("UPDATE alembic_version SET version_num = '0003'")
    for command in (["user", "ban", OPENID], ["store", "status"], ["store", "purge"]):
        assert "of another version of authsvc" in here.run(*command, status=2).stderr


@pytest.mark.parametrize("name", ["sqlite", "postgresql", "redis"])
def test_where_there_is_no_store_yet_none_is_made(
    request: pytest.FixtureRequest, tmp_path: Path, here: Place, name: str
) -> None:
    match name:
        case "sqlite":
            url = f"sqlite:///{tmp_path}/empty.db"
            (tmp_path / "empty.db").touch(0o600)
        case _:
            url = request.getfixturevalue(name)
    for _ in range(2):
        assert "there is no side store in" in here.run("user", "ban", OPENID, status=2, settings={"STORE": url}).stderr


def test_where_the_store_has_hashes_the_commands_take_the_openid(tmp_path: Path) -> None:
    here = Place(tmp_path, f"sqlite:///{tmp_path}/authsvc.db", hashed=True)
    with closing(here.store):
        here.log_in()
        here.run("user", "ban", OPENID)
        shown = here.json("user", "show", OPENID)
        assert (shown["openid"], shown["state"], shown["logins"][0]["opens"]) == (OPENID, STATE_BANNED, True)
        here.run("user", "forget", OPENID, "--yes")
        here.run("user", "unban", OPENID)
    assert not any(OPENID.encode() in file.read_bytes() for file in tmp_path.glob("authsvc.db*"))


def test_a_ban_is_met_by_the_running_service_at_once_and_lifted_at_once(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        token = it.token("someone")
        openid = json.loads(base64url_decode(token.split(".")[1]))["openid"]

        def user(*args: str) -> None:
            assert authsvc("user", *args, cwd=tmp_path, APPID=APPID).returncode == 0

        user("ban", openid)
        refused = it.log_in(it.mint("someone"))
        assert (refused.status_code, refused.json()["code"]) == (403, "user_banned")
        assert it.check(token)["is_login"] is True, "tokens that are out stay good"
        user("forget", openid, "--yes")
        assert it.log_in(it.mint("someone")).status_code == 403
        user("unban", openid)
        assert it.log_in(it.mint("someone")).status_code == 200
