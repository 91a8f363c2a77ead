"""The mini-program's README: its commands run, its error tables are whole, its code for frameworks logs in."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Final

import pytest

from authsvc.http.problems import PROBLEMS
from tests.support.screen import screen
from tests.support.service import APPID, Service, authsvc

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ROOT / "authsvc" / "miniprogram"
README: Final = (SHIPPED / "README.md").read_text("utf-8")
CHINESE, ENGLISH = README.split("\n---\n")
HALVES: Final = pytest.mark.parametrize("half", [CHINESE, ENGLISH], ids=["Chinese", "English"])

# Those of auth.js itself.
CLIENT_CODES: Final = {
    *("wx_login_failed", "no_code", "timeout", "offline", "bad_answer", "given_up", "logged_out"),
}


def _rows(half: str) -> dict[str, str]:
    """Code → what the user is told."""
    rows: dict[str, str] = {}
    for codes, told, todo in re.findall(
        r"^\| ((?:`[a-z_]+`(?:, )?)+) \| ([^|`]+) \| ([^|]+) \|$", half, flags=re.MULTILINE
    ):
        assert todo.strip()
        for code in re.findall(r"`([a-z_]+)`", codes):
            assert code not in rows, code
            rows[code] = told
    return rows


@HALVES
def test_the_error_table_has_every_code_that_there_is_and_no_other(half: str) -> None:
    assert _rows(half).keys() == PROBLEMS.keys() | CLIENT_CODES


def test_the_codes_of_the_library_are_those_of_the_table() -> None:
    library = (SHIPPED / "auth.js").read_text("utf-8")
    named = set(re.findall(r"'([a-z]+(?:_[a-z]+)*)'", library))
    assert named >= CLIENT_CODES
    assert set(re.findall(r"new AuthError\('([a-z_]+)'", library)) <= CLIENT_CODES


def test_the_user_is_told_what_the_table_says(node: str) -> None:
    program = f"process.stdout.write(JSON.stringify(require({json.dumps(str(SHIPPED / 'errors.js'))}).TEXTS))"
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == _rows(CHINESE)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ({"code": "user_banned"}, "这个账号已停用，如有疑问请联系客服 [user_banned]"),
        ({"code": "rate_limited", "retryAfter": 60}, "操作太频繁，请稍后再试（约 60 秒后） [rate_limited]"),
        ({"code": "given_up", "retryAfter": 299.5}, "服务暂时不可用，请稍后再试（约 5 分钟后） [given_up]"),
        ({"code": "new_one"}, "服务暂时不可用，请稍后再试 [new_one]"),
        ({"code": "constructor"}, "服务暂时不可用，请稍后再试 [constructor]"),
        ({}, "服务暂时不可用，请稍后再试 [unknown]"),
        ("<html>", "服务暂时不可用，请稍后再试 [unknown]"),
    ],
)
def test_an_error_becomes_a_sentence_whatever_it_is(node: str, error: object, sentence: str) -> None:
    module = json.dumps(str(SHIPPED / "errors.js"))
    program = f"process.stdout.write(require({module}).explain({json.dumps(error)}))"
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == sentence


def _block(half: str, language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", half, flags=re.MULTILINE | re.DOTALL)
    return str(block)


def test_both_halves_show_the_same_code() -> None:
    for language in ("js taro", "js uni"):
        assert _block(CHINESE, language) == _block(ENGLISH, language)
    commands = [re.sub("你的AppSecret|your-AppSecret", "", half) for half in (CHINESE, ENGLISH)]
    for line in ("export AUTHSVC_APPID=", "make keys ", "make run ", ".venv/bin/authsvc miniprogram shop"):
        first, second = (re.findall(rf"^{re.escape(line)}[^#\n]*", half, flags=re.MULTILINE) for half in commands)
        assert first == second
        assert len(first) == 1


@HALVES
def test_the_commands_exist_and_write_a_mini_program(half: str, tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert set(re.findall(r"make ([a-z]+)", half)) <= set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    (line,) = re.findall(r"^\.venv/bin/authsvc (miniprogram .*)$", half, flags=re.MULTILINE)
    done = authsvc(*shlex.split(line), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shop" / "app.js").is_file()


@HALVES
def test_what_is_said_of_a_mock_code_and_of_another_appid_is_what_the_service_answers(
    half: str, shared_service: Service
) -> None:
    mock = shared_service.log_in("the code is a mock one", appid=APPID)
    assert (mock.status_code, mock.json()["code"]) == (400, "bad_request")
    assert "no real appid" in mock.json()["detail"]
    other = shared_service.log_in(appid="wx0000000000000000")
    assert (other.status_code, other.json()["code"]) == (400, "bad_request")
    assert f"`{other.json()['detail']}`" in " ".join(half.split())
    unknown = shared_service.log_in("never-minted")
    assert (unknown.status_code, unknown.json()["code"]) == (401, "code_invalid")
    assert "`the code is a mock one`" in half
    assert "400 `bad_request`" in half
    assert "401 `code_invalid`" in half


@pytest.mark.parametrize(("language", "name"), [("js taro", "Taro"), ("js uni", "uni")])
def test_the_same_library_logs_in_where_a_framework_hands_in_its_own_wx(
    tmp_path: Path, shared_service: Service, node: str, language: str, name: str
) -> None:
    shop = tmp_path / "shop"
    done = authsvc("miniprogram", str(shop), "--url", shared_service.url, "--appid", APPID, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = _block(CHINESE, language).replace("https://login.example.com", shared_service.url)
    # What a bundler makes of it; the framework itself is the global that the phone has in place of wx.
    bundled = re.sub(r"^import \w+ from '@.*\n", "", shown, flags=re.MULTILINE)
    bundled = re.sub(r"^import (.*) from ('.*')", r"const \1 = require(\2)", bundled, flags=re.MULTILINE)
    bundled = bundled.replace("export const", "const")
    (shop / "app.js").write_text(f"{bundled}\nApp({{ auth, onLaunch () {{}} }})\n")
    with screen(
        node, shop, sandbox_url=shared_service.sandbox_url, storage=tmp_path / "storage.json", name=name
    ) as phone:
        launched = phone.order("launch")
        assert (launched["events"], launched["data"]["state"]) == (["wx.login", "POST /login"], "已登录")
        phone.press("退出登录")
        phone.order("offline", on=True)
        assert "[" in phone.press("重新登录")["data"]["error"]
