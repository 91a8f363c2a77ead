"""Spans: what a request and a call to WeChat took, for whoever gathers traces; and whether somebody wants them.

What is in them is chosen here, name by name. The instrumentations that there are for Flask and requests put whole URLs
into theirs, and with them the token of `?token=`, the app secret and the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal, Protocol

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS: Final = "OTEL_TRACES_EXPORTER"
_EXPORTER: Final = "otlp"
_PROTOCOL: Final = "http/protobuf"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose trace a request is part of (W3C Trace Context)."""

    trace_id: str  # 32 hex digits
    parent_id: str  # 16
    is_sampled: bool


class Span(Protocol):
    @property
    def ids(self) -> dict[str, str]:
        """For the lines that are logged meanwhile: `trace_id` and `span_id`; empty if nobody will see the span."""

    def note(self, name: str, value: str | int) -> None:
        """Nothing secret, as in the log."""

    def fail(self, what: str) -> None:
        """`what` is an error's code, never its words."""


class Spans(Protocol):
    """Thread-safe. Nothing here ever raises or waits."""

    def span(
        self,
        name: str,
        kind: Literal["server", "client"],
        attributes: Mapping[str, str | int],
        caller: Caller | None = None,
    ) -> AbstractContextManager[Span]:
        """A span as long as the context; those that the same thread makes in it are its children."""

    def stop(self) -> None:
        """Send what there is, within two seconds."""


class _NoSpan:
    ids: Final[dict[str, str]] = {}

    def note(self, name: str, value: str | int) -> None:
        pass

    def fail(self, what: str) -> None:
        pass


class _NoSpans:
    _nothing: Final[AbstractContextManager[Span]] = nullcontext(_NoSpan())

    def span(
        self,
        name: str,  # noqa: ARG002 - the Protocol's
        kind: Literal["server", "client"],  # noqa: ARG002
        attributes: Mapping[str, str | int],  # noqa: ARG002
        caller: Caller | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Span]:
        return self._nothing

    def stop(self) -> None:
        pass


NO_SPAN: Final[Span] = _NoSpan()
NO_SPANS: Final[Spans] = _NoSpans()


def wanted(environ: Mapping[str, str]) -> tuple[bool, str | None]:
    """Whether OpenTelemetry's own variables ask for spans; if they ask for what there is not, which, and what of it.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False, None
    exporters = [name.strip() for name in environ.get(_EXPORTERS, "").split(",") if name.strip()]
    if not exporters and not any(environ.get(name) for name in _ENDPOINTS):
        return False, None
    if exporters == ["none"]:
        return False, None
    if exporters and exporters != [_EXPORTER]:
        return False, f"{_EXPORTERS} is {', '.join(exporters)}: there are no spans, for they are sent by otlp alone"
    for name in _PROTOCOLS:
        protocol = environ.get(name)
        if protocol:
            if protocol == _PROTOCOL:
                break
            return False, f"{name} is {protocol}: there are no spans, for they are sent by {_PROTOCOL} alone"
    return True, None
