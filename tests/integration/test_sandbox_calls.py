"""The sandbox's other calls of WeChat's over real sockets, each with all its faults, and their admin routes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import random
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from authsvc.sandbox.faults import ENDPOINTS, FAULTS
from authsvc.sandbox.server import SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat
from tests.support.clock import FakeClock

APPID, SECRET = "wx0123456789abcdef", "s3cret-0123456789abcdef"
USER, NUMBER = "alice", "13912345678"
JSON_TYPE = "application/json; charset=UTF-8"
TIMEOUT_S = 10


class Sandbox:
    """One sandbox, and a server of ours that asks it."""

    def __init__(self, server: SandboxServer, session: requests.Session, clock: FakeClock) -> None:
        self.server, self.model, self.clock = server, server.model, clock
        self._session = session
        self.openid = server.model.openid(APPID, USER)

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return self._session.request(
            method, self.server.url + path, timeout=TIMEOUT_S, allow_redirects=False, **options
        )

    def admin(self, path: str, **members: object) -> dict[str, Any]:
        reply = self.ask("POST", f"/sandbox/{path}", json=members)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def stable_token(self, **changes: object) -> requests.Response:
        members = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET, **changes}
        return self.ask("POST", "/cgi-bin/stable_token", json={k: v for k, v in members.items() if v is not ...})

    def known_token(self) -> dict[str, Any]:
        return self.model.stable_token(APPID, SECRET, "client_credential")

    def token(self) -> str:
        return str(self.known_token()["access_token"])

    def log_in(self, **order: object) -> str:
        code = self.admin("code", user=USER, **order)["code"]
        return str(self.model.code2session(APPID, SECRET, code, "authorization_code")["session_key"])

    def key(self) -> str:
        """The user's that is valid now."""
        return self.model.session_keys(APPID, self.openid)[0]

    def signed(self, name: str, method: str = "GET", body: bytes | None = None, **changes: str) -> requests.Response:
        parameters = {
            "access_token": self.token(),
            "openid": self.openid,
            "signature": hmac.new(self.key().encode(), body or b"", hashlib.sha256).hexdigest(),
            "sig_method": "hmac_sha256",
        }
        return self.ask(method, f"/wxa/{name}", params=parameters | changes, data=body)

    def phone(self, code: str, **options: Any) -> requests.Response:
        parameters = {"access_token": self.token()}
        options = {"json": {"code": code, "openid": self.openid}, "params": parameters} | options
        return self.ask("POST", "/wxa/business/getuserphonenumber", **options)

    def phone_code(self) -> str:
        return str(self.admin("phone_code", user=USER, phone=NUMBER)["code"])

    def calls(self) -> dict[str, Any]:
        told: dict[str, Any] = self.ask("GET", "/sandbox/calls").json()
        return told


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    """One for all the tests that leave nothing planned behind."""
    clock = FakeClock()
    model = SandboxWeChat({APPID: SECRET}, clock=clock, random_bytes=random.Random(4711).randbytes)
    with SandboxServer(model) as server, requests.Session() as session:
        session.trust_env = False
        sandbox = Sandbox(server, session, clock)
        sandbox.log_in()
        yield sandbox


@pytest.fixture
def sandbox(shared: Sandbox) -> Iterator[Sandbox]:
    yield shared
    for endpoint in ENDPOINTS:
        shared.server.fault_plan(endpoint).clear()


# ---- the calls ----------------------------------------------------------------------------------


def test_a_stable_token_is_the_same_at_each_call(sandbox: Sandbox) -> None:
    first, second = sandbox.stable_token(), sandbox.stable_token(force_refresh=False)
    assert (first.status_code, first.headers["Content-Type"]) == (200, JSON_TYPE)
    assert first.json() == second.json() == sandbox.known_token()


def test_a_stable_token_can_be_forced_anew_and_the_old_one_is_dead(sandbox: Sandbox) -> None:
    old = sandbox.token()
    new = sandbox.stable_token(force_refresh=True).json()["access_token"]
    assert new != old
    assert sandbox.signed("checksession").json()["errcode"] == 0
    assert sandbox.signed("checksession", access_token=old).json()["errcode"] == 40001
    assert sandbox.stable_token(force_refresh=True).json()["errcode"] == 45011
    sandbox.clock.at += 30


@pytest.mark.parametrize(
    ("changes", "errcode"),
    [
        ({"appid": ...}, 41002),
        ({"secret": ...}, 41004),
        ({"grant_type": ...}, 40002),
        ({"grant_type": "authorization_code"}, 40002),
        ({"appid": "wxunknown"}, 40013),
        ({"secret": "wrong"}, 40125),
        ({"appid": 1}, 47001),
        ({"secret": None}, 47001),
        ({"force_refresh": "true"}, 47001),
        ({"force_refresh": 1}, 47001),
    ],
)
def test_a_bad_request_for_a_token_has_its_errcode(sandbox: Sandbox, changes: dict[str, object], errcode: int) -> None:
    reply = sandbox.stable_token(**changes)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, JSON_TYPE)
    assert set(reply.json()) == {"errcode", "errmsg"}
    assert reply.json()["errcode"] == errcode
    assert SECRET not in reply.text


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"appid=wx&secret=s", b"\xff", b'{"appid": "a", "appid": "b"}'])
def test_what_is_not_one_json_object_is_47001(sandbox: Sandbox, body: bytes) -> None:
    assert sandbox.ask("POST", "/cgi-bin/stable_token", data=body).json()["errcode"] == 47001
    assert sandbox.phone("", json=None, data=body).json()["errcode"] == 47001


def test_a_call_with_the_wrong_method_is_told_the_right_one(sandbox: Sandbox) -> None:
    key, code = sandbox.key(), sandbox.phone_code()
    for method in ("GET", "PUT"):
        assert sandbox.ask(method, "/cgi-bin/stable_token").json()["errcode"] == 43002
        reply = sandbox.ask(method, "/wxa/business/getuserphonenumber", params={"access_token": sandbox.token()})
        assert reply.json()["errcode"] == 43002
    for method in ("POST", "DELETE"):
        for name in ("checksession", "resetusersessionkey"):
            assert sandbox.signed(name, method).json()["errcode"] == 43001
    assert sandbox.key() == key
    assert sandbox.phone(code).json()["errcode"] == 0


def test_a_session_key_is_checked(sandbox: Sandbox) -> None:
    reply = sandbox.signed("checksession")
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, JSON_TYPE)
    assert reply.json() == {"errcode": 0, "errmsg": "ok"}
    assert sandbox.signed("checksession", signature="0" * 64).json()["errcode"] == 87009
    assert sandbox.signed("checksession", sig_method="").json()["errcode"] == 87008
    assert sandbox.signed("checksession", openid="oNobody").json()["errcode"] == 40003
    assert sandbox.signed("checksession", access_token="").json()["errcode"] == 41001


def test_the_signature_covers_the_body_that_was_sent(sandbox: Sandbox) -> None:
    assert sandbox.signed("checksession", body=b'{"foo":"bar"}').json()["errcode"] == 0
    over_nothing = hmac.new(sandbox.key().encode(), b"", hashlib.sha256).hexdigest()
    assert sandbox.signed("checksession", body=b"{}", signature=over_nothing).json()["errcode"] == 87009


def test_a_session_key_is_reset(sandbox: Sandbox) -> None:
    old = sandbox.key()
    reply = sandbox.signed("resetusersessionkey")
    assert reply.headers["Content-Type"] == JSON_TYPE
    assert reply.json() == {"errcode": 0, "errmsg": "ok", "openid": sandbox.openid, "session_key": sandbox.key()}
    assert sandbox.key() != old
    assert sandbox.signed("checksession").json()["errcode"] == 0


def test_a_phone_number_is_had_once(sandbox: Sandbox) -> None:
    code = sandbox.phone_code()
    reply = sandbox.phone(code)
    assert reply.headers["Content-Type"] == JSON_TYPE
    assert reply.json()["phone_info"] == {
        "phoneNumber": NUMBER,
        "purePhoneNumber": NUMBER,
        "countryCode": 86,
        "watermark": {"timestamp": sandbox.clock.at, "appid": APPID},
    }
    assert sandbox.phone(code).json()["errcode"] == 40029
    assert sandbox.phone(sandbox.phone_code(), json={"code": sandbox.phone_code()}).json()["errcode"] == 0


@pytest.mark.parametrize("members", [{"code": 1}, {"code": None}, {"code": "c", "openid": None}, {"openid": ["o"]}])
def test_a_phone_code_that_is_no_text_is_47001(sandbox: Sandbox, members: object) -> None:
    assert sandbox.phone("", json=members).json()["errcode"] == 47001


@pytest.mark.parametrize(("access_token", "errcode"), [("", 41001), ("unknown", 40001)])
@pytest.mark.parametrize("body", [b"", b'{"code": "unknown"}'])
def test_a_bad_access_token_comes_before_a_bad_body(
    sandbox: Sandbox, access_token: str, errcode: int, body: bytes
) -> None:
    reply = sandbox.phone("", json=None, data=body, params={"access_token": access_token})
    assert reply.json()["errcode"] == errcode


# ---- every fault of theirs ----------------------------------------------------------------------


def _ask_token(sandbox: Sandbox) -> requests.Response:
    return sandbox.stable_token()


def _ask_check(sandbox: Sandbox) -> requests.Response:
    return sandbox.signed("checksession")


def _ask_reset(sandbox: Sandbox) -> requests.Response:
    return sandbox.signed("resetusersessionkey")


def _ask_phone(sandbox: Sandbox) -> requests.Response:
    return sandbox.phone(sandbox.phone_code())


CALLS: dict[str, Callable[[Sandbox], requests.Response]] = {
    "stable_token": _ask_token,
    "checksession": _ask_check,
    "resetusersessionkey": _ask_reset,
    "getuserphonenumber": _ask_phone,
}


def right(endpoint: str, sandbox: Sandbox) -> dict[str, Any]:
    """The right answer to the call that was just made."""
    ok = {"errcode": 0, "errmsg": "ok"}
    watermark = {"timestamp": sandbox.clock.at, "appid": APPID}
    info = {"phoneNumber": NUMBER, "purePhoneNumber": NUMBER, "countryCode": 86, "watermark": watermark}
    return {
        "stable_token": sandbox.known_token(),
        "checksession": ok,
        "resetusersessionkey": {**ok, "openid": sandbox.openid, "session_key": sandbox.key()},
        "getuserphonenumber": {**ok, "phone_info": info},
    }[endpoint]


REFUSALS = {
    "system_busy": -1,
    "rate_limited": 45011,
    "quota_exceeded": 45009,
    "ip_not_allowed": 40164,
    "unknown_errcode": 50002,
    "invalid_code": 40029,
    "invalid_appid": 40013,
    "invalid_appsecret": 40125,
    "appsecret_frozen": 40243,
    "appid_missing": 41002,
    "appsecret_missing": 41004,
    "access_token_invalid": 40001,
    "access_token_other": 40014,
    "access_token_expired": 42001,
    "signature_invalid": 87009,
    "sig_method_invalid": 87008,
    "openid_invalid": 40003,
    "errcode_as_text": "40029",
}
NO_ANSWERS = {"bad_gateway_page", "html_200", "empty", "not_json", "json_null", "json_string", "deep_json"}
STRANGERS = {"http_500", "json_list", "redirect"}
SILENT = {"reset", "close", "hang", "endless_continue"}
# The right answer, once its bytes are read this way.
READ_AS: dict[str, Callable[[bytes], str]] = {
    **dict.fromkeys(
        ["huge", "gzip_bomb", "gzip", "set_cookie", "control_characters", "delay", "drip_body", "drip_headers"],
        lambda body: body.decode("utf-8"),
    ),
    "not_utf8": lambda body: body.decode("utf-8", "replace"),
    "utf16": lambda body: body.decode("utf-16"),
    "bom": lambda body: body.decode("utf-8-sig"),
}
# For what is asked of every fault once more: without those that take long and are like another one.
QUICK = set(FAULTS) - {"gzip_bomb", "drip_headers", "endless_continue"}
BY_THEMSELVES = {"duplicate_members", "truncated", "extra_members"}
CHANGED: dict[str, dict[str, object]] = {
    "no_openid": {"openid": ...},
    "empty_openid": {"openid": ""},
    "number_openid": {"openid": 4711},
    "long_openid": {"openid": "o" * 129},
    "no_session_key": {"session_key": ...},
    "empty_session_key": {"session_key": ""},
    "bad_session_key": {"session_key": "!" * 24},
    "no_access_token": {"access_token": ...},
    "number_access_token": {"access_token": 4711},
    "no_expires_in": {"expires_in": ...},
    "zero_expires_in": {"expires_in": 0},
    "no_phone_info": {"phone_info": ...},
}
CHANGED_BY: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "openid_with_slash": lambda answer: {"openid": answer["openid"] + "/../x"},
    "short_session_key": lambda answer: {
        "session_key": base64.b64encode(base64.b64decode(answer["session_key"])[:15]).decode()
    },
    "unpadded_session_key": lambda answer: {"session_key": answer["session_key"].rstrip("=")},
    "text_expires_in": lambda answer: {"expires_in": str(answer["expires_in"])},
    "text_country_code": lambda answer: {"phone_info": {**answer["phone_info"], "countryCode": "86"}},
    "foreign_watermark": lambda answer: {
        "phone_info": {
            **answer["phone_info"],
            "watermark": {**answer["phone_info"]["watermark"], "appid": "wx0000000000000000"},
        }
    },
}


def test_every_fault_of_the_other_calls_is_played_here() -> None:
    played = {*REFUSALS, *NO_ANSWERS, *STRANGERS, *SILENT, *READ_AS, *BY_THEMSELVES, *CHANGED, *CHANGED_BY}
    assert played == {name for name, fault in FAULTS.items() if fault.endpoints & CALLS.keys()}
    assert CALLS.keys() == set(ENDPOINTS) - {"jscode2session"}


def meetings(names: set[str]) -> pytest.MarkDecorator:
    """Every call with each of these faults that makes sense for it, a bomb once."""
    pairs = [(call, name) for call in CALLS for name in sorted(names) if call in FAULTS[name].endpoints]
    pairs = [pair for pair in pairs if pair[1] != "gzip_bomb" or pair[0] == "checksession"]
    return pytest.mark.parametrize(("endpoint", "name"), pairs)


def meet(sandbox: Sandbox, endpoint: str, name: str) -> requests.Response:
    """The reply to a call that meets the fault."""
    plan(sandbox, endpoint, name)
    return CALLS[endpoint](sandbox)


def plan(sandbox: Sandbox, endpoint: str, name: str) -> None:
    delay_s = {"delay": 0.01, "drip_body": 0, "drip_headers": 0, "hang": 0.05, "endless_continue": 0.001}
    order = {"name": name, "endpoint": endpoint} | ({"delay_s": delay_s[name]} if name in delay_s else {})
    assert sandbox.admin("fault", **order) == {"name": name, "times": 1, "endpoint": endpoint}


@meetings(set(REFUSALS))
def test_a_refusing_fault_has_its_errcode_and_changes_nothing(sandbox: Sandbox, endpoint: str, name: str) -> None:
    key = sandbox.key()
    reply = meet(sandbox, endpoint, name)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, JSON_TYPE)
    assert set(reply.json()) == {"errcode", "errmsg"}
    assert reply.json()["errcode"] == REFUSALS[name]
    assert sandbox.key() == key
    assert CALLS[endpoint](sandbox).json() == right(endpoint, sandbox), "it is met once"


@meetings(NO_ANSWERS)
def test_a_fault_without_an_answer_in_it_changes_nothing(sandbox: Sandbox, endpoint: str, name: str) -> None:
    key = sandbox.key()
    reply = meet(sandbox, endpoint, name)
    assert reply.status_code == (502 if name == "bad_gateway_page" else 200)
    with contextlib.suppress(ValueError, RecursionError):  # not JSON, or too deep for it
        assert not isinstance(json.loads(reply.content), dict | list)
    assert sandbox.key() == key


@meetings(STRANGERS)
def test_a_strangers_answer_looks_like_a_good_one_of_that_call(sandbox: Sandbox, endpoint: str, name: str) -> None:
    key = sandbox.key()
    reply = meet(sandbox, endpoint, name)
    assert reply.status_code == {"http_500": 500, "json_list": 200, "redirect": 302}[name]
    assert sandbox.key() == key
    if name == "redirect":
        assert reply.headers["Location"] == f"{sandbox.server.url}/sandbox/elsewhere/{endpoint}"
        reply = sandbox.ask("GET", f"/sandbox/elsewhere/{endpoint}")
        assert reply.status_code == 200
    assert reply.headers["Content-Type"] == JSON_TYPE
    answer = reply.json()[0] if name == "json_list" else reply.json()
    own = right(endpoint, sandbox)
    assert list(answer) == list(own)
    assert answer.get("errcode", 0) == 0
    if endpoint == "getuserphonenumber":
        assert answer["phone_info"]["watermark"] == own["phone_info"]["watermark"]
    if endpoint != "checksession":  # there is nothing of anybody's in that
        assert answer != own


@meetings(SILENT)
def test_a_silent_fault_changes_nothing_and_answers_nothing(sandbox: Sandbox, endpoint: str, name: str) -> None:
    key = sandbox.key()
    if name == "endless_continue":
        plan(sandbox, endpoint, name)
        with socket.create_connection(("127.0.0.1", urlsplit(sandbox.server.url).port or 0), TIMEOUT_S) as connection:
            path = {"stable_token": "/cgi-bin/stable_token", "getuserphonenumber": "/wxa/business/getuserphonenumber"}
            connection.sendall(f"GET {path.get(endpoint, f'/wxa/{endpoint}')} HTTP/1.1\r\n\r\n".encode())
            raw = connection.recv(25) + connection.recv(1000)
        assert set(raw.split(b"\r\n\r\n")[:-1]) == {b"HTTP/1.1 100 Continue"}
    else:
        with pytest.raises(requests.ConnectionError):
            meet(sandbox, endpoint, name)
    assert sandbox.key() == key


@meetings(set(READ_AS))
def test_the_right_answer_in_other_bytes_is_the_right_answer(sandbox: Sandbox, endpoint: str, name: str) -> None:
    reply = meet(sandbox, endpoint, name)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, JSON_TYPE)
    answer = json.loads(READ_AS[name](reply.content), strict=False)
    answer.pop("nickname", None)
    assert answer == right(endpoint, sandbox)


@meetings({*CHANGED, *CHANGED_BY})
def test_a_mangled_member_is_the_only_thing_that_is_wrong(sandbox: Sandbox, endpoint: str, name: str) -> None:
    answer = meet(sandbox, endpoint, name).json()
    own = right(endpoint, sandbox)
    expected = own | (CHANGED_BY[name](own) if name in CHANGED_BY else CHANGED[name])
    assert answer == {member: value for member, value in expected.items() if value is not ...}
    assert answer != own


@meetings({"duplicate_members"})
def test_the_duplicate_member_is_a_strangers(sandbox: Sandbox, endpoint: str, name: str) -> None:
    pairs = meet(sandbox, endpoint, name).json(object_pairs_hook=list)
    own = right(endpoint, sandbox)
    assert [member for member, _ in pairs[:-1]] == list(own)
    telling = {"stable_token": "access_token", "checksession": "errcode", "resetusersessionkey": "session_key"}
    assert pairs[-1][0] == telling.get(endpoint, "phone_info")
    if endpoint != "checksession":
        assert pairs[-1] not in pairs[:-1]


@meetings({"truncated"})
def test_a_truncated_answer_is_whole_but_for_what_its_length_promises(
    sandbox: Sandbox, endpoint: str, name: str
) -> None:
    plan(sandbox, endpoint, name)
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        CALLS[endpoint](sandbox)
    assert CALLS[endpoint](sandbox).status_code == 200


@meetings({"extra_members"})
def test_extra_members_leave_those_of_the_answer_alone(sandbox: Sandbox, endpoint: str, name: str) -> None:
    answer = meet(sandbox, endpoint, name).json()
    assert answer == {"expires_in": 7200, "errcode": 0, "errmsg": "ok"} | right(endpoint, sandbox)
    assert set(answer) >= {"expires_in", "errcode", "errmsg"}


@pytest.mark.parametrize("name", sorted(n for n in QUICK if "getuserphonenumber" in FAULTS[n].endpoints))
def test_a_fault_uses_a_phone_code_up_only_if_the_table_says_so(sandbox: Sandbox, name: str) -> None:
    code = sandbox.phone_code()
    plan(sandbox, "getuserphonenumber", name)
    with contextlib.suppress(requests.RequestException):  # what the fault is for
        sandbox.phone(code)
    assert sandbox.phone(code).json()["errcode"] == (40029 if FAULTS[name].consumes_code else 0)


@pytest.mark.parametrize("name", sorted(n for n in QUICK if "resetusersessionkey" in FAULTS[n].endpoints))
def test_a_fault_resets_a_session_key_only_if_the_table_says_so(sandbox: Sandbox, name: str) -> None:
    key = sandbox.key()
    plan(sandbox, "resetusersessionkey", name)
    with contextlib.suppress(requests.RequestException):  # what the fault is for
        sandbox.signed("resetusersessionkey")
    assert (sandbox.key() != key) is FAULTS[name].consumes_code


@meetings({name for name in QUICK if FAULTS[name].consumes_code} - {"truncated"})
def test_a_fault_of_the_right_answer_makes_no_good_answer_of_a_bad_call(
    sandbox: Sandbox, endpoint: str, name: str
) -> None:
    plan(sandbox, endpoint, name)
    path = {
        "stable_token": "/cgi-bin/stable_token",
        "getuserphonenumber": "/wxa/business/getuserphonenumber",
    }.get(endpoint, f"/wxa/{endpoint}")
    method = "POST" if endpoint in ("stable_token", "getuserphonenumber") else "GET"
    body = sandbox.ask(method, path, data=b"{}").content
    text = READ_AS.get(name, READ_AS["gzip"])(body)
    answer = json.loads(text, strict=False)
    assert answer["errcode"] == (41002 if endpoint == "stable_token" else 41001)
    assert set(answer) <= {"errcode", "errmsg", "nickname"}


# ---- planning faults ----------------------------------------------------------------------------


def test_a_fault_is_met_at_its_endpoint_alone(sandbox: Sandbox) -> None:
    sandbox.admin("fault", name="system_busy", endpoint="checksession", times=2)
    assert sandbox.stable_token().json() == right("stable_token", sandbox)
    assert [sandbox.signed("checksession").json()["errcode"] for _ in range(3)] == [-1, -1, 0]


def test_clearing_is_for_the_endpoint_that_is_said_or_for_all(sandbox: Sandbox) -> None:
    for endpoint in CALLS:
        sandbox.admin("fault", name="system_busy", endpoint=endpoint, times=100)
    cleared = sandbox.admin("fault", name=None, endpoint="checksession")
    assert cleared == {"name": None, "times": 0, "endpoint": "checksession"}
    assert [call(sandbox).json().get("errcode", 0) for call in CALLS.values()] == [-1, 0, -1, -1]
    assert sandbox.admin("fault", name=None) == {"name": None, "times": 0, "endpoint": None}
    assert [call(sandbox).json().get("errcode", 0) for call in CALLS.values()] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        ("no_phone_info", None),
        ("no_phone_info", "checksession"),
        ("no_openid", "stable_token"),
        ("signature_invalid", "getuserphonenumber"),
        ("code_used", "getuserphonenumber"),
        ("reset", "elsewhere"),
        ("reset", "nonsense"),
        (None, "nonsense"),
    ],
)
def test_a_fault_where_it_makes_no_sense_is_a_clear_400_and_plans_nothing(
    sandbox: Sandbox, name: str | None, endpoint: str | None
) -> None:
    sandbox.admin("fault", name="system_busy", endpoint="checksession")
    reply = sandbox.ask("POST", "/sandbox/fault", json={"name": name, "endpoint": endpoint})
    assert (reply.status_code, reply.json()["error"]) == (400, "bad_request")
    assert "nonsense" not in reply.text
    assert sandbox.signed("checksession").json()["errcode"] == -1, "what was planned stays"
    assert sandbox.ask("GET", "/sns/jscode2session").json()["errcode"] == 41002


# ---- the other admin routes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("code", b'{"device": "nonsense\\ud800"}'),
        ("code", b'{"device": ["nonsense"]}'),
        ("code", b'{"user": "alice", "fault": "no_phone_info"}'),
        ("phone_code", b"nonsense"),
        ("phone_code", b'{"phone": "nonsense"}'),
        ("phone_code", b'{"phone": 13800138000}'),
        ("phone_code", b'{"phone": "1380013800013800"}'),
        ("phone_code", b'{"appid": "nonsense"}'),
        ("phone_code", b'{"fault": "nonsense"}'),
        ("open_data", b"nonsense"),
        ("open_data", b'{"user": "nonsense"}'),  # who has never logged in
        ("open_data", b'{"user": "alice", "session_key": "nonsense"}'),
        ("open_data", b'{"user": "alice", "data": "nonsense"}'),
        ("open_data", b'{"user": "alice", "data": ["nonsense"]}'),
        ("open_data", b'{"user": "alice", "age_s": "nonsense"}'),
        ("open_data", b'{"user": "alice", "age_s": 1e999}'),
        ("open_data", b'{"user": "alice", "age_s": 1000000001}'),
        ("open_data", b'{"appid": "nonsense", "user": "alice"}'),
        ("open_data", b'{"nonsense": 1}'),
    ],
)
def test_bad_input_is_a_clear_400_that_does_not_repeat_it(sandbox: Sandbox, path: str, body: bytes) -> None:
    reply = sandbox.ask("POST", f"/sandbox/{path}", data=body)
    assert (reply.status_code, reply.headers["Content-Type"]) == (400, JSON_TYPE)
    assert reply.json()["error"] == "bad_request"
    assert len(reply.json()["detail"]) > 10
    assert not {"nonsense", "1380013800013800", "Traceback"} & set(re.findall(r"\w+", reply.text))


def test_open_data_come_as_the_phone_has_them(sandbox: Sandbox) -> None:
    key = sandbox.log_in(new_session_key=True, unionid="oUnion")
    made = sandbox.admin("open_data", user=USER, age_s=-30)
    assert set(made) == {"rawData", "signature", "encryptedData", "iv"}
    assert made["signature"] == hashlib.sha1((made["rawData"] + key).encode()).hexdigest()
    opened = decrypted(made, key)
    assert opened["openId"] == sandbox.openid
    assert opened["unionId"] == "oUnion"
    assert opened["watermark"] == {"timestamp": sandbox.clock.at + 30, "appid": APPID}
    assert opened["nickName"] == json.loads(made["rawData"])["nickName"]


def test_open_data_can_be_of_ones_own_and_under_the_key_before(sandbox: Sandbox) -> None:
    old, new = sandbox.log_in(new_session_key=True), sandbox.log_in(device="pc")
    assert old != new
    data = {"phoneNumber": NUMBER, "watermark": {"appid": "wxother"}}
    assert decrypted(sandbox.admin("open_data", user=USER, data=data, session_key="previous"), old) == data
    assert decrypted(sandbox.admin("open_data", user=USER, data=data, session_key="current"), new) == data


def test_large_open_data_fit(sandbox: Sandbox) -> None:
    filler = "x" * 60_000
    assert decrypted(sandbox.admin("open_data", user=USER, data={"filler": filler}), sandbox.key())["filler"] == filler


def decrypted(made: dict[str, Any], session_key: str) -> dict[str, Any]:
    cipher = Cipher(algorithms.AES(base64.b64decode(session_key)), modes.CBC(base64.b64decode(made["iv"])))
    padded = cipher.decryptor().update(base64.b64decode(made["encryptedData"]))
    opened: dict[str, Any] = json.loads(padded[: -padded[-1]])
    return opened


def test_a_code_can_come_from_another_device(sandbox: Sandbox) -> None:
    phone, again, pc = sandbox.log_in(new_session_key=True), sandbox.log_in(), sandbox.log_in(device="pc")
    assert phone == again != pc
    sandbox.log_in()


def test_the_calls_are_told_with_app_and_user_and_never_a_secret(sandbox: Sandbox) -> None:
    before = sandbox.calls()
    access_token, old, code = sandbox.token(), sandbox.key(), sandbox.phone_code()
    sandbox.stable_token()
    sandbox.stable_token(appid=SECRET, secret=APPID)  # swapped
    sandbox.signed("checksession", openid=SECRET)
    sandbox.signed("resetusersessionkey")
    sandbox.phone(code)
    sandbox.ask("POST", "/wxa/business/getuserphonenumber", params={"access_token": code}, data=b"{")
    told = sandbox.calls()
    rises = {name: told[name] - before[name] for name in before if name != "last"}
    assert rises == {
        "jscode2session": 0,
        "stable_token": 2,
        "checksession": 1,
        "resetusersessionkey": 1,
        "getuserphonenumber": 2,
        "elsewhere": 0,
    }
    assert [[r["endpoint"], r["appid"], r["openid"], r["errcode"]] for r in told["last"][-6:]] == [
        ["stable_token", APPID, None, 0],
        ["stable_token", None, None, 40013],
        ["checksession", APPID, None, 40003],
        ["resetusersessionkey", APPID, sandbox.openid, 0],
        ["getuserphonenumber", APPID, sandbox.openid, 0],
        ["getuserphonenumber", None, None, 40001],
    ]
    assert all(record["at"] == sandbox.clock.at for record in told["last"][-6:])
    text = json.dumps(told)
    assert not [secret for secret in (SECRET, access_token, old, sandbox.key(), code, NUMBER) if secret in text]


def test_a_fault_that_is_met_is_told(sandbox: Sandbox) -> None:
    meet(sandbox, "checksession", "signature_invalid")
    assert sandbox.calls()["last"][-1] == {
        "at": sandbox.clock.at,
        "endpoint": "checksession",
        "appid": APPID,
        "openid": sandbox.openid,
        "fault": "signature_invalid",
        "errcode": 87009,
    }
