"""The sandbox on a loopback port. It owns the sockets, because faults need them; routes.py says what is answered."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import socketserver
import ssl
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl

from authsvc.errors import BadRequest, SettingsError
from authsvc.sandbox import page, wire
from authsvc.sandbox.callbook import CallRecord
from authsvc.sandbox.faults import JSCODE2SESSION, FaultPlan
from authsvc.sandbox.routes import ADMIN, ELSEWHERE_PATH, WECHAT, Request, Site, WeChatEndpoint
from authsvc.sandbox.wechat import SandboxWeChat

MAX_BODY: Final = 64 * 1024  # open data may be large

_MAX_PARAMETERS: Final = 50
_DRAINED: Final = 1024 * 1024  # of a body that is too long; closing on unread bytes would reset the answer away
_STOP_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.05
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time at all

_AUTHORITY: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[0-9A-Za-z.-]{1,253}))(?::[0-9]{1,5})?")

_log = logging.getLogger(__name__)


class SandboxServer:
    """The sandbox on a loopback port. It listens from the constructor on and answers from `start()` on.

    Port 0 is a free one. With `tls`, a server's context with its certificate, it speaks HTTPS, as WeChat does.
    Raises: SettingsError for a host that is not loopback, OSError if the port is taken.
    """

    def __init__(
        self, model: SandboxWeChat, host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.model = model
        self._listener = _Listener(model, _loopback_address(host), port, tls)
        self._serving = False

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return self._listener.url

    @property
    def faults(self) -> FaultPlan:
        """What the next calls of code2session meet."""
        return self.fault_plan(JSCODE2SESSION)

    def fault_plan(self, endpoint_name: str) -> FaultPlan:
        """What the next calls of this endpoint meet. Raises: KeyError for a name that is none of faults.ENDPOINTS."""
        return self._listener.site.faults[endpoint_name]

    def start(self) -> None:
        """Serve in a background thread until `stop()`."""
        self._serving = True
        threading.Thread(target=self._serve, name="wechat-sandbox", daemon=True).start()

    def serve_forever(self) -> None:
        """Serve in this thread until another one calls `stop()`."""
        self._serving = True
        self._serve()

    def stop(self) -> None:
        """End every connection, hung ones too, and give the port back. Once is enough, twice does no harm."""
        if self._serving:
            self._serving = False
            self._listener.shutdown()
        self._listener.server_close()
        self._listener.end_connections()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _serve(self) -> None:
        self._listener.serve_forever(poll_interval=_POLL_S)


def _loopback_address(host: str) -> str:
    """Raises: SettingsError. Names are not resolved: what a resolver says today it need not say tomorrow."""
    if host.lower() == "localhost":
        return "127.0.0.1"
    if not _is_loopback_literal(host):
        raise SettingsError(["the sandbox listens on loopback only: host is 127.0.0.1, ::1 or localhost"])
    return host


def _is_loopback_literal(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _HttpProblem(Exception):
    """A request that is answered with this status and no more; never leaves this module."""

    def __init__(self, status: int, error: str, detail: str, headers: wire.Headers = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.answer: wire.Answer = {"error": error, "detail": detail}
        self.headers = headers


def _method_not_allowed(allowed: str) -> _HttpProblem:
    return _HttpProblem(405, "method_not_allowed", f"this path takes {allowed}", [("Allow", allowed)])


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # a burst of logins in a benchmark must not meet a full backlog

    def __init__(self, model: SandboxWeChat, address: str, port: int, tls: ssl.SSLContext | None) -> None:
        if ":" in address:
            self.address_family = socket.AF_INET6
        self.site = Site(model)
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._resetting: set[socket.socket] = set()
        self._open_changed = threading.Condition()
        self._scheme = "http" if tls is None else "https"
        super().__init__((address, port), _Handler)
        if tls is not None:
            # Hands are shaken in the thread of the connection: whoever is slow at it keeps nobody else out.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        host = str(host)
        return f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}"

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for a name that nobody reads; that can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_changed:
            self._open.discard(request)
            reset = request in self._resetting
            self._resetting.discard(request)
            self._open_changed.notify_all()
        if reset:
            self.close_request(request)  # without the FIN that shutdown() would send first
        else:
            super().shutdown_request(request)

    def reset_on_close(self, request: socket.socket) -> None:
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        with self._open_changed:
            self._resetting.add(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # an OSError is a client that has gone
            # The class alone: the message may quote the request, and the request has the secret in it.
            _log.error("sandbox: a request failed with %s", type(error).__name__)

    def end_connections(self) -> None:
        self.stopping.set()
        with self._open_changed:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # gone by itself
            self._open_changed.wait_for(lambda: not self._open, timeout=_STOP_WITHIN_S)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        try:
            request = self._read_request()
            endpoint = WECHAT.get(request.path)
            if endpoint:
                self._answer_as_wechat(endpoint, request)
            else:
                self._answer_as_sandbox(request)
        except _HttpProblem as problem:
            self.send_answer(problem.status, problem.answer, headers=problem.headers)
        except OSError:
            self.close_connection = True  # the client has gone

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the request line has the app secret in it."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What http.server refuses by itself; its own texts are HTML and quote the request line."""
        self.close_connection = True
        self.send_answer(code, {"error": "bad_request", "detail": "not an HTTP request that this server takes"})

    def send_answer(self, status: int, answer: wire.Answer, *, headers: wire.Headers = ()) -> None:
        body = wire.json_body(answer)
        self.send_body(body, status=status, content_type=wire.JSON, headers=headers)

    def send_body(
        self, body: bytes, *, status: int, content_type: str, headers: wire.Headers = (), missing: int = 0
    ) -> None:
        head = wire.head(
            status,
            content_length=len(body) + missing,
            content_type=content_type,
            keep_alive=not self.close_connection,
            headers=headers,
        )
        self.connection.sendall(head if self.command == "HEAD" else head + body)

    def _read_request(self) -> Request:
        """Raises: _HttpProblem if the body cannot be told from the next request, or is too long."""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise _HttpProblem(411, "length_required", "send a Content-Length")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            self.close_connection = True
            raise _HttpProblem(400, "bad_request", "Content-Length is no number")
        if int(length) > MAX_BODY:
            self.close_connection = True
            self.rfile.read(min(int(length), _DRAINED))
            raise _HttpProblem(413, "too_large", f"a body has at most {MAX_BODY} bytes")
        body = self.rfile.read(int(length))
        path, _, query = self.path.partition("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
        except ValueError:
            pairs = []
        # Reversed: the first of a name counts.
        return Request(self.command, path, dict(reversed(pairs)), body)

    def _answer_as_wechat(self, endpoint: WeChatEndpoint, request: Request) -> None:
        site = self.server.site
        armed = site.faults[endpoint.name].take() or endpoint.code_fault(site.model, request)
        about = endpoint.about(site.model, request)
        record = CallRecord(
            at=site.model.now,
            endpoint=endpoint.name,
            appid=about.appid,
            openid=about.openid,
            fault=armed.fault.name if armed else None,
        )
        site.calls.note(record)
        call = _Call(self, endpoint, request, record)
        if armed:
            armed.meet(call)
        else:
            call.reply(wire.json_body(call.exchange()))

    def _answer_as_sandbox(self, request: Request) -> None:
        if request.path == page.PATH:
            self._show_page(request)
            return
        route = ADMIN.get(request.path)
        if route is None:
            raise _HttpProblem(404, "not_found", "no such path")
        self._refuse_web_pages()
        if request.method != route.method:
            raise _method_not_allowed(route.method)
        try:
            answer = route.act(self.server.site, request)
        except BadRequest as error:
            raise _HttpProblem(400, error.code, str(error)) from None
        self.send_answer(200, answer)

    def _show_page(self, request: Request) -> None:
        self._refuse_web_pages()
        if request.method not in ("GET", "HEAD"):
            raise _method_not_allowed("GET, HEAD")
        body = page.render(self.server.site, self.server.url)
        self.send_body(body, status=200, content_type=page.CONTENT_TYPE, headers=page.HEADERS)

    def _refuse_web_pages(self) -> None:
        """Keep the developer's own browser out: whoever mints codes can be anyone.

        A page elsewhere sends an Origin with its POST; one that has rebound its name to 127.0.0.1 is at
        home here, but cannot change its Host header.
        """
        if "Origin" in self.headers:
            raise _HttpProblem(403, "forbidden", "not for web pages: the request has an Origin header")
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _is_loopback_authority(hosts[0]):
            raise _HttpProblem(403, "forbidden", "the Host header is not a loopback address")


class _Call:
    """faults.Call over the socket of one request."""

    def __init__(self, handler: _Handler, endpoint: WeChatEndpoint, request: Request, record: CallRecord) -> None:
        self._handler = handler
        self._endpoint = endpoint
        self._request = request
        self._record = record
        self._model = handler.server.site.model

    def exchange(self) -> wire.Answer:
        return self._noted(self._endpoint.answer(self._model, self._request))

    def refusal(self, errcode: int) -> wire.Answer:
        return self._noted(self._model.refusal(errcode))

    def stranger(self) -> wire.Answer:
        return self._endpoint.stranger(self._model, self._request)

    def reply(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str | None = None,
        headers: wire.Headers = (),
        missing: int = 0,
    ) -> None:
        self._handler.send_body(
            body,
            status=status,
            content_type=content_type or self._endpoint.content_type,
            headers=headers,
            missing=missing,
        )

    def head(self, content_length: int) -> bytes:
        return wire.head(200, content_length=content_length, content_type=self._endpoint.content_type, keep_alive=True)

    def send(self, raw: bytes) -> None:
        self._handler.connection.sendall(raw)

    def wait(self, seconds: float) -> bool:
        if seconds <= 0:
            return not self._handler.server.stopping.is_set()
        connection = self._handler.connection
        connection.settimeout(seconds)
        try:
            # The socket's own, whatever is on top of it: one with TLS cannot peek.
            if not socket.socket.recv(connection, 1, socket.MSG_PEEK):
                return False
        except TimeoutError:
            return True
        finally:
            connection.settimeout(None)
        # The client has sent its next request already; that wakes every look, so only the clock is left.
        return not self._handler.server.stopping.wait(seconds)

    def hang_up(self) -> None:
        self._handler.close_connection = True

    def reset(self) -> None:
        self._handler.close_connection = True
        self._handler.server.reset_on_close(self._handler.connection)

    def elsewhere(self) -> str:
        return f"{self._handler.server.url}{ELSEWHERE_PATH}/{self._endpoint.name}"

    def _noted(self, answer: wire.Answer) -> wire.Answer:
        errcode = answer.get("errcode", 0)
        self._record.errcode = errcode if isinstance(errcode, int) else None
        return answer


def _is_loopback_authority(authority: str) -> bool:
    match = _AUTHORITY.fullmatch(authority)
    if not match:
        return False
    host = match["v6"] or match["host"]
    return host.lower() == "localhost" or _is_loopback_literal(host)
