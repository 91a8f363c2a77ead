"""The mini-program that `authsvc miniprogram` writes, on a phone that Node plays, at the real service: launched, looked
at, and each of its buttons pressed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from authsvc.encoding import base64url_decode
from tests.support.screen import Screen, screen
from tests.support.service import APPID, Service, authsvc

LEFT: Final = re.compile(r"(119|120) 分 [0-9]+ 秒")  # of the two hours of a token
CHECK, LOGOUT, LOGIN, PHONE = "检查登录", "退出登录", "重新登录", "获取手机号"


@pytest.fixture
def folder(tmp_path: Path, shared_service: Service) -> Path:
    return _write(tmp_path / "shop", shared_service.url)


def _write(folder: Path, url: str) -> Path:
    done = authsvc("miniprogram", str(folder), "--url", url, "--appid", APPID, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def phone(folder: Path, shared_service: Service, node: str) -> Iterator[Screen]:
    with _phone(folder, shared_service, node) as it:
        yield it


@contextlib.contextmanager
def _phone(folder: Path, it: Service, node: str) -> Iterator[Screen]:
    storage = folder.parent / "storage.json"
    with screen(node, folder, sandbox_url=it.sandbox_url, storage=storage) as found:
        yield found


def _openid(it: Service) -> str:
    openid: str = json.loads(base64url_decode(it.token("screen").split(".")[1]))["openid"]
    return openid


def _enabled(shown: dict[str, Any]) -> list[str]:
    return [button["text"] for button in shown["buttons"] if not button["disabled"]]


def test_the_first_launch_logs_in_once_and_shows_who_and_how_long(phone: Screen, shared_service: Service) -> None:
    shown = phone.order("launch")
    assert shown["events"] == ["wx.login", "POST /login"]
    assert shown["at_once"] == "登录中…"
    data = shown["data"]
    assert (data["loggedIn"], data["state"], data["said"], data["error"]) == (True, "已登录", "", "")
    openid = _openid(shared_service)
    assert data["openid"] == openid[-4:]
    assert LEFT.fullmatch(data["left"])
    assert shown["texts"] == ["登录状态", "已登录", "openid 末四位", openid[-4:], "令牌剩余时间", data["left"]]
    assert _enabled(shown) == [CHECK, LOGOUT, PHONE]
    assert openid not in json.dumps(data)


def test_the_second_launch_asks_nobody(folder: Path, shared_service: Service, node: str) -> None:
    with _phone(folder, shared_service, node) as it:
        it.order("launch")
    with _phone(folder, shared_service, node) as it:
        shown = it.order("launch")
    assert (shown["events"], shown["data"]["state"]) == ([], "已登录")


def test_the_check_button_asks_the_service(phone: Screen) -> None:
    phone.order("launch")
    shown = phone.press(CHECK)
    assert (shown["events"], shown["data"]["said"]) == (["GET /checklogin"], "服务确认：已登录")


def test_the_logout_button_forgets_and_the_login_button_logs_in_again(phone: Screen) -> None:
    phone.order("launch")
    shown = phone.press(LOGOUT)
    assert (shown["events"], shown["at_once"]) == ([], "未登录")
    assert (shown["data"]["state"], shown["data"]["said"]) == ("未登录", "已退出登录")
    assert shown["texts"] == ["登录状态", "未登录", "已退出登录"]
    assert _enabled(shown) == [CHECK, LOGIN]
    shown = phone.press(LOGIN)
    assert shown["events"] == ["wx.login", "POST /login"]
    assert (shown["data"]["state"], shown["data"]["said"]) == ("已登录", "已重新登录")


def test_the_phone_button_shows_the_end_of_the_number(phone: Screen, shared_service: Service) -> None:
    phone.order("launch")
    code = shared_service.order("phone_code", user="screen", phone="13800135678")["code"]
    shown = phone.press(PHONE, code=code, errMsg="getPhoneNumber:ok")
    assert (shown["events"], shown["data"]["said"]) == (["POST /session/phone"], "手机号末四位：5678")
    shown = phone.press(PHONE, code=code, errMsg="getPhoneNumber:ok")
    assert shown["data"]["error"] == "没有拿到手机号，请再点一次按钮 [phone_code_invalid]"


@pytest.mark.parametrize(
    ("said", "shown"),
    [("fail user deny", "你没有同意使用手机号"), ("fail no permission", "暂时不能获取手机号")],
)
def test_a_phone_number_that_is_not_given_is_asked_for_nowhere(phone: Screen, said: str, shown: str) -> None:
    phone.order("launch")
    after = phone.press(PHONE, errMsg=f"getPhoneNumber:{said}")
    assert (after["events"], after["data"]["error"]) == ([], shown)
    assert after["texts"][-1] == shown


def test_without_a_network_the_user_is_told_and_can_try_again(phone: Screen) -> None:
    phone.order("launch")
    phone.press(LOGOUT)
    phone.order("offline", on=True)
    shown = phone.press(LOGIN)
    assert shown["data"]["state"] == "未登录"
    assert re.fullmatch(r".*请检查网络.* \[wx_login_failed\]", shown["data"]["error"])
    assert LOGIN in _enabled(shown)


def test_a_user_whom_wechat_blocks_is_told_so(phone: Screen, shared_service: Service) -> None:
    shared_service.fault("code_blocked")
    shown = phone.order("launch")
    assert shown["data"]["state"] == "未登录"
    assert shown["data"]["error"] == "微信判断这个账号有风险，暂时不能登录 [user_blocked]"
    assert shown["events"] == ["wx.login", "POST /login"]


def test_the_time_that_is_left_goes_on_without_anybody_asking(phone: Screen) -> None:
    before = phone.order("launch")["data"]["left"]
    shown = phone.order("wait", ms=2_100)
    assert shown["events"] == []
    assert LEFT.fullmatch(shown["data"]["left"])
    assert shown["data"]["left"] != before
