"""What is in a span, and what never is; and when there are any."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import responses
import structlog
import structlog.testing
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from authsvc import errors
from authsvc.otel import OtelSpans, _Telling
from authsvc.settings import Settings, load_settings
from authsvc.spans import NO_SPANS, wanted
from authsvc.wechat import App, WeChatClient, WeChatSession, new_session
from tests.contract.test_http_session import OLDEST_KEY, ask, open_data, service_with_logins
from tests.support.app import APPID, CODE, SESSION_KEY, FakeService, FakeWeChat
from tests.support.logs import logged

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
WECHAT_URL = "https://api.weixin.qq.com"
OPENID = "oABC-def_123"


@pytest.fixture
def seen() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(seen: InMemorySpanExporter) -> OtelSpans:
    return _spans(seen)


def _spans(exporter: SpanExporter, sampler: Sampler | None = None) -> OtelSpans:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OtelSpans(provider)


def _one(seen: InMemorySpanExporter) -> ReadableSpan:
    (span,) = seen.get_finished_spans()
    return span


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# ---- requests -----------------------------------------------------------------------------------


def test_a_request_is_a_span_of_its_route_method_status_and_request_id(
    seen: InMemorySpanExporter, spans: OtelSpans
) -> None:
    client = FakeService(spans=spans).client()
    assert client.get("/checklogin?token=TOKENMARKER", headers={"X-Request-ID": "abc"}).status_code == 200
    span = _one(seen)
    assert (span.name, span.kind, span.parent) == ("GET /checklogin", SpanKind.SERVER, None)
    assert _attributes(span) == {
        "http.request.method": "GET",
        "http.route": "/checklogin",
        "http.response.status_code": 200,
        "authsvc.request_id": "abc",
        "authsvc.outcome": "malformed",
    }
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("path", ["/TOKENMARKER", "/checklogin/TOKENMARKER?token=TOKENMARKER"])
def test_a_path_that_is_no_route_is_in_no_span(seen: InMemorySpanExporter, spans: OtelSpans, path: str) -> None:
    FakeService(spans=spans).client().get(path)
    assert _one(seen).name == "GET"
    assert "MARKER" not in _one(seen).to_json()


def test_a_method_that_nobody_knows_is_in_no_span(seen: InMemorySpanExporter, spans: OtelSpans) -> None:
    FakeService(spans=spans).client().open("/healthz", method="MARKER")
    assert _one(seen).name == "_OTHER"
    assert "MARKER" not in _one(seen).to_json()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.WeChatTimeout("MESSAGEMARKER"), 504),
        (errors.WeChatMisconfigured("MESSAGEMARKER", errcode=40125), 502),
        (RuntimeError("MESSAGEMARKER"), 500),
    ],
)
def test_a_request_that_failed_says_its_code_and_not_its_words(
    seen: InMemorySpanExporter, spans: OtelSpans, error: Exception, status: int
) -> None:
    service = FakeService(spans=spans)
    service.wechat.answer = error
    assert service.client().post("/login", json={"code": CODE}).status_code == status
    span = _one(seen)
    assert span.status.status_code is StatusCode.ERROR
    assert _attributes(span)["error.type"] == getattr(error, "code", "internal_error")
    assert (span.events, span.status.description) == ((), None)
    assert "MARKER" not in span.to_json()


def test_a_refusal_is_no_error_of_ours(seen: InMemorySpanExporter, spans: OtelSpans) -> None:
    service = FakeService(spans=spans)
    service.wechat.answer = errors.CodeUsed("used", errcode=40163)
    service.client().post("/login", json={"code": CODE})
    assert _attributes(_one(seen))["authsvc.outcome"] == "code_used"
    assert _one(seen).status.status_code is StatusCode.UNSET


def test_nothing_secret_is_in_the_span_of_any_route(seen: InMemorySpanExporter, spans: OtelSpans) -> None:
    service = service_with_logins()
    service.spans = spans
    client = service.client()
    token = client.post("/login", json={"code": CODE}).get_json()["token"]
    client.get(f"/checklogin?token={token}")
    client.get("/checklogin", headers={"Authorization": f"Bearer {token}"})
    client.get(f"/healthz?token={token}", headers={"tracestate": f"x={token}", "baggage": f"x={token}"})
    ask(service, "decrypt", open_data(OLDEST_KEY))
    ask(service, "phone", {"code": CODE})
    text = "".join(span.to_json() for span in seen.get_finished_spans())
    assert len(seen.get_finished_spans()) == 6
    for secret in (CODE, token, token.rsplit(".", 1)[1], SESSION_KEY, OPENID, "13800138000", "access-token-of"):
        assert secret not in text


# ---- the caller's trace -------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["00", "cc"])
def test_a_span_goes_on_with_the_callers_trace(seen: InMemorySpanExporter, spans: OtelSpans, version: str) -> None:
    headers = {"traceparent": f"{version}-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=MARKER"}
    FakeService(spans=spans).client().get("/healthz", headers=headers)
    span = _one(seen)
    assert span.context is not None
    assert span.parent is not None
    assert trace.format_trace_id(span.context.trace_id) == TRACE_ID
    assert trace.format_span_id(span.parent.span_id) == PARENT_ID
    assert "MARKER" not in span.to_json()


def test_a_trace_that_its_caller_does_not_gather_is_not_gathered(seen: InMemorySpanExporter, spans: OtelSpans) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
    FakeService(spans=spans).client().get("/healthz", headers=headers)
    assert seen.get_finished_spans() == ()


def test_the_next_request_is_in_no_trace_of_the_one_before(seen: InMemorySpanExporter, spans: OtelSpans) -> None:
    client = FakeService(spans=spans).client()
    client.get("/healthz", headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    client.get("/healthz")
    _, span = seen.get_finished_spans()
    assert span.parent is None
    assert span.context is not None
    assert trace.format_trace_id(span.context.trace_id) != TRACE_ID
    assert not trace.get_current_span().get_span_context().is_valid


class _Talkative(FakeWeChat):
    def code2session(self, app: App, code: str) -> WeChatSession:
        logging.getLogger("authsvc.wechat").warning("WeChat is slow")
        return super().code2session(app, code)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}])
def test_the_lines_of_a_request_have_the_ids_of_its_span(
    seen: InMemorySpanExporter, spans: OtelSpans, log: io.StringIO, headers: dict[str, str]
) -> None:
    FakeService(spans=spans, wechat=_Talkative()).client().post("/login", json={"code": CODE}, headers=headers)
    context = _one(seen).context
    assert context is not None
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    said = [line for line in lines if line["event"] in ("WeChat is slow", "request")]
    assert len(said) == 2
    for line in said:
        assert line["trace_id"] == trace.format_trace_id(context.trace_id)
        assert line["span_id"] == trace.format_span_id(context.span_id)
        assert line.get("parent_id") == (PARENT_ID if headers else None)


def test_without_a_span_the_lines_have_the_callers_ids_alone(log: io.StringIO, seen: InMemorySpanExporter) -> None:
    unsampled = FakeService(spans=_spans(seen, ParentBased(ALWAYS_OFF)))
    for service in (FakeService(), unsampled):
        service.client().get("/healthz")
        service.client().get("/healthz", headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line.get("trace_id") for line in lines] == [None, TRACE_ID] * 2
    assert not any("span_id" in line for line in lines)


# ---- calls to WeChat ----------------------------------------------------------------------------


def _client(spans: OtelSpans, **options: Any) -> WeChatClient:
    return WeChatClient(
        new_session(connections=1), url=WECHAT_URL, timeout_s=5, sleep=lambda _: None, spans=spans, **options
    )


def _answers(**answer: object) -> None:
    responses.get(f"{WECHAT_URL}/sns/jscode2session", json=answer)


@responses.activate
def test_a_call_to_wechat_is_a_span_below_its_request_without_its_query(
    seen: InMemorySpanExporter, spans: OtelSpans
) -> None:
    _answers(openid=OPENID, session_key=SESSION_KEY)
    with spans.span("GET /outer", "server", {}):
        _client(spans).code2session(App(APPID, ("SECRETMARKER",)), CODE)
    call, outer = seen.get_finished_spans()
    assert (call.name, call.kind) == ("GET /sns/jscode2session", SpanKind.CLIENT)
    assert _attributes(call) == {
        "http.request.method": "GET",
        "server.address": "api.weixin.qq.com",
        "url.path": "/sns/jscode2session",
        "http.response.status_code": 200,
    }
    assert call.parent is not None
    assert call.parent == outer.context
    for secret in ("MARKER", CODE, SESSION_KEY, OPENID):
        assert secret not in call.to_json()


@responses.activate
@pytest.mark.parametrize(
    ("errcode", "error", "code"),
    [(40163, errors.CodeUsed, "code_used"), (-1, errors.WeChatBusy, "wechat_busy")],
)
def test_a_call_that_wechat_refused_has_the_errcode_and_not_the_errmsg(
    seen: InMemorySpanExporter, spans: OtelSpans, errcode: int, error: type[Exception], code: str
) -> None:
    _answers(errcode=errcode, errmsg=f"code been used, rid: MESSAGEMARKER {CODE}")
    with pytest.raises(error):
        _client(spans).code2session(App(APPID, ("SECRETMARKER",)), CODE)
    found = seen.get_finished_spans()
    assert len(found) == (2 if errcode == -1 else 1), "each HTTP request has its own"
    for span in found:
        assert _attributes(span)["wechat.errcode"] == errcode
        assert _attributes(span)["error.type"] == code
        assert span.events == ()
        assert not re.search(f"MARKER|{CODE}", span.to_json())


@responses.activate
def test_a_call_that_did_not_get_through_is_a_span_too(seen: InMemorySpanExporter, spans: OtelSpans) -> None:
    responses.post(f"{WECHAT_URL}/cgi-bin/stable_token", body=TimeoutError(f"MARKER {CODE}"))
    with pytest.raises(errors.WeChatError):
        _client(spans).stable_access_token(App(APPID, ("SECRETMARKER",)))
    span = _one(seen)
    assert span.name == "POST /cgi-bin/stable_token"
    assert "http.response.status_code" not in _attributes(span)
    assert "MARKER" not in span.to_json()


# ---- what goes wrong with the spans themselves --------------------------------------------------


class _Fickle(SpanExporter):
    def __init__(self) -> None:
        self.result = SpanExportResult.FAILURE

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self.result


def test_lost_spans_are_said_once_a_minute_with_their_number() -> None:
    at = 0.0
    telling = _Telling(_Fickle(), monotonic=lambda: at)
    span = ReadableSpan("a span")
    with structlog.testing.capture_logs() as logs:
        for at in (0.0, 10.0, 59.9, 60.0):  # noqa: B007 - the clock reads it
            telling.export([span, span])
    assert [(line["event"], line["spans"]) for line in logs] == [("spans_lost", 2), ("spans_lost", 6)]


class _Broken(Sampler):
    def should_sample(self, *_: object, **__: object) -> Any:
        raise RuntimeError("MARKER")

    def get_description(self) -> str:
        return "broken"


def test_a_request_does_without_a_span_that_cannot_be_made(seen: InMemorySpanExporter) -> None:
    client = FakeService(spans=_spans(seen, _Broken())).client()
    assert client.get("/healthz").status_code == 200
    assert client.post("/login", json={"code": CODE}).status_code == 200


def test_who_ends_waits_for_a_hanging_collector_no_longer_than_two_seconds() -> None:
    never = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            never.wait(60)

    stopping = threading.Thread(target=_spans(Hanging()).stop, daemon=True)
    stopping.start()
    stopping.join(3 * 2 + 2)
    assert not stopping.is_alive()
    never.set()


# ---- whether there are any ----------------------------------------------------------------------

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environ", "are_wanted", "problem"),
    [
        ({}, False, None),
        ({"OTEL_SERVICE_NAME": "login"}, False, None),
        (ENDPOINT, True, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True, None),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False, None),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, False, None),
        ({"OTEL_TRACES_EXPORTER": "console"}, False, "OTEL_TRACES_EXPORTER is console"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False, "OTEL_EXPORTER_OTLP_PROTOCOL is grpc"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True, None),
        (
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            True,
            None,
        ),
    ],
)
def test_opentelemetrys_own_variables_decide(environ: dict[str, str], are_wanted: bool, problem: str | None) -> None:
    found, said = wanted(environ)
    assert (found, (said or "").startswith(problem or "")) == (are_wanted, True)
    assert (said is None) is (problem is None)
    settings = _settings(environ)
    assert settings.spans is are_wanted
    assert (said in settings.warnings) is (said is not None)


def _settings(environ: dict[str, str]) -> Settings:
    mine = {"AUTHSVC_APPID": "wx1", "AUTHSVC_SECRET": "s", "AUTHSVC_ISSUER": "https://auth.example.com"}
    return load_settings(mine | environ, dotenv=None, cores=1)


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_where_the_extra_is_missing_one_warning_says_so(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    settings = _settings(ENDPOINT)
    assert settings.spans is False
    (warning,) = settings.warnings
    assert "authsvc[server,otel]" in warning
    assert _settings({}).warnings == ()


def test_where_nobody_wants_spans_nothing_is_made() -> None:
    with NO_SPANS.span("a", "server", {}) as one, NO_SPANS.span("b", "client", {}) as other:
        assert one is other
        assert one.ids == {}
    NO_SPANS.stop()
