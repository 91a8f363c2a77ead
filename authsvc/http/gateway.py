"""Between the HTTP server and the app: a request gets a thread once all of it is there, so slow clients hold none.

The server speaks RSGI, granian's own interface (docs/spec/RSGI.md there); the app speaks WSGI (PEP 3333).
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, Final, Protocol

import structlog
from werkzeug.exceptions import RequestTimeout

from authsvc.errors import BadRequest, Overloaded
from authsvc.http.turns import come_last

WSGIApp = Callable[..., Iterable[bytes]]
Headers = list[tuple[str, str]]

BODY_WITHIN_S: Final = 30.0
"""From the headers to the end of the body: 256 KiB in that time are 70 kbit/s."""
BODY_AT_END_WITHIN_S: Final = 4.0
"""From `leave` to the end of a body under way. What is left until the worker is killed is for the login."""
MOST_HELD_BYTES: Final = 67_108_864
"""How much of long headers and bodies one worker holds until they are whole; short ones are bounded by the number of
connections.
"""
SHORT_BYTES: Final = 4_096

_CLOSE: Final = ("Connection", "close")
_NO_TEXT: Final = "\ufffd".encode().decode("latin-1")
_NAMED_OTHERWISE: Final = {"HTTP_CONTENT_TYPE": "CONTENT_TYPE", "HTTP_CONTENT_LENGTH": "CONTENT_LENGTH"}

_log = structlog.get_logger("authsvc.http")


class Scope(Protocol):
    """What granian tells of a request. It leaves out header fields that are not ASCII."""

    method: str
    path: str  # decoded, with U+FFFD for what is no UTF-8
    query_string: str  # as it came
    http_version: str
    authority: str | None  # of a target that is a whole URL
    client: str
    server: str

    @property
    def headers(self) -> Any: ...


class Exchange(Protocol):
    """granian's end of a request. The first answer is the one that counts; from any thread."""

    def __call__(self) -> Any: ...
    def __aiter__(self) -> Any: ...
    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None: ...


class AtOnce(Protocol):
    """Answers without waiting for anything, or leaves it to the app with None."""

    def __call__(
        self, method: str, path: str, query: str, *, headers: dict[str, str]
    ) -> tuple[Headers, bytes] | None: ...


class Gateway:
    """That of one worker process."""

    def __init__(
        self,
        app: WSGIApp,
        *,
        threads: int,
        longest_body: Callable[[str], int],
        at_once: AtOnce | None = None,
        body_within_s: float = BODY_WITHIN_S,
        body_at_end_within_s: float = BODY_AT_END_WITHIN_S,
        most_held: int = MOST_HELD_BYTES,
    ) -> None:
        """`longest_body`: how many bytes a path takes. More are not read, and the app has to refuse them.

        Raises: RuntimeError if there cannot be so many threads.
        """
        self._app = app
        self._at_once = at_once
        self._threads = _all_of(threads)
        self._longest_body = longest_body
        self._body_within_s = body_within_s
        self._body_at_end_within_s = body_at_end_within_s
        self._most_held = most_held
        self._held = 0  # by the one thread of the event loop
        self._readings: set[asyncio.Task[None]] = set()  # the loop itself keeps none of them alive
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_leaving = False
        self._deadlines: set[asyncio.Timeout] = set()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bodies are read by `loop`, which is to run in another thread than the one that calls `take`."""
        self._loop = loop

    def leave(self) -> None:
        """From now on each answer closes its connection (RFC 9112, 9.6), and bodies have little time.

        In the thread of the loop.
        """
        self._is_leaving = True
        # One slow client would have the worker killed, and with it the login of another that had just begun.
        assert self._loop is not None
        until = self._loop.time() + self._body_at_end_within_s
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(min(until, deadline.when() or until))

    def take(self, scope: Scope, exchange: Exchange) -> None:
        """See that the request is answered, now or later. Waits for nothing, and raises nothing."""
        try:
            headers = _headers(scope)
            if self._at_once is not None:
                answer = self._at_once(scope.method, scope.path, scope.query_string, headers=headers)
                if answer is not None:
                    self._send(exchange, 200, *answer)
                    return
            # No other method has a body that anybody here would look at.
            if scope.method == "POST" and ("HTTP_CONTENT_LENGTH" in headers or "HTTP_TRANSFER_ENCODING" in headers):
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._begin_reading, scope, headers, exchange)
            else:
                self._hand_over(scope, headers, io.BytesIO(), exchange)
        except Exception as error:  # noqa: BLE001 - granian's thread would end with it
            self._fail(exchange, error)

    # ---- in the event loop ----

    def _begin_reading(self, scope: Scope, headers: dict[str, str], exchange: Exchange) -> None:
        reading = asyncio.ensure_future(self._read_and_hand_over(scope, headers, exchange))
        self._readings.add(reading)
        reading.add_done_callback(self._readings.discard)

    async def _read_and_hand_over(self, scope: Scope, headers: dict[str, str], exchange: Exchange) -> None:
        try:
            self._hand_over(scope, headers, await self._body(scope, headers, exchange), exchange)
        except Exception as error:  # noqa: BLE001 - there is nobody else whom it could reach
            self._fail(exchange, error)

    async def _body(self, scope: Scope, headers: dict[str, str], exchange: Exchange) -> io.RawIOBase | io.BytesIO:
        most = self._longest_body(scope.path)
        length = int(headers.get("HTTP_CONTENT_LENGTH", most))  # the server lets digits pass alone
        if length > most:
            return io.BytesIO()  # the app sees its length, and does not read it
        # The headers too: 8,192 connections with 60 KB of them, each there twice, are more than a GB.
        holds = sum(size for size in (length, sum(map(len, headers.values()))) if size > SHORT_BYTES)
        if self._held + holds > self._most_held:
            return Unreadable(Overloaded("too many long requests are under way"))
        self._held += holds
        deadline = asyncio.timeout(self._body_at_end_within_s if self._is_leaving else self._body_within_s)
        self._deadlines.add(deadline)
        try:
            async with deadline:
                if "HTTP_CONTENT_LENGTH" in headers:
                    return io.BytesIO(await exchange())
                return io.BytesIO(await _read(exchange, most=most))
        except TimeoutError:
            return Unreadable(RequestTimeout())
        except BadRequest as error:
            return Unreadable(error)
        except RuntimeError:  # granian's RSGIProtocolClosed: the client ended it
            return Unreadable(BadRequest("the body was cut short"))
        finally:
            self._held -= holds
            self._deadlines.discard(deadline)

    # ---- in a thread of its own ----

    def _hand_over(self, scope: Scope, headers: dict[str, str], body: Any, exchange: Exchange) -> None:
        self._threads.submit(self._answer, _environ(scope, headers, body), [exchange])

    def _answer(self, environ: dict[str, Any], held: list[Exchange]) -> None:
        # The exchange in a list, to let go of it: an error in the app keeps these frames until Python looks for cycles,
        # and granian keeps a connection with half of its chunks for as long as anybody has the exchange.
        try:
            status, headers = 0, []

            def start_response(line: str, given: Headers, _exc_info: Any = None) -> None:
                nonlocal status, headers
                status, headers = int(line[:3]), given

            chunks = self._app(environ, start_response)
            try:
                body = b"".join(chunks)
            finally:
                if hasattr(chunks, "close"):
                    chunks.close()
            self._send(held[0], status, headers, body)
        except Exception as error:  # noqa: BLE001 - there is nobody else whom it could reach
            self._fail(held[0], error)
        finally:
            held.clear()

    # ---- anywhere ----

    def _send(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        exchange.response_bytes(status, [*headers, _CLOSE] if self._is_leaving else headers, body)

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        _log.error("unexpected_error", exc_info=error)
        exchange.response_bytes(500, [_CLOSE], b"")


class Unreadable(io.RawIOBase):
    """A body that is not there: whoever reads it gets the error, and whoever refuses the request before does not."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: Any) -> int:
        raise self._error


def _all_of(number: int) -> ThreadPoolExecutor:
    """So many threads, each of them begun: who asks for one too many later is told that it failed, and it is done
    nonetheless, by the others.
    """
    found = ThreadPoolExecutor(number, thread_name_prefix="request", initializer=come_last)
    all_there = Barrier(number + 1)
    try:
        for _ in range(number):
            found.submit(all_there.wait)  # keeps one from taking what is meant for the next
        all_there.wait()
    except RuntimeError:
        all_there.abort()
        raise
    return found


async def _read(exchange: Exchange, *, most: int) -> bytes:
    """A body that does not say how long it is, or a little more than `most` of it.

    Raises: BadRequest if it does not come to its end.
    """
    found = bytearray()
    is_over = False
    async for chunk in exchange:
        # granian ends each with an empty one. Where the client went away, or wrote what is no chunk, that is not said
        # otherwise than by an empty one more (RFC 9112, 8); trailers, which nobody here reads, look the same.
        if is_over:
            raise BadRequest("the body was cut short, or has trailers")
        is_over = not chunk
        found += chunk
        if len(found) > most:
            break
    return bytes(found)


def _headers(scope: Scope) -> dict[str, str]:
    """As WSGI names them; of one that came several times all that it said, in a list (RFC 9110, 5.3).

    Left out are names with an underscore. To WSGI they are the same as those with a hyphen, and a client would be
    believed what only a proxy may say in X-Forwarded-For. A value that granian leaves out is U+FFFD, which is never
    good: or a client could take away what a proxy added to it.
    """
    found: dict[str, str] = {}
    names = scope.headers.keys()
    for name, value in scope.headers.items():
        if "_" not in name:
            known = _known_as(name)
            found[known] = f"{found[known]},{value}" if known in found else value
    if len(found) < len(names):
        for name in names:
            if "_" not in name:
                found.setdefault(_known_as(name), _NO_TEXT)
    if scope.authority is not None:
        found["HTTP_HOST"] = scope.authority  # whatever Host says (RFC 9112, 3.2.2)
    return found


def _known_as(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")


def _environ(scope: Scope, headers: dict[str, str], body: Any) -> dict[str, Any]:
    client, _, client_port = scope.client.rpartition(":")
    server, _, server_port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": _as_wsgi(scope.path),
        "QUERY_STRING": _as_wsgi(scope.query_string),
        "SERVER_NAME": server.strip("[]"),
        "SERVER_PORT": server_port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": client.strip("[]"),
        "REMOTE_PORT": client_port,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": body,
        "wsgi.input_terminated": True,  # werkzeug goes by it where a body does not say how long it is
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        environ[_NAMED_OTHERWISE.get(name, name)] = value
    return environ


def _as_wsgi(text: str) -> str:
    """PEP 3333: bytes, each written as the character of its number."""
    return text if text.isascii() else text.encode().decode("latin-1")
