"""`/session/…` for real: service and simulator as processes, a mini-program's data, a back end's questions."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.processes import until
from tests.support.service import (
    APPID,
    OTHER_APPID,
    OTHER_SECRET,
    SECRET,
    SERVICE_TOKEN,
    Running,
    Service,
    sandbox,
    service,
)

APPS = json.dumps({APPID: SECRET, OTHER_APPID: ["old-secret-of-the-other-app", OTHER_SECRET]})


@pytest.fixture(scope="module")
def wechat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with sandbox(tmp_path_factory.mktemp("wechat"), more={OTHER_APPID: OTHER_SECRET}) as it:
        yield it


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory, wechat: Running) -> Iterator[Service]:
    """A service of two apps, whose first secret for the second one is out of date, in two processes."""
    folder = tmp_path_factory.mktemp("service")
    with service(
        folder, wechat_url=wechat.url, APPS=APPS, SERVICE_TOKENS=SERVICE_TOKEN, WORKERS="2", WECHAT_TIMEOUT="2"
    ) as running:
        yield running


def log_in(it: Service, user: str, appid: str = APPID, **options: object) -> str:
    reply = it.log_in(it.mint(user, appid=appid, **options), appid=appid)
    assert reply.status_code == 200, reply.text
    token: str = reply.json()["token"]
    return token


def payload(token: str) -> dict[str, object]:
    part = token.split(".")[1]
    members: dict[str, object] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return members


def problem(reply: requests.Response) -> tuple[int, str]:
    return reply.status_code, reply.json().get("code", "")


@contextmanager
def never_ending(url: str, count: int, *headers: str) -> Iterator[None]:
    """Requests that say of a body that it is long, and send none of it."""
    host, _, port = url.removeprefix("http://").partition(":")
    head = "\r\n".join(("POST /session/verify HTTP/1.1", f"Host: {host}:{port}", "Content-Length: 262144", *headers))
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            connection.sendall(f"{head}\r\n\r\n".encode())
        yield


def test_long_bodies_that_never_come_keep_no_user_from_his(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="1") as it:
        greedy, modest = ({"Authorization": f"Bearer {log_in(it, user)}"} for user in ("greedy", "modest"))

        def verify(headers: dict[str, str]) -> requests.Response:
            body = {"rawData": "x" * 200_000, "signature": "0" * 40}
            return requests.post(f"{it.url}/session/verify", json=body, headers=headers, timeout=10)

        with (
            never_ending(it.url, 200),  # 50 MiB
            never_ending(it.url, 200, f"Authorization: {greedy['Authorization']}"),
        ):
            until(lambda: verify(greedy).status_code == 503, within_s=10)
            assert verify(greedy).json()["code"] == "overloaded"
            assert (verify(modest).status_code, verify(modest).json()) == (200, {"valid": False})
            assert verify({}).status_code == 401


@pytest.mark.parametrize("appid", [APPID, OTHER_APPID])
def test_what_wx_gives_the_client_is_opened_and_verified_by_the_service(it: Service, appid: str) -> None:
    token = log_in(it, "reader", appid)
    data = it.order("open_data", user="reader", appid=appid)
    opened = it.ask("decrypt", token, data, service_token=None)
    assert opened.status_code == 200, opened.text
    assert opened.json()["openId"] == payload(token)["openid"]
    assert opened.json()["watermark"]["appid"] == appid
    verified = it.ask("verify", token, {"rawData": data["rawData"], "signature": data["signature"]})
    assert verified.json() == {"valid": True}
    assert it.ask("verify", token, {"rawData": data["rawData"] + " ", "signature": data["signature"]}).json() == {
        "valid": False
    }


def test_a_phone_number_is_given_to_the_user_whose_code_it_is_and_once(it: Service) -> None:
    token, thief = log_in(it, "caller"), log_in(it, "thief")
    code = it.order("phone_code", user="caller", appid=APPID, phone="13800138000")["code"]
    assert problem(it.ask("phone", thief, {"code": code})) == (400, "phone_code_invalid")
    reply = it.ask("phone", token, {"code": code})
    assert reply.status_code == 200, reply.text
    assert reply.json()["purePhoneNumber"] == "13800138000"
    assert reply.json()["countryCode"] == "86"
    assert problem(it.ask("phone", token, {"code": code})) == (400, "phone_code_invalid")
    assert problem(it.ask("phone", token, {"code": it.mint("caller", appid=APPID)})) == (400, "phone_code_invalid")


def test_a_key_is_good_at_wechat_until_another_device_logs_in(it: Service) -> None:
    token = log_in(it, "owner", device="phone")
    assert it.ask("check", token).json() == {"valid": True}
    it.mint("owner", appid=APPID, device="pc")
    assert it.ask("check", token).json() == {"valid": False}
    assert problem(it.ask("reset", token)) == (409, "session_key_gone")
    assert problem(it.ask("decrypt", token, it.order("open_data", user="owner", appid=APPID))) == (
        409,
        "session_key_gone",
    )


def test_after_a_reset_wechat_and_the_service_have_the_same_new_key_and_the_old_one_opens_nothing(it: Service) -> None:
    token = log_in(it, "leaked")
    before = it.order("open_data", user="leaked", appid=APPID)
    assert it.ask("decrypt", token, before).status_code == 200
    assert it.ask("reset", token).json() == {"reset": True}
    assert problem(it.ask("decrypt", token, before)) == (400, "decrypt_failed")
    assert it.ask("check", token).json() == {"valid": True}
    assert it.ask("decrypt", token, it.order("open_data", user="leaked", appid=APPID)).status_code == 200


def test_what_the_service_signs_is_what_wechat_expects(it: Service) -> None:
    # There is no call of WeChat here that takes a signed body; the empty one is checked by `check`. So: the signature
    # is the one under the key that made the data.
    token = log_in(it, "signer")
    first = it.ask("sign", token, {"body": '{"foo":"bar"}'}).json()
    assert first["sig_method"] == "hmac_sha256"
    assert len(first["signature"]) == len(hmac.new(b"", b"", hashlib.sha256).hexdigest())
    assert it.ask("sign", token, {"body": '{"foo":"bar"}'}).json() == first
    it.ask("reset", token)
    assert it.ask("sign", token, {"body": '{"foo":"bar"}'}).json() != first


@pytest.mark.parametrize("finished", [("first", "second"), ("second", "first")])
def test_two_logins_that_race_leave_data_of_either_key_readable_by_either_token(
    it: Service, finished: tuple[str, str]
) -> None:
    user = f"racer-{finished[0]}"
    codes = {"first": it.mint(user, appid=APPID)}
    data = {"first": it.order("open_data", user=user, appid=APPID)}
    codes["second"] = it.mint(user, appid=APPID, new_session_key=True)
    data["second"] = it.order("open_data", user=user, appid=APPID)
    tokens = {}
    for name in finished:
        reply = it.log_in(codes[name], appid=APPID)
        assert reply.status_code == 200, reply.text
        tokens[name] = reply.json()["token"]
    for token in tokens.values():
        for made in data.values():
            assert it.ask("decrypt", token, made).status_code == 200
            signed = {"rawData": made["rawData"], "signature": made["signature"]}
            assert it.ask("verify", token, signed).json() == {"valid": True}


@pytest.mark.parametrize("slow", ["first", "second"])
def test_two_logins_that_are_exchanged_at_once_are_kept_in_the_order_in_which_they_started(
    tmp_path: Path, wechat: Running, slow: str
) -> None:
    with service(tmp_path, wechat_url=wechat.url, SERVICE_TOKENS=SERVICE_TOKEN) as it:
        codes = []
        for name in ("first", "second"):
            delay: dict[str, object] = {"fault": "delay", "delay_s": 1.5} if name == slow else {}
            codes.append(it.mint("parallel", appid=APPID, new_session_key=True, **delay))
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(requests.post, f"{it.url}/login", json={"code": codes[0]}, timeout=30)
            while it.upstream()["jscode2session"] == 0:
                pass
            asked = it.upstream()["jscode2session"]
            second = pool.submit(requests.post, f"{it.url}/login", json={"code": codes[1]}, timeout=30)
            while slow == "first" and it.upstream()["jscode2session"] == asked:
                pass
            tokens = [answer.result().json()["token"] for answer in (first, second)]
        # The newest key is the one that started last, and WeChat says that it is the right one.
        for token in tokens:
            assert it.ask("check", token).json() == {"valid": True}
            for which in ("current", "previous"):
                data = it.order("open_data", user="parallel", appid=APPID, session_key=which)
                assert it.ask("decrypt", token, data).status_code == 200


def test_a_user_of_one_app_reads_nothing_of_the_other(it: Service) -> None:
    mine, other = log_in(it, "both"), log_in(it, "both", OTHER_APPID)
    assert payload(mine)["openid"] != payload(other)["openid"]
    data = it.order("open_data", user="both", appid=OTHER_APPID)
    assert it.ask("decrypt", other, data).status_code == 200
    assert problem(it.ask("decrypt", mine, data)) == (400, "decrypt_failed")
    signed = {"rawData": data["rawData"], "signature": data["signature"]}
    assert it.ask("verify", mine, signed).json() == {"valid": False}
    code = it.order("phone_code", user="both", appid=OTHER_APPID)["code"]
    assert problem(it.ask("phone", mine, {"code": code})) == (400, "phone_code_invalid")


def test_with_several_apps_a_login_names_its_own(it: Service) -> None:
    assert problem(it.log_in(it.mint("nobody", appid=APPID))) == (400, "bad_request")
    assert problem(it.log_in(it.mint("nobody", appid=APPID), appid=OTHER_APPID)) == (401, "code_invalid")


@pytest.mark.parametrize("appid", [APPID, OTHER_APPID])
def test_of_two_processes_with_many_requests_one_fetches_an_access_token(
    tmp_path: Path, wechat: Running, appid: str
) -> None:
    with service(tmp_path, wechat_url=wechat.url, APPS=APPS, SERVICE_TOKENS=SERVICE_TOKEN, WORKERS="2") as it:
        token = log_in(it, "busy", appid)
        assert it.upstream()["jscode2session"], "a login has been"
        before = it.upstream()["stable_token"]
        it.fault("delay", endpoint="stable_token", delay_s=0.3, times=2)
        headers = {"Authorization": f"Bearer {token}", "X-Service-Token": SERVICE_TOKEN}
        start = threading.Barrier(16)

        def check(_: int) -> object:
            start.wait()
            return requests.post(f"{it.url}/session/check", headers=headers, timeout=30).json()

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(check, range(16))) == [{"valid": True}] * 16
        it.fault(None)
        # The second app's first secret is refused once, by a process that does not know it yet.
        assert it.upstream()["stable_token"] - before in ((1,) if appid == APPID else (1, 2))
        files = b"".join(path.read_bytes() for path in tmp_path.glob("authsvc.db*"))
        assert f"access_token {appid}".encode() in files, "it is shared through the store"


@pytest.mark.parametrize("fault", ["access_token_invalid", "access_token_other", "access_token_expired"])
def test_an_access_token_that_wechat_does_not_take_any_more_is_replaced_once(it: Service, fault: str) -> None:
    token = log_in(it, "renewed")
    assert it.ask("check", token).json() == {"valid": True}
    before = it.upstream()
    it.fault(fault, endpoint="checksession")
    assert it.ask("check", token).json() == {"valid": True}
    assert it.upstream()["checksession"] - before["checksession"] == 2
    assert it.upstream()["stable_token"] - before["stable_token"] in (1, 2)
    before = it.upstream()
    it.fault(fault, endpoint="checksession", times=2)
    assert problem(it.ask("check", token)) == (502, "wechat_error")
    assert it.upstream()["checksession"] - before["checksession"] == 2
    assert it.ask("check", token).json() == {"valid": True}


def test_a_login_needs_no_access_token(it: Service) -> None:
    before = it.upstream()["stable_token"]
    it.fault("invalid_appsecret", endpoint="stable_token", times=100)
    assert log_in(it, "plain")
    it.fault(None)
    assert it.upstream()["stable_token"] == before


def test_no_secret_of_it_is_said_or_written(it: Service, tmp_path_factory: pytest.TempPathFactory) -> None:
    token = log_in(it, "whisper")
    data = it.order("open_data", user="whisper", appid=APPID)
    for route, body in (("decrypt", data), ("verify", data), ("sign", {"body": "x"}), ("check", None), ("reset", None)):
        it.ask(route, token, body)
    said = it.output()
    for secret in (token, token.split(".")[2], SECRET, OTHER_SECRET, SERVICE_TOKEN, data["signature"], data["iv"]):
        assert secret not in said
    assert str(payload(token)["openid"]) not in said
    assert '"path": "/session/decrypt"' in said
