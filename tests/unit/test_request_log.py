"""One line a request, with what an operator needs and nothing that is secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from authsvc import errors
from authsvc.wechat import App, WeChatSession
from tests.contract.test_http_session import OLDEST_KEY, ask, open_data, service_with_logins
from tests.support.app import APPID, FakeService, FakeWeChat
from tests.support.clock import NOW
from tests.support.logs import logged

CODE = "0712cDoV0cfty22AeloV0daMoV02cDog"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


def _lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def _requests(log: io.StringIO) -> list[dict[str, Any]]:
    return [line for line in _lines(log) if line["event"] == "request"]


def test_a_login_is_one_line_with_app_outcome_and_a_stand_in_for_the_user(log: io.StringIO) -> None:
    service = FakeService()
    service.client().post("/login?token=QUERYMARKER", json={"code": CODE}, headers={"X-Request-ID": "abc"})
    (line,) = _requests(log)
    assert (
        line.items()
        >= {
            "method": "POST",
            "path": "/login",
            "status": 200,
            "request_id": "abc",
            "appid": APPID,
            "outcome": "ok",
            "user": service.ring.pseudonym(APPID, "oABC-def_123"),
            "level": "info",
        }.items()
    )
    assert line["duration_ms"] >= 0
    assert line["timestamp"].endswith("Z")
    for secret in (CODE, "QUERYMARKER", "oABC-def_123"):
        assert secret not in log.getvalue()


def test_a_refused_login_says_wechats_errcode_and_rid(log: io.StringIO) -> None:
    service = FakeService()
    service.wechat.answer = error = errors.CodeUsed("used", errcode=40163, rid="652d44d0-1d0af18b-5b069232")
    error.call = "jscode2session"
    service.client().post("/login", json={"code": CODE})
    (line,) = _requests(log)
    assert (
        line.items()
        >= {
            "status": 401,
            "outcome": "code_used",
            "appid": APPID,
            "wechat_errcode": 40163,
            "wechat_call": "jscode2session",
            "wechat_rid": "652d44d0-1d0af18b-5b069232",
        }.items()
    )
    assert "user" not in line


@pytest.mark.parametrize("access_log", ["all", "login", "none"])
def test_a_failure_says_its_problem_in_a_warning_whatever_the_operator_chose(log: io.StringIO, access_log: Any) -> None:
    service = FakeService(access_log=access_log)
    service.wechat.answer = errors.WeChatMisconfigured("WeChat does not accept the app secret", errcode=40125)
    service.client().post("/login", json={"code": CODE})
    (line,) = _requests(log)
    assert (line["level"], line["outcome"], line["appid"]) == ("warning", "wechat_config", APPID)
    assert line["problem"] == "WeChat does not accept the app secret"


def test_of_data_that_do_not_open_the_log_says_why_and_the_reply_does_not(log: io.StringIO) -> None:
    service = service_with_logins()
    stale = open_data(OLDEST_KEY, watermark={"appid": APPID, "timestamp": NOW - 3600})
    reply = ask(service, "decrypt", stale)
    assert "3600" not in reply.text
    (line,) = _requests(log)
    assert (line["outcome"], line["path"]) == ("decrypt_failed", "/session/decrypt")
    assert line["problem"] == "the watermark's timestamp is -3600 s from now, and 600 s are allowed"


@pytest.mark.parametrize("path", ["/checklogin/TOKENMARKER", "/TOKENMARKER", "/login/TOKENMARKER"])
def test_a_path_that_is_no_route_is_not_in_the_log(log: io.StringIO, path: str) -> None:
    FakeService().client().get(path)
    (line,) = _requests(log)
    assert (line["status"], line["path"]) == (404, "(no such route)")
    assert "TOKENMARKER" not in log.getvalue()


def test_a_method_that_nobody_knows_is_not_in_the_log(log: io.StringIO) -> None:
    FakeService().client().open("/healthz", method="M" * 50_000)
    (line,) = _requests(log)
    assert (line["status"], line["method"]) == (405, "(other)")


@pytest.mark.parametrize(("access_log", "seen"), [("all", 3), ("login", 1), ("none", 0)])
def test_the_operator_chooses_which_requests_have_a_line(log: io.StringIO, access_log: Any, seen: int) -> None:
    client = FakeService(access_log=access_log).client()
    client.get("/checklogin")
    client.get("/healthz")
    client.post("/login", json={"code": CODE})
    assert len(_requests(log)) == seen


def test_an_unforeseen_error_is_logged_by_type_and_place(log: io.StringIO) -> None:
    service = FakeService()
    service.wechat.answer = RuntimeError("MESSAGEMARKER")
    service.client().post("/login", json={"code": CODE})
    (line,) = [line for line in _lines(log) if line["event"] == "unexpected_error"]
    assert line["error_type"] == "RuntimeError"
    assert any("app.py" in place for place in line["error_at"])
    assert "MESSAGEMARKER" not in log.getvalue()


def test_a_stand_in_is_the_same_for_the_same_user_and_no_other() -> None:
    ring = FakeService().ring
    assert ring.pseudonym("wx1", "o1") == ring.pseudonym("wx1", "o1")
    assert len({ring.pseudonym(a, o) for a, o in (("wx1", "o1"), ("wx2", "o1"), ("wx1", "o2"), ("wx1 o", "1"))}) == 4


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"


class _Talkative(FakeWeChat):
    """Logs, as the real client does about what it meets."""

    def code2session(self, app: App, code: str) -> WeChatSession:
        logging.getLogger("authsvc.wechat").warning("WeChat is slow")
        return super().code2session(app, code)


@pytest.mark.parametrize("version", ["00", "01", "cc"])
def test_the_ids_of_request_and_trace_are_in_every_line_of_a_request(log: io.StringIO, version: str) -> None:
    headers = {"X-Request-ID": "abc", "traceparent": f"{version}-{TRACE_ID}-{PARENT_ID}-01"}
    FakeService(wechat=_Talkative()).client().post("/login", json={"code": CODE}, headers=headers)
    said = [line for line in _lines(log) if line["event"] in ("WeChat is slow", "request")]
    assert len(said) == 2
    for line in said:
        assert (line["request_id"], line["trace_id"], line["parent_id"]) == ("abc", TRACE_ID, PARENT_ID)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "MARKER",
        f"00-{TRACE_ID}-{PARENT_ID}",
        f"00-{TRACE_ID}-{PARENT_ID}-01-MARKER",
        f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"01-{TRACE_ID}-{PARENT_ID}-01x",
    ],
)
def test_a_traceparent_that_is_none_is_passed_over(log: io.StringIO, traceparent: str) -> None:
    FakeService().client().get("/healthz", headers={"traceparent": traceparent})
    (line,) = _requests(log)
    assert "trace_id" not in line
    assert "MARKER" not in log.getvalue()


def test_the_next_request_has_no_ids_of_the_one_before(log: io.StringIO) -> None:
    client = FakeService().client()
    client.get("/healthz", headers={"X-Request-ID": "abc", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    client.get("/healthz")
    _, line = _requests(log)
    assert line["request_id"] != "abc"
    assert "trace_id" not in line
    assert structlog.contextvars.get_contextvars() == {}
