"""Between the HTTP server and the app: a request gets a thread once all of it is there, so slow clients hold none.

The server speaks RSGI; the app speaks WSGI (PEP 3333).
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

from authsvc.http import bodies
from authsvc.http.rsgi import Exchange, Headers, Scope
from authsvc.http.turns import come_last

WSGIApp = Callable[..., Iterable[bytes]]

_CLOSE: Final = ("Connection", "close")
_NO_TEXT: Final = "\ufffd".encode().decode("latin-1")
_NAMED_OTHERWISE: Final = {"HTTP_CONTENT_TYPE": "CONTENT_TYPE", "HTTP_CONTENT_LENGTH": "CONTENT_LENGTH"}

_log = structlog.get_logger("authsvc.http")


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
        sender_of: bodies.SenderOf = lambda _headers: None,
        at_once: AtOnce | None = None,
        body_within_s: float = bodies.WITHIN_S,
        body_at_end_within_s: float = bodies.AT_END_WITHIN_S,
        most_held: int = bodies.MOST_HELD_BYTES,
        most_of_a_sender: int = bodies.MOST_OF_A_SENDER_BYTES,
    ) -> None:
        """`longest_body`: how many bytes a path takes. More are not read, and the app has to refuse them.
        `sender_of`: long bodies of senders whom it names have a room of their own.

        Raises: RuntimeError if there cannot be so many threads.
        """
        self._app = app
        self._at_once = at_once
        self._threads = _all_of(threads)
        self._bodies = bodies.Bodies(
            longest_body,
            sender_of=sender_of,
            within_s=body_within_s,
            at_end_within_s=body_at_end_within_s,
            most_held=most_held,
            most_of_a_sender=most_of_a_sender,
        )
        self._is_leaving = False

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` sees to bodies that take their time. It is to run in another thread than the one that calls `take`."""
        self._bodies.begin(loop)

    def leave(self) -> None:
        """From now on each answer closes its connection (RFC 9112, 9.6), and bodies have little time.

        In the thread of the loop.
        """
        self._is_leaving = True
        self._bodies.leave()

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
                self._bodies.read(
                    scope.path, headers, exchange, lambda body: self._hand_over(scope, headers, body, exchange)
                )
            else:
                self._hand_over(scope, headers, io.BytesIO(), exchange)
        except Exception as error:  # noqa: BLE001 - granian's thread would end with it
            self._fail(exchange, error)

    def _hand_over(self, scope: Scope, headers: dict[str, str], body: bodies.Body, exchange: Exchange) -> None:
        try:
            self._threads.submit(self._answer, _environ(scope, headers, body), [exchange])
        except Exception as error:  # noqa: BLE001 - whoever had the body for us could do nothing about it
            self._fail(exchange, error)

    # ---- in a thread of its own ----

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
