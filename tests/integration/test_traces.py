"""Spans of the real service, as a real collector gets them by HTTP: from workers that are forked, and end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from authsvc.encoding import base64url_decode
from tests.support.collector import Collector, attributes_of, collector
from tests.support.processes import children, until
from tests.support.service import APPID, SECRET, SERVICE_TOKEN, Running, Service, clean_environment, free_port, service

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


@pytest.fixture
def gathering() -> Iterator[Collector]:
    with collector() as it:
        yield it


@pytest.fixture
def otel(monkeypatch: pytest.MonkeyPatch, gathering: Collector) -> Collector:
    """For all services that a test starts."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gathering.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20COLLECTORMARKER")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    return gathering


def _log_in(it: Service, code: str, **headers: str) -> requests.Response:
    return requests.post(f"{it.url}/login", json={"code": code}, headers=TRACEPARENT | headers, timeout=30)


def _is(span: Span, **expected: str) -> bool:
    return expected.items() <= attributes_of(span.attributes).items()


def test_a_login_is_found_in_the_callers_trace_with_its_call_to_wechat_and_without_anything_secret(
    tmp_path: Path, wechat: Running, otel: Collector
) -> None:
    with service(tmp_path, wechat_url=wechat.url, FAST_LANE="0", SERVICE_TOKENS=SERVICE_TOKEN, WORKERS="2") as it:
        code, refused = it.mint("traced"), it.mint("traced", fault="code_used")
        reply = _log_in(it, code, **{"X-Request-ID": "the-first"})
        token = reply.json()["token"]
        assert _log_in(it, refused).status_code == 401
        params, bearer = {"token": token}, {"Authorization": f"Bearer {token}"}
        assert requests.get(f"{it.url}/checklogin", params=params, headers=TRACEPARENT, timeout=30).json()["is_login"]
        assert it.ask("check", token).json() == {"valid": True}
        requests.get(f"{it.url}/{token}", headers=TRACEPARENT | bearer, timeout=30)
        until(lambda: otel.named("GET /checklogin") and otel.named("POST /session/check"), within_s=3 * 5 + 2)
        log = it.output()
    openid = json.loads(base64url_decode(token.split(".")[1]))["openid"]
    (first,) = [span for span in otel.named("POST /login") if _is(span, **{"authsvc.request_id": "the-first"})]
    assert first.trace_id.hex() == TRACE_ID
    assert first.parent_span_id.hex() == PARENT_ID
    assert (first.kind, first.status.code) == (Span.SPAN_KIND_SERVER, Status.STATUS_CODE_UNSET)
    assert _is(first, **{"http.route": "/login", "http.response.status_code": "200", "authsvc.outcome": "ok"})
    calls = otel.named("GET /sns/jscode2session")
    assert {span.trace_id.hex() for span in calls} == {TRACE_ID}
    (call,) = [span for span in calls if span.parent_span_id == first.span_id]
    assert call.kind == Span.SPAN_KIND_CLIENT
    assert _is(call, **{"url.path": "/sns/jscode2session", "server.address": "127.0.0.1"})
    assert any(_is(span, **{"wechat.errcode": "40163", "error.type": "code_used"}) for span in calls)
    assert otel.named("GET /wxa/checksession")
    assert first.span_id.hex() in [line.get("span_id") for line in _lines(log) if line.get("event") == "request"]
    assert otel.services() == {"authsvc"}
    assert otel.authorizations == {"Bearer COLLECTORMARKER"}
    sent = b"".join(otel.bodies)
    assert b"/checklogin" in sent, "it is not compressed, so the search does find things"
    for secret in (code, refused, token, token.rsplit(".", 1)[1], SECRET, SERVICE_TOKEN, openid, APPID):
        assert secret.encode() not in sent
    assert "COLLECTORMARKER" not in log


def _lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def test_what_a_worker_has_not_sent_yet_is_sent_when_it_ends(
    tmp_path: Path, wechat: Running, otel: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "login")
    with service(tmp_path, wechat_url=wechat.url) as it:
        assert _log_in(it, it.mint("flushed")).status_code == 200
        assert otel.bodies == []
        assert it.stop() == 0
    assert len(otel.named("POST /login")) == 1
    assert otel.services() == {"login"}


def test_a_worker_that_takes_anothers_place_sends_too(tmp_path: Path, wechat: Running, otel: Collector) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        (worker,) = children(it.process.pid)
        subprocess.run(["kill", "-KILL", str(worker)], check=True)
        until(lambda: children(it.process.pid) not in ([], [worker]), within_s=30)
        until(lambda: _answers(it), within_s=30)
        assert _log_in(it, it.mint("successor")).status_code == 200
        until(lambda: otel.named("POST /login"), within_s=3 * 5 + 2)


def _answers(it: Service) -> bool:
    try:
        return requests.get(f"{it.url}/readyz", timeout=5).status_code == 200
    except requests.RequestException:
        return False


@pytest.mark.parametrize("how", ["nobody listens", "it hangs", "it refuses"])
def test_a_collector_that_fails_fails_and_slows_no_request(
    tmp_path: Path, wechat: Running, otel: Collector, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    match how:
        case "nobody listens":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}/?key=KEYMARKER")
        case "it hangs":
            otel.may_answer.clear()
        case "it refuses":
            otel.status = 401
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    with service(tmp_path, wechat_url=wechat.url, FAST_LANE="0") as it:
        began = time.monotonic()
        for number in range(40):
            assert requests.get(f"{it.url}/checklogin", timeout=10).status_code == 200, number
        assert _log_in(it, it.mint(f"lost-{how.replace(' ', '-')}")).status_code == 200
        assert time.monotonic() - began < 10
        until(lambda: "spans_lost" in it.output(), within_s=3 * 3 + 2)
        stopped_at = time.monotonic()
        assert it.stop() == 0
        assert time.monotonic() - stopped_at < 3 * 2 + 2
        log = it.output()
    assert log.count('"spans_lost"') == 1
    for noise in ("KEYMARKER", "Traceback", "refused to gracefully stop", "Failed to export"):
        assert noise not in log


def test_variables_that_make_no_sense_cost_the_spans_and_not_the_service(
    tmp_path: Path, wechat: Running, otel: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with service(tmp_path, wechat_url=wechat.url) as it:
        assert it.log_in(it.mint("senseless")).status_code == 200
        assert '"no_spans"' in it.output()
    assert otel.bodies == []


def test_without_the_extra_the_service_starts_as_ever_and_says_once_what_is_missing(
    tmp_path: Path, wechat: Running, otel: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    hides = "import sys\nfor name in ('sdk', 'exporter'):\n    sys.modules['opentelemetry.' + name] = None\n"
    (site / "sitecustomize.py").write_text(hides)
    path = f"{site}:{clean_environment().get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    assert subprocess.run(
        [sys.executable, "-c", "import opentelemetry.sdk"], check=False, capture_output=True
    ).returncode
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        assert it.log_in(it.mint("extra")).status_code == 200
        assert it.output().count("authsvc[server,otel]") == 1
        assert "no_spans" not in it.output()
    assert otel.bodies == []


def test_where_nobody_asks_for_spans_opentelemetry_is_not_even_loaded(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom authsvc.cli import command\nfrom authsvc import wiring\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
