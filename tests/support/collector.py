"""A collector of traces: takes what OpenTelemetry's exporter sends by HTTP, or does with it as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[bytes] = []
        self.authorizations: set[str | None] = set()
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()

    def spans(self) -> list[Span]:
        return [span for request in self._requests() for r in request.resource_spans
                for scope in r.scope_spans for span in scope.spans]  # fmt: skip

    def services(self) -> set[str]:
        return {attributes_of(r.resource.attributes)["service.name"] for request in self._requests()
                for r in request.resource_spans}  # fmt: skip

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans() if span.name == name]

    def _requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = "" if kind is None else str(getattr(pair.value, kind))
    return found


@contextmanager
def collector(*, port: int = 0) -> Iterator[Collector]:
    it = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            it.may_answer.wait(60)
            if self.path == "/v1/traces" and it.status == 200:
                it.bodies.append(body)
                it.authorizations.add(self.headers["Authorization"])
            self.send_response(it.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server: Final = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    it.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield it
    finally:
        it.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()
