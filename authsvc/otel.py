"""Spans by OpenTelemetry, which is an extra: who imports this has it, or gets an ImportError.

The tracer is ours alone. With a global one, every library that knows of OpenTelemetry would send spans of its own, with
whatever it thinks worth telling: a Redis client its keys, an HTTP client its URLs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final, Literal

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode

from authsvc.spans import NO_SPAN, Caller, Span

_FLUSH_WITHIN_S: Final = 2.0
_SAY_AGAIN_S: Final = 60.0
_KINDS: Final = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT}

_log = structlog.get_logger("authsvc.spans")


def start_spans() -> OtelSpans:
    """As OpenTelemetry's variables say. Starts a thread: in a worker, after the fork.

    Raises: whatever the library does about variables that make no sense.
    """
    # What it says of each failure has the collector's URL in it, and that may have a key in it; see `_Telling`.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "authsvc"}))
    resource = resource.merge(Resource({SERVICE_VERSION: version("authsvc")}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Telling(OTLPSpanExporter(), monotonic=time.monotonic)))
    return OtelSpans(provider)


class OtelSpans:
    """Implements Spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("authsvc", version("authsvc"))

    @contextmanager
    def span(
        self,
        name: str,
        kind: Literal["server", "client"],
        attributes: Mapping[str, str | int],
        caller: Caller | None = None,
    ) -> Iterator[Span]:
        within = None if kind == "client" else _context_of(caller)
        try:
            span = self._tracer.start_span(name, within, _KINDS[kind], attributes)
            token = otel_context.attach(trace.set_span_in_context(span, within))
        except Exception as error:  # noqa: BLE001 - a sampler that somebody installed is no reason to refuse anybody
            _log.error("no_span", exc_info=error)
            span = None
        if span is None:
            yield NO_SPAN
            return
        try:
            # Not the tracer's own way of doing this, which notes an exception with its words and its traceback.
            yield _OtelSpan(span)
        finally:
            otel_context.detach(token)
            span.end()

    def stop(self) -> None:
        # The library waits for half a minute, in which the worker would be killed.
        flushing = threading.Thread(target=self._provider.shutdown, name="authsvc-spans", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_WITHIN_S)


class _OtelSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def ids(self) -> dict[str, str]:
        if not self._span.is_recording():
            return {}
        found = self._span.get_span_context()
        return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}

    def note(self, name: str, value: str | int) -> None:
        self._span.set_attribute(name, value)

    def fail(self, what: str) -> None:
        self._span.set_attribute("error.type", what)
        self._span.set_status(Status(StatusCode.ERROR))


def _context_of(caller: Caller | None) -> otel_context.Context:
    root = otel_context.Context()
    if caller is None:
        return root
    # Without the caller's tracestate: anybody can send one, with anything in it.
    parent = trace.SpanContext(
        trace_id=int(caller.trace_id, 16),
        span_id=int(caller.parent_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED if caller.is_sampled else trace.TraceFlags.DEFAULT),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), root)


class _Telling(SpanExporter):
    """Says once a minute that spans are lost. In its own thread: no request waits for it."""

    def __init__(self, exporter: SpanExporter, *, monotonic: Callable[[], float]) -> None:
        self._exporter = exporter
        self._monotonic = monotonic
        self._lost = 0
        self._said_at: float | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            now = self._monotonic()
            if self._said_at is None or now >= self._said_at + _SAY_AGAIN_S:
                self._said_at = now
                _log.warning("spans_lost", spans=self._lost, problem="the collector did not take them")
                self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
