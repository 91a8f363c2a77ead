"""The sandbox's page for developers: what stands on it, what never does, and who cannot read it."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import shlex
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser

import pytest
import requests

from authsvc.sandbox.errcodes import ERRCODES
from authsvc.sandbox.faults import ENDPOINTS
from authsvc.sandbox.page import SHOWN_CALLS, SHOWN_USERS
from authsvc.sandbox.server import SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat
from tests.support.clock import FakeClock

APPID, SECRET = "wx0123456789abcdef", "s3cret-0123456789abcdef"
OTHER_APPID, OTHER_SECRET = "wxfedcba9876543210", "s3cret-fedcba9876543210"
NASTY = "<script>alert('x')</script> & \"quoted\" <b>"
TIMEOUT_S = 10

# What has no end tag (HTML, 13.1.2).
_VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page read by the rules: every tag, every attribute, the text, each table as rows of cells."""

    def __init__(self, reply: requests.Response) -> None:
        super().__init__()
        self.raw = reply.text
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.style = ""
        self.text = ""
        self.feed(self.raw)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are closed in their order"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def table(self, *head: str) -> list[list[str]]:
        """The rows of the table with this head."""
        start = self.rows.index(list(head)) + 1
        end = next((n for n in range(start, len(self.rows)) if self.rows[n][0] in HEADS), len(self.rows))
        return self.rows[start:end]


CALLS = ("time", "endpoint", "appid", "openid", "fault", "answer")
COUNTS = ("endpoint", "calls")
USERS = ("user", "openid", "appid", "last device", "session keys replaced")
PLANNED = ("endpoint", "fault", "calls left", "delay")
HEADS = {CALLS[0], COUNTS[0], USERS[0]}


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with new_server({APPID: SECRET}) as server:
        yield server


def new_server(apps: dict[str, str]) -> SandboxServer:
    return SandboxServer(SandboxWeChat(apps, clock=FakeClock(), random_bytes=random.Random(4711).randbytes))


def ask(server: SandboxServer, method: str = "GET", path: str = "/", **headers: str) -> requests.Response:
    return requests.request(method, server.url + path, headers=headers, timeout=TIMEOUT_S)


def page(server: SandboxServer) -> Page:
    reply = ask(server)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    return Page(reply)


def exchange(server: SandboxServer, code: str) -> dict[str, str]:
    query = {"appid": APPID, "secret": SECRET, "js_code": code, "grant_type": "authorization_code"}
    reply = requests.get(f"{server.url}/sns/jscode2session", params=query, timeout=TIMEOUT_S)
    answer: dict[str, str] = reply.json()
    return answer


# ---- what stands on it --------------------------------------------------------------------------


def test_a_fresh_sandbox_says_that_there_is_nothing_yet(server: SandboxServer) -> None:
    shown = page(server)
    assert shown.table(*COUNTS) == [[name, "0"] for name in (*ENDPOINTS, "elsewhere")]
    assert shown.text.count("None so far") == 2
    assert "None: every call gets its right answer" in shown.text
    assert server.url in shown.text
    assert APPID in shown.text


def test_the_last_calls_are_shown_with_who_asked_and_what_the_answer_means_and_the_newest_first(
    server: SandboxServer,
) -> None:
    openid = server.model.openid(APPID, "alice")
    code = server.model.mint_code(APPID, "alice", "code_blocked", times=1)
    for _ in range(3):
        exchange(server, code)
    server.faults.set("close")
    with pytest.raises(requests.ConnectionError):
        exchange(server, "unknown")
    ask(server, path=f"/wxa/checksession?openid={SECRET}")
    time = "08:00:00 UTC"  # FakeClock's
    assert page(server).table(*CALLS) == [
        [time, "checksession", "", "", "", f"41001 access_token missing: {ERRCODES[41001].meaning}"],
        [time, "jscode2session", APPID, "", "close", "no answer of WeChat's"],
        [time, "jscode2session", APPID, openid, "", f"40163 code been used: {ERRCODES[40163].meaning}"],
        [time, "jscode2session", APPID, openid, "", "ok"],
        [time, "jscode2session", APPID, openid, "code_blocked", f"40226 code blocked: {ERRCODES[40226].meaning}"],
    ]
    assert page(server).table(*COUNTS)[:3] == [["jscode2session", "4"], ["stable_token", "0"], ["checksession", "1"]]


def test_the_users_are_shown_with_how_often_their_key_was_replaced(server: SandboxServer) -> None:
    for device in ("phone", "pc", "phone"):
        server.model.mint_code(APPID, "alice", device=device)
    server.model.mint_code(APPID, "鲍勃", device="pc")
    assert page(server).table(*USERS) == [
        ["鲍勃", server.model.openid(APPID, "鲍勃"), APPID, "pc", "0"],
        ["alice", server.model.openid(APPID, "alice"), APPID, "phone", "2"],
    ]


def test_the_planned_faults_are_shown_until_they_are_met(server: SandboxServer) -> None:
    server.fault_plan("checksession").set("delay", times=2, delay_s=1.5)
    server.faults.set("system_busy", times=None)
    rows = [["jscode2session", "system_busy", "every call", ""], ["checksession", "delay", "2", "1.5 s"]]
    assert page(server).table(*PLANNED) == rows
    assert page(server).table(*PLANNED) == rows, "looking at them does not use them up"
    server.faults.clear()
    server.fault_plan("checksession").clear()
    assert "None: every call gets its right answer" in page(server).text


def test_a_long_history_is_cut(server: SandboxServer) -> None:
    for number in range(SHOWN_CALLS + 5):
        exchange(server, server.model.mint_code(APPID, f"user-{number}"))
    shown = page(server)
    calls, users = shown.table(*CALLS), shown.table(*USERS)
    assert (len(calls), len(users)) == (SHOWN_CALLS, SHOWN_USERS)
    assert calls[0][3] == server.model.openid(APPID, f"user-{SHOWN_CALLS + 4}")
    assert users[-1][0] == "user-5"
    assert shown.table(*COUNTS)[0] == ["jscode2session", str(SHOWN_CALLS + 5)]


@pytest.mark.parametrize("apps", [{APPID: SECRET}, {APPID: SECRET, OTHER_APPID: OTHER_SECRET}])
def test_every_recipe_on_the_page_works_in_its_order(apps: dict[str, str]) -> None:
    with new_server(apps) as server:
        recipes = re.search(r"<pre>(.*)</pre>", ask(server).text, re.DOTALL)
        assert recipes
        commands = [shlex.split(line) for line in unescape(recipes[1]).splitlines() if line.startswith("curl")]
        assert {command[3].rpartition("/")[2] for command in commands} == {"code", "phone_code", "open_data", "fault"}
        for name, option, body, url in commands:
            assert (name, option) == ("curl", "-d")
            reply = requests.post(url, data=body.encode(), timeout=TIMEOUT_S)
            assert reply.status_code == 200, reply.text


def test_the_page_asks_for_itself_anew_and_fits_a_phone_and_both_colour_schemes(server: SandboxServer) -> None:
    raw = page(server).raw
    assert '<meta http-equiv="refresh" content="5">' in raw
    assert '<meta name="viewport"' in raw
    assert "color-scheme: light dark" in raw
    assert "prefers-color-scheme: dark" in raw


# ---- what never does ----------------------------------------------------------------------------


def test_names_are_text_and_never_markup(server: SandboxServer) -> None:
    server.model.mint_code(APPID, NASTY, device=NASTY)
    exchange(server, NASTY)
    ask(server, path="/wxa/checksession?openid=<script>&access_token=<script>")
    shown = page(server)
    assert "script" not in shown.tags
    assert "<script>" not in shown.raw
    assert shown.table(*USERS)[0][0] == shown.table(*USERS)[0][3] == NASTY


def test_no_secret_stands_on_the_page(server: SandboxServer) -> None:
    model = server.model
    code, phone_code = model.mint_code(APPID, "alice"), model.mint_phone_code(APPID, "alice", "13912345678")
    access_token = str(model.stable_token(APPID, SECRET, "client_credential")["access_token"])
    old = exchange(server, code)["session_key"]
    new = exchange(server, model.mint_code(APPID, "alice", device="pc"))["session_key"]
    signature = hashlib.sha256(b"any").hexdigest()
    query = f"access_token={access_token}&openid={SECRET}&signature={signature}&sig_method=hmac_sha256"
    ask(server, path=f"/wxa/checksession?{query}")
    ask(server, path=f"/sns/jscode2session?appid={SECRET}&secret={APPID}&js_code={code}")
    url = f"{server.url}/wxa/business/getuserphonenumber?access_token={access_token}"
    assert requests.post(url, json={"code": phone_code}, timeout=TIMEOUT_S).json()["errcode"] == 0
    raw = page(server).raw
    secrets = [SECRET, code, phone_code, access_token, old, new, signature, "13912345678"]
    assert [secret for secret in secrets if secret in raw] == []
    assert model.openid(APPID, "alice") in raw, "what may stand there does, so the search does find things"


def test_the_page_brings_nothing_from_elsewhere_and_its_policy_allows_nothing_but_its_own_style(
    server: SandboxServer,
) -> None:
    shown = page(server)
    assert not shown.tags & {"script", "link", "img", "iframe", "form", "object", "a"}
    assert not {name for name in shown.attributes if name in ("src", "href", "style") or name.startswith("on")}
    assert "url(" not in shown.style
    assert "@import" not in shown.style
    digest = base64.b64encode(hashlib.sha256(shown.style.encode()).digest()).decode()
    assert ask(server).headers["Content-Security-Policy"].split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]


# ---- who can read it ----------------------------------------------------------------------------


def test_a_page_elsewhere_cannot_have_it_in_any_way(server: SandboxServer) -> None:
    headers = ask(server).headers
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Host": ""}, {"Origin": "https://evil.example"}])
def test_a_name_that_is_rebound_and_a_page_elsewhere_are_refused(
    server: SandboxServer, headers: dict[str, str]
) -> None:
    server.model.mint_code(APPID, "alice")
    reply = ask(server, **headers)
    assert reply.status_code == 403
    assert "alice" not in reply.text


def test_head_has_the_headers_and_no_body(server: SandboxServer) -> None:
    head, get = ask(server, "HEAD"), ask(server)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["Content-Length"] == str(len(get.content))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_the_page_takes_no_other_method(server: SandboxServer, method: str) -> None:
    reply = ask(server, method)
    assert (reply.status_code, reply.headers["Allow"]) == (405, "GET, HEAD")
