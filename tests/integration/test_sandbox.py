"""The sandbox over real sockets: code2session and all its faults, the admin routes, the process."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

import authsvc
from authsvc.errors import SettingsError
from authsvc.sandbox.faults import ENDPOINTS, FAULTS
from authsvc.sandbox.routes import ADMIN
from authsvc.sandbox.server import MAX_BODY, SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat
from tests.support.clock import NOW, FakeClock
from tests.support.tls import certificate

APPID, SECRET = "wx0123456789abcdef", "s3cret-0123456789abcdef"
OTHER_APPID, OTHER_SECRET = "wxfedcba9876543210", "s3cret-fedcba9876543210"
USER = "alice"
TIMEOUT_S = 10  # for what comes at once; a wait this long is a failure
REPLY_LIMIT = 64 * 1024


def new_model(apps: Mapping[str, str]) -> SandboxWeChat:
    return SandboxWeChat(apps, clock=FakeClock(), random_bytes=secrets.token_bytes)


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(new_model({APPID: SECRET})) as server:
        yield server


# ---- a client that sees the bytes ---------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


def parsed(raw: bytes) -> Reply:
    head, _, body = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Reply(int(status_line.split()[1]), headers, body)


def connect(server: SandboxServer) -> socket.socket:
    port = urlsplit(server.url).port
    assert port is not None
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def chunks(connection: socket.socket) -> Iterator[bytes]:
    """What recv() gives, until the server closes."""
    while chunk := connection.recv(65536):
        yield chunk


def call_path(code: str, *, appid: str = APPID, secret: str = SECRET) -> str:
    query = {"appid": appid, "secret": secret, "js_code": code, "grant_type": "authorization_code"}
    return f"/sns/jscode2session?{urlencode(query)}"


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


def ask_raw(server: SandboxServer, request: bytes) -> bytes:
    with connect(server) as connection:
        connection.sendall(request)
        return b"".join(chunks(connection))


def exchange(server: SandboxServer, code: str) -> Reply:
    return parsed(ask_raw(server, get(call_path(code))))


def admin(server: SandboxServer, method: str, path: str, body: object = None, **headers: str) -> Reply:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port or 0, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, raw or None, headers)
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def mint(server: SandboxServer, fault: str | None = None, **more: object) -> str:
    code = admin(server, "POST", "/sandbox/code", {"user": USER, "fault": fault, **more}).json["code"]
    assert isinstance(code, str)
    return code


# ---- code2session -------------------------------------------------------------------------------


def test_a_login_is_plain_text_with_json_in_it(server: SandboxServer) -> None:
    reply = exchange(server, mint(server))
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain"
    assert set(reply.json) == {"openid", "session_key"}
    assert reply.json["openid"] == server.model.openid(APPID, USER)


def test_a_refusal_is_plain_text_with_status_200_too(server: SandboxServer) -> None:
    reply = exchange(server, "no-such-code")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain")
    assert reply.json["errcode"] == 40029
    assert re.fullmatch(r"invalid code, rid: \w{8}-\w{8}-\w{8}", str(reply.json["errmsg"]))


def test_a_post_is_answered_as_if_it_had_no_parameters(server: SandboxServer) -> None:
    code = mint(server)
    assert admin(server, "POST", call_path(code), b"appid=x").json["errcode"] == 41002
    assert "errcode" not in exchange(server, code).json


@pytest.mark.parametrize("query", ["", "appid", "&".join(["appid=x"] * 51), "%ff=%00", "appid=&appid=x"])
def test_a_query_without_an_appid_is_refused_as_wechat_does(server: SandboxServer, query: str) -> None:
    assert parsed(ask_raw(server, get(f"/sns/jscode2session?{query}"))).json["errcode"] == 41002


def test_one_connection_serves_call_after_call(server: SandboxServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port or 0, timeout=TIMEOUT_S)
    connection.connect()
    first_socket = connection.sock
    for code in (mint(server), "no-such-code", mint(server, "system_busy"), mint(server)):
        connection.request("GET", call_path(code))
        response = connection.getresponse()
        assert (response.status, response.version) == (200, 11)
        response.read()
        assert connection.sock is first_socket
    connection.close()


def test_a_slash_is_escaped_as_wechat_does(server: SandboxServer) -> None:
    reply = exchange(server, mint(server, unionid="a/b"))
    assert rb"a\/b" in reply.body
    assert reply.json["unionid"] == "a/b"


# ---- every fault of it --------------------------------------------------------------------------


@dataclass
class Play:
    """One exchange that meets a fault, up to its last byte."""

    raw: bytes
    chunks: int
    elapsed_s: float
    openid: str

    @property
    def reply(self) -> Reply:
        return parsed(self.raw)


def errcode(expected: int) -> Callable[[Play], None]:
    def check(play: Play) -> None:
        assert (play.reply.status, play.reply.headers["content-type"]) == (200, "text/plain")
        assert set(play.reply.json) == {"errcode", "errmsg"}
        assert play.reply.json["errcode"] == expected
        assert re.search(r" rid: \w{8}-\w{8}-\w{8}$", str(play.reply.json["errmsg"]))

    return check


def body_is(expected: bytes | Callable[[bytes], bool]) -> Callable[[Play], None]:
    def check(play: Play) -> None:
        assert play.reply.status == 200
        assert expected(play.reply.body) if callable(expected) else play.reply.body == expected

    return check


def right(text: str | bytes, play: Play, **expected: object) -> None:
    """The text is the right answer, but for these members; `...` is a missing one."""
    answer = json.loads(text, strict=False)
    for name, value in {"openid": play.openid, **expected}.items():
        if value is ...:
            assert name not in answer
        else:
            assert (answer[name], type(answer[name])) == (value, type(value))
    if "session_key" not in expected:
        assert re.fullmatch(r"[0-9A-Za-z+/]{22}==", answer["session_key"])


def member(name: str, value: object) -> Callable[[Play], None]:
    def check(play: Play) -> None:
        assert play.reply.status == 200
        right(play.reply.body, play, **{name: value})

    return check


def session_key_like(pattern: str) -> Callable[[Play], None]:
    def check(play: Play) -> None:
        key = play.reply.json["session_key"]
        assert re.fullmatch(pattern, str(key))
        right(play.reply.body, play, session_key=key)

    return check


def check_errcode_as_text(play: Play) -> None:
    assert play.reply.json["errcode"] == "40029"


def check_bad_gateway_page(play: Play) -> None:
    assert (play.reply.status, play.reply.headers["content-type"]) == (502, "text/html")
    assert b"<html>" in play.reply.body


def check_http_500(play: Play) -> None:
    assert play.reply.status == 500
    assert play.reply.json["openid"] != play.openid
    assert "session_key" in play.reply.json


def check_json_list(play: Play) -> None:
    (answer,) = json.loads(play.reply.body)
    assert set(answer) == {"openid", "session_key"}


def check_deep_json(play: Play) -> None:
    assert REPLY_LIMIT - 2 <= len(play.reply.body) < REPLY_LIMIT
    with pytest.raises(RecursionError):
        json.loads(play.reply.body)


def check_redirect(play: Play) -> None:
    assert play.reply.status == 302
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/sandbox/elsewhere/jscode2session", play.reply.headers["location"])


def check_duplicate_members(play: Play) -> None:
    names = [name for name, _ in json.loads(play.reply.body, object_pairs_hook=list)]
    assert sorted(names) == ["openid", "openid", "session_key"]
    assert play.reply.json["openid"] != play.openid


def check_not_utf8(play: Play) -> None:
    with pytest.raises(UnicodeDecodeError):
        play.reply.body.decode()
    right(play.reply.body.decode("latin-1"), play)


def check_utf16(play: Play) -> None:
    right(play.reply.body.decode("utf-16"), play)


def check_bom(play: Play) -> None:
    assert play.reply.body.startswith(b"\xef\xbb\xbf{")
    right(play.reply.body.decode("utf-8-sig"), play)


def check_huge(play: Play) -> None:
    assert len(play.reply.body) == 200 * 1024
    right(play.reply.body, play)


def check_gzip_bomb(play: Play) -> None:
    assert play.reply.headers["content-encoding"] == "gzip"
    assert len(play.reply.body) < REPLY_LIMIT
    out = gzip.decompress(play.reply.body)
    assert len(out) > 30_000_000
    right(out.rstrip(), play)


def check_gzip(play: Play) -> None:
    assert play.reply.headers["content-encoding"] == "gzip"
    right(gzip.decompress(play.reply.body), play)


def check_set_cookie(play: Play) -> None:
    assert play.reply.headers["set-cookie"]
    right(play.reply.body, play)


def check_control_characters(play: Play) -> None:
    with pytest.raises(json.JSONDecodeError, match="control character"):
        json.loads(play.reply.body)
    right(play.reply.body, play)


def check_extra_members(play: Play) -> None:
    right(play.reply.body, play, errcode=0, errmsg="ok", expires_in=7200)


def check_truncated(play: Play) -> None:
    assert int(play.reply.headers["content-length"]) == len(play.reply.body) + 100
    right(play.reply.body, play)


def check_nothing_came(play: Play) -> None:
    assert play.raw == b""


def check_delay(play: Play) -> None:
    assert play.elapsed_s >= DELAY_S["delay"]
    right(play.reply.body, play)


def check_hang(play: Play) -> None:
    assert play.elapsed_s >= DELAY_S["hang"]
    check_nothing_came(play)


def check_drip(play: Play) -> None:
    # Neighbouring bytes may meet on a loaded machine, and the other half of the reply comes in one piece.
    assert play.chunks > 20
    right(play.reply.body, play)


DELAY_S = {"delay": 0.2, "hang": 0.2, "drip_body": 0.003, "drip_headers": 0.003}

CHECKS: Mapping[str, Callable[[Play], None]] = {
    "system_busy": errcode(-1),
    "invalid_code": errcode(40029),
    "code_used": errcode(40163),
    "code_blocked": errcode(40226),
    "rate_limited": errcode(45011),
    "quota_exceeded": errcode(45009),
    "invalid_appid": errcode(40013),
    "invalid_appsecret": errcode(40125),
    "ip_not_allowed": errcode(40164),
    "appsecret_frozen": errcode(40243),
    "appid_missing": errcode(41002),
    "appsecret_missing": errcode(41004),
    "code_missing": errcode(41008),
    "unknown_errcode": errcode(50002),
    "errcode_as_text": check_errcode_as_text,
    "bad_gateway_page": check_bad_gateway_page,
    "html_200": body_is(lambda body: body.startswith(b"<html>")),
    "http_500": check_http_500,
    "empty": body_is(b""),
    "not_json": body_is(lambda body: b"openid=" in body and b"{" not in body),
    "json_null": body_is(b"null"),
    "json_list": check_json_list,
    "json_string": body_is(lambda body: isinstance(json.loads(body), str)),
    "deep_json": check_deep_json,
    "redirect": check_redirect,
    "duplicate_members": check_duplicate_members,
    "not_utf8": check_not_utf8,
    "utf16": check_utf16,
    "bom": check_bom,
    "huge": check_huge,
    "gzip_bomb": check_gzip_bomb,
    "truncated": check_truncated,
    "no_openid": member("openid", ...),
    "empty_openid": member("openid", ""),
    "number_openid": member("openid", 4711),
    "openid_with_slash": lambda play: right(play.reply.body, play, openid=play.openid + "/../x"),
    "long_openid": member("openid", "o" * 129),
    "no_session_key": member("session_key", ...),
    "empty_session_key": member("session_key", ""),
    "short_session_key": session_key_like(r"[0-9A-Za-z+/]{20}"),
    "unpadded_session_key": session_key_like(r"[0-9A-Za-z+/]{22}"),
    "bad_session_key": session_key_like(r"!{24}"),
    "gzip": check_gzip,
    "set_cookie": check_set_cookie,
    "control_characters": check_control_characters,
    "extra_members": check_extra_members,
    "close": check_nothing_came,
    "delay": check_delay,
    "hang": check_hang,
    "drip_body": check_drip,
    "drip_headers": check_drip,
}
PLAYED_BY_THEMSELVES = {"reset", "endless_continue"}


def test_every_fault_of_code2session_is_played_here() -> None:
    own = {name for name, fault in FAULTS.items() if "jscode2session" in fault.endpoints}
    assert set(CHECKS) | PLAYED_BY_THEMSELVES == own


@pytest.fixture(scope="module")
def shared_server() -> Iterator[SandboxServer]:
    """One for the whole table: each test brings a code of its own, with its own fault."""
    with SandboxServer(new_model({APPID: SECRET})) as server:
        yield server


def consumed(server: SandboxServer, code: str) -> bool:
    answer = exchange(server, code).json
    assert answer.get("errcode") in (None, 40163)
    return "errcode" in answer


@pytest.mark.parametrize("name", CHECKS)
def test_a_fault_acts_as_its_line_says_and_uses_the_code_up_only_if_the_table_does(
    shared_server: SandboxServer, name: str
) -> None:
    # A user of its own: the table is longer than one user's quota of a minute would bear.
    code = mint(shared_server, name, user=name, times=1, delay_s=DELAY_S.get(name))
    started = time.monotonic()
    with connect(shared_server) as connection:
        connection.sendall(get(call_path(code)))
        came = list(chunks(connection))
    elapsed_s = time.monotonic() - started
    CHECKS[name](Play(b"".join(came), len(came), elapsed_s, shared_server.model.openid(APPID, name)))
    assert consumed(shared_server, code) is FAULTS[name].consumes_code


def test_reset_ends_the_connection_with_a_rst_and_leaves_the_code(shared_server: SandboxServer) -> None:
    code = mint(shared_server, "reset", times=1)
    with pytest.raises(ConnectionResetError):
        ask_raw(shared_server, get(call_path(code)))
    assert not consumed(shared_server, code)


def test_endless_continue_never_comes_to_an_answer_and_leaves_the_code(shared_server: SandboxServer) -> None:
    code = mint(shared_server, "endless_continue", times=1, delay_s=0.001)
    with connect(shared_server) as connection:
        connection.sendall(get(call_path(code)))
        raw = b""
        for chunk in chunks(connection):
            raw += chunk
            if len(raw) > 1000:
                break
    assert raw.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") in b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not consumed(shared_server, code)


@pytest.mark.parametrize("name", sorted(name for name in CHECKS if FAULTS[name].consumes_code))
def test_a_fault_of_the_right_answer_does_not_make_a_login_of_a_bad_code(
    shared_server: SandboxServer, name: str
) -> None:
    code = mint(shared_server, name, delay_s=0)
    exchange(shared_server, code)
    again = exchange(shared_server, code)
    body = gzip.decompress(again.body) if "content-encoding" in again.headers else again.body
    text = body.decode("utf-16" if name == "utf16" else "utf-8-sig", "replace")
    assert '"errcode":40163' in text
    assert "session_key" not in text


def test_the_redirect_leads_to_what_looks_like_a_login_and_following_it_is_counted(server: SandboxServer) -> None:
    location = exchange(server, mint(server, "redirect")).headers["location"]
    elsewhere = parsed(ask_raw(server, get(urlsplit(location).path)))
    assert (elsewhere.status, elsewhere.headers["content-type"]) == (200, "text/plain")
    assert set(elsewhere.json) == {"openid", "session_key"}
    assert admin(server, "GET", "/sandbox/calls").json["elsewhere"] == 1


@pytest.mark.parametrize("name", ["hang", "delay", "drip_body", "drip_headers", "endless_continue"])
def test_a_slow_fault_ends_when_the_client_goes(server: SandboxServer, name: str) -> None:
    code = mint(server, name, delay_s=30)
    connection = connect(server)
    connection.sendall(get(call_path(code)))
    wait_until(lambda: server._listener._open and calls(server)["jscode2session"] == 1)
    connection.close()
    wait_until(lambda: not server._listener._open)


def test_with_a_certificate_it_speaks_https_faults_and_all_and_whoever_is_slow_to_shake_hands_keeps_nobody_out(
    tmp_path: Path,
) -> None:
    serving, trusting = certificate(tmp_path, host="127.0.0.1")
    with SandboxServer(new_model({APPID: SECRET}), tls=serving) as server:
        assert server.url == f"https://127.0.0.1:{urlsplit(server.url).port}"
        with connect(server):
            connection = http.client.HTTPSConnection(
                "127.0.0.1", urlsplit(server.url).port or 0, timeout=TIMEOUT_S, context=trusting
            )
            connection.request("POST", "/sandbox/code", json.dumps({"user": USER, "fault": "delay", "delay_s": 0.05}))
            code = json.loads(connection.getresponse().read())["code"]
            connection.request("GET", call_path(code))
            assert json.loads(connection.getresponse().read())["openid"] == server.model.openid(APPID, USER)
            connection.close()


def test_stop_ends_a_hung_call(server: SandboxServer) -> None:
    code = mint(server, "hang")
    with connect(server) as connection:
        connection.sendall(get(call_path(code)))
        wait_until(lambda: calls(server)["jscode2session"] == 1)
        server.stop()
        assert connection.recv(1) == b""


def test_a_slow_answer_waits_for_its_time_though_the_next_request_is_there_already(server: SandboxServer) -> None:
    code = mint(server, "delay", times=1, delay_s=0.3)
    with connect(server) as connection:
        started = time.monotonic()
        connection.sendall(get(call_path(code)).replace(b"Connection: close\r\n", b""))
        wait_until(lambda: calls(server)["jscode2session"] == 1)
        connection.sendall(get(call_path(code)))
        raw = connection.recv(65536)
        assert time.monotonic() - started >= 0.3
        raw += b"".join(chunks(connection))
    assert raw.count(b"HTTP/1.1 200 OK") == 2
    assert raw.index(b"session_key") < raw.index(b"40163")


def calls(server: SandboxServer) -> Mapping[str, object]:
    return server._listener.site.calls.counts()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- the admin routes ---------------------------------------------------------------------------


def test_a_fault_is_met_by_the_next_calls_and_by_no_more(server: SandboxServer) -> None:
    assert admin(server, "POST", "/sandbox/fault", {"name": "system_busy", "times": 2}).status == 200
    code = mint(server)
    assert [exchange(server, code).json.get("errcode") for _ in range(4)] == [-1, -1, None, 40163]


@pytest.mark.parametrize("clear", [None, "none"])
def test_a_fault_is_met_once_unless_said_and_can_be_cleared(server: SandboxServer, clear: str | None) -> None:
    admin(server, "POST", "/sandbox/fault", {"name": "system_busy"})
    assert [exchange(server, "no-such-code").json["errcode"] for _ in range(2)] == [-1, 40029]
    admin(server, "POST", "/sandbox/fault", {"name": "system_busy", "times": 1000})
    assert admin(server, "POST", "/sandbox/fault", {"name": clear}).json == {"name": None, "times": 0, "endpoint": None}
    assert exchange(server, "no-such-code").json["errcode"] == 40029


def test_the_planned_fault_comes_before_the_codes_own(server: SandboxServer) -> None:
    code = mint(server, "code_blocked")
    server.faults.set("system_busy")
    assert [exchange(server, code).json["errcode"] for _ in range(3)] == [-1, 40226, 40226]


def test_only_the_code_that_was_minted_with_a_fault_meets_it(server: SandboxServer) -> None:
    blocked, good = mint(server, "code_blocked"), mint(server)
    assert "errcode" not in exchange(server, good).json
    assert exchange(server, blocked).json["errcode"] == 40226


def test_a_code_is_minted_without_a_body_for_the_only_app_and_the_first_user(server: SandboxServer) -> None:
    minted = admin(server, "POST", "/sandbox/code")
    assert minted.headers["content-type"].startswith("application/json")
    assert set(minted.json) == {"code", "appid"}
    assert minted.json["appid"] == APPID
    assert exchange(server, str(minted.json["code"])).json["openid"] == server.model.openid(APPID, "user-1")


def test_a_user_with_a_unionid_has_it_in_the_login_and_another_has_none(server: SandboxServer) -> None:
    assert exchange(server, mint(server, unionid=True)).json["unionid"] == server.model.unionid(USER)
    assert exchange(server, mint(server, unionid="oMine")).json["unionid"] == "oMine"
    for nothing in (False, None):
        assert "unionid" not in exchange(server, mint(server, unionid=nothing)).json


def test_a_login_can_ask_for_a_new_session_key(server: SandboxServer) -> None:
    keys = [exchange(server, mint(server, new_session_key=new)).json["session_key"] for new in (False, False, True)]
    assert keys[0] == keys[1] != keys[2]


def test_with_two_apps_a_code_needs_the_appid() -> None:
    with SandboxServer(new_model({APPID: SECRET, OTHER_APPID: OTHER_SECRET})) as server:
        assert admin(server, "POST", "/sandbox/code", {}).status == 400
        minted = admin(server, "POST", "/sandbox/code", {"appid": OTHER_APPID}).json
        assert minted["appid"] == OTHER_APPID
        assert exchange(server, str(minted["code"])).json["errcode"] == 40029
        path = call_path(str(minted["code"]), appid=OTHER_APPID, secret=OTHER_SECRET)
        assert "errcode" not in parsed(ask_raw(server, get(path))).json


def test_the_calls_are_counted_and_told_without_secrets(server: SandboxServer) -> None:
    code = mint(server, "no_openid", times=1)
    key = exchange(server, code).json["session_key"]
    exchange(server, code)
    ask_raw(server, get(call_path(code, appid=SECRET, secret=APPID)))  # swapped
    ask_raw(server, get(call_path(mint(server, "close"))))
    told = admin(server, "GET", "/sandbox/calls")
    assert told.json["jscode2session"] == 4
    assert told.json["elsewhere"] == 0
    call = {"at": NOW, "endpoint": "jscode2session", "openid": server.model.openid(APPID, USER)}
    assert told.json["last"] == [
        {**call, "appid": APPID, "fault": "no_openid", "errcode": 0},
        {**call, "appid": APPID, "fault": None, "errcode": 40163},
        {**call, "appid": None, "fault": None, "errcode": 40013},
        {**call, "appid": APPID, "fault": "close", "errcode": None},
    ]
    assert not any(secret in told.body.decode() for secret in (SECRET, code, str(key)))


@pytest.mark.parametrize(
    "path",
    [
        "/index.html",
        "/sandbox",
        "/sandbox/elsewhere",
        "/sandbox/code/",
        "/sns/jscode2session/",
        "*",
        "http://127.0.0.1/sandbox/code",
    ],
)
def test_an_unknown_path_is_404_in_json(server: SandboxServer, path: str) -> None:
    reply = parsed(ask_raw(server, get(path)))
    assert reply.status == 404
    assert "error" in reply.json


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/sandbox/code", "POST"),
        ("GET", "/sandbox/fault", "POST"),
        ("GET", "/sandbox/phone_code", "POST"),
        ("HEAD", "/sandbox/open_data", "POST"),
        ("POST", "/", "GET, HEAD"),
        ("POST", "/sandbox/calls", "GET"),
        ("PUT", "/sandbox/code", "POST"),
        ("DELETE", "/sandbox/calls", "GET"),
    ],
)
def test_another_method_is_405_and_says_which_one(server: SandboxServer, method: str, path: str, allowed: str) -> None:
    reply = admin(server, method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/sandbox/code", "/sandbox/fault"])
@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"\xff",
        b"null",
        b"[" * 4096,
        b'{"user": "\\ud800"}',
        b'{"name": "nonsense", "x": 1}',
        b'{"name": "nonsense"}',
        b'{"fault": "nonsense"}',
        b'{"name": "delay", "delay_s": 61}',
        b'{"name": "delay", "times": 1e999}',
    ],
)
def test_bad_input_is_a_clear_400_and_the_connection_lives_on(server: SandboxServer, path: str, body: bytes) -> None:
    reply = admin(server, "POST", path, body)
    assert reply.status == 400
    assert reply.json["error"] == "bad_request"
    assert reply.headers["connection"] == "keep-alive"
    assert not {"Traceback", "nonsense"} & set(re.findall(r"\w+", reply.body.decode()))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (
            b"POST /sandbox/code HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)
            + b" " * (MAX_BODY + 1),
            413,
        ),
        (b"POST /sandbox/code HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /sandbox/code HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /sandbox/code HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /s3cret HTTP/1.1 s3cret\r\n\r\n", 400),
        (b"BREW /s3cret HTTP/1.1\r\n\r\n", 501),
        (b"GET /" + b"s3cret" * 12_000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_what_is_no_request_of_ours_is_refused_in_json_without_an_echo_and_the_connection_ends(
    server: SandboxServer, head: bytes, status: int
) -> None:
    reply = parsed(ask_raw(server, head))
    assert reply.status == status
    assert "error" in reply.json
    assert b"s3cret" not in reply.body


def test_a_body_that_is_far_too_long_is_read_to_its_end_so_that_the_refusal_arrives(server: SandboxServer) -> None:
    with connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)  # or it all fits on the way
        connection.sendall(b"POST /sandbox/code HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n")
        connection.sendall(b" " * 1_000_000)
        assert parsed(b"".join(chunks(connection))).status == 413


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("HEAD", "/"), *((route.method, path) for path, route in ADMIN.items())]
)
@pytest.mark.parametrize(
    "headers",
    [
        "Host: 127.0.0.1\r\nOrigin: https://evil.example",
        "Host: 127.0.0.1\r\nOrigin: null",
        "Host: 127.0.0.1\r\nOrigin: http://127.0.0.1",
        "Host: evil.example",
        "Host: evil.example:3001",
        "Host: 127.0.0.1.evil.example",
        "Host: localhost.evil.example",
        "Host: evil.example@127.0.0.1",
        "Host: 10.0.0.1",
        "Host: 0.0.0.0",
        "Host: [::]",
        "Host: ",
        "Host: 127.0.0.1\r\nHost: evil.example",
        "Accept: */*",
    ],
)
def test_a_web_page_in_the_developers_browser_gets_nothing(
    shared_server: SandboxServer, method: str, path: str, headers: str
) -> None:
    reply = parsed(
        ask_raw(shared_server, f"{method} {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n".encode())
    )
    assert reply.status == 403
    assert "access-control-allow-origin" not in reply.headers
    if method != "HEAD":
        assert set(reply.json) == {"error", "detail"}


@pytest.mark.parametrize("host", ["localhost", "LocalHost:3001", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:3001"])
def test_every_loopback_name_is_let_in(shared_server: SandboxServer, host: str) -> None:
    assert admin(shared_server, "POST", "/sandbox/code", {}, Host=host).status == 200


def test_nothing_that_is_said_or_logged_has_a_secret_in_it(
    server: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    code = mint(server)
    exchange(server, code)

    def break_down(*parameters: object) -> dict[str, object]:
        raise RuntimeError(f"a bug with {parameters}")

    monkeypatch.setattr(server.model, "code2session", break_down)
    assert ask_raw(server, get(call_path(code))) == b""
    wait_until(lambda: "RuntimeError" in caplog.text)
    said = caplog.text + "".join(capfd.readouterr())
    assert SECRET not in said
    assert code not in said


# ---- sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.1", "example.com", "127.1", "localhost.example.com"])
def test_it_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(SettingsError, match="loopback"):
        SandboxServer(new_model({APPID: SECRET}), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_every_ipv4_loopback_address_will_do(host: str) -> None:
    with SandboxServer(new_model({APPID: SECRET}), host) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port or 0), TIMEOUT_S) as connection:
            connection.sendall(get(call_path("no-such-code")))
            assert b"40029" in b"".join(chunks(connection))


def test_ipv6_loopback_will_do_and_has_brackets_in_its_url() -> None:
    try:
        server = SandboxServer(new_model({APPID: SECRET}), "::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with server:
        assert re.fullmatch(r"http://\[::1\]:\d+", server.url)


def test_a_burst_of_connections_waits_for_its_turn() -> None:
    server = SandboxServer(new_model({APPID: SECRET}))
    burst = []
    try:
        for _ in range(256):  # nobody accepts yet
            connection = connect(server)
            connection.sendall(get(call_path("no-such-code")))
            burst.append(connection)
        server.start()
        assert all(b"40029" in b"".join(chunks(connection)) for connection in burst)
    finally:
        for connection in burst:
            connection.close()
        server.stop()


def test_a_server_that_was_never_started_can_be_stopped_twice() -> None:
    server = SandboxServer(new_model({APPID: SECRET}))
    server.stop()
    server.stop()


# ---- the process --------------------------------------------------------------------------------


ROOT = Path(authsvc.__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "authsvc.sandbox"]


@dataclass
class Child:
    process: subprocess.Popen[str]
    line: str

    def end(self) -> tuple[int, str, str]:
        """Exit code, what it said after its first line, and standard error."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out, err


@pytest.fixture
def start_child() -> Iterator[Callable[..., Child]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> Child:
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--app", f"{APPID}:{SECRET}", *arguments],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return Child(process, process.stdout.readline())

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)


def child_exchanges(child: Child) -> bool:
    match = re.fullmatch(r"WeChat sandbox listening on (http://127\.0\.0\.1:\d+)\n", child.line)
    assert match
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(match[1]).port or 0, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/sandbox/code")
        code = json.loads(connection.getresponse().read())["code"]
        connection.request("GET", call_path(code))
        return "openid" in json.loads(connection.getresponse().read())
    finally:
        connection.close()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_where_it_is_and_ends_quietly_on_a_signal(
    start_child: Callable[..., Child], end: signal.Signals
) -> None:
    child = start_child()
    assert child_exchanges(child)
    child.process.send_signal(end)
    assert child.end() == (0, "", "")


def test_the_process_ends_on_a_signal_though_a_call_hangs(start_child: Callable[..., Child]) -> None:
    child = start_child()
    port = urlsplit(child.line.split()[-1]).port or 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("POST", "/sandbox/fault", '{"name": "hang"}')
    connection.getresponse().read()
    connection.request("GET", call_path("any"))
    child.process.terminate()
    assert child.end() == (0, "", "")
    connection.close()


def test_with_exit_with_stdin_the_process_ends_with_whoever_started_it(start_child: Callable[..., Child]) -> None:
    child = start_child("--exit-with-stdin")
    assert child.process.stdin is not None
    child.process.stdin.write("a line does not end it\n")
    child.process.stdin.flush()
    assert child_exchanges(child)
    child.process.stdin.close()
    child.process.stdin = None  # communicate() would flush it
    assert child.end() == (0, "", "")


def test_without_exit_with_stdin_the_process_outlives_its_standard_input(start_child: Callable[..., Child]) -> None:
    child = start_child()
    assert child.process.stdin is not None
    child.process.stdin.close()
    child.process.stdin = None
    with pytest.raises(subprocess.TimeoutExpired):
        child.process.wait(0.3)
    assert child_exchanges(child)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--app", f"{APPID}:{SECRET}", "--host", "0.0.0.0"], "loopback only"),
        (["--app", f"{APPID}:{SECRET}", "--host", "192.168.1.1"], "loopback only"),
        (["--app", f"{APPID}:{SECRET}", "--port", "65536"], "0 to 65535"),
        (["--app", f"{APPID}:{SECRET}", "--port", SECRET], "0 to 65535"),
        (["--app", f"{APPID}:{SECRET}", "--app", f"{APPID}:{OTHER_SECRET}"], "twice"),
        (["--app", f"{APPID}:{SECRET}", f"--apps={OTHER_APPID}:{OTHER_SECRET}"], "not understood"),
        (["--app", SECRET], "APPID:SECRET"),
        (["--app", f":{SECRET}"], "APPID:SECRET"),
        (["--app", f"a b:{SECRET}"], "appid"),
        ([], "--app"),
    ],
)
def test_arguments_that_describe_no_sandbox_are_refused_with_exit_2_and_without_the_secret(
    arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_with_exit_1(server: SandboxServer) -> None:
    done = run("--app", f"{APPID}:{SECRET}", "--port", str(urlsplit(server.url).port))
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_fault_with_its_line_below_the_endpoints_that_it_is_for() -> None:
    heading, found = "", {}
    for line in run("--help").stdout.splitlines():
        if match := re.fullmatch(r"  ([* ]) (\w+)  +(.+)", line):
            found[match[2]] = (match[1], match[3], heading)
        elif line.endswith(":"):
            heading = line[:-1]
    for fault in FAULTS.values():
        mark, line, heading = found[fault.name]
        assert (mark, line) == ("*" if fault.consumes_code else " ", fault.line)
        names = set(ENDPOINTS) if heading == "every endpoint" else set(heading.split(", "))
        assert names == fault.endpoints


def test_help_lists_every_route_with_what_it_takes() -> None:
    lines = run("--help").stdout.splitlines()
    for path, route in ADMIN.items():
        assert any(re.fullmatch(rf"  {route.method} {path} +{re.escape(route.usage)}", line) for line in lines)
