"""HTTP over requests, made safe for a URL that carries a secret and for a server that does as it likes.

What requests leaves open is closed here: a deadline over the whole call, no redirects, cookies, proxies or .netrc,
a bound on what comes out of the decompressor, and no URL in any exception or log.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ClosedPoolError, ConnectTimeoutError, NameResolutionError, NewConnectionError

from authsvc import deadline

MAX_BODY_BYTES: Final = 65_536

_HEADERS: Final = {"Accept": "application/json, text/plain", "User-Agent": "authsvc", "Accept-Encoding": "gzip"}


class TransportError(Exception):
    """No usable HTTP answer. The message names no host, no path and no query."""


class NotConnected(TransportError):
    """The request was never sent: no address, no connection. It can be sent again."""


class NoAnswer(TransportError):
    """Sent, perhaps acted upon, and no status line within the deadline."""


class BrokenAnswer(TransportError):
    """An answer began and is no whole one: cut short, too large, not decodable, not HTTP."""


@dataclass(frozen=True, slots=True)
class Call:
    """A GET or, with members for a JSON body, a POST. Query and body carry secrets."""

    url: str
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    members: Mapping[str, object] | None = field(default=None, repr=False)

    @property
    def method(self) -> str:
        return "GET" if self.members is None else "POST"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


def new_session(*, connections: int, tls: ssl.SSLContext | None = None) -> requests.Session:
    """A session for `send`. `connections` is how many are kept open; a call beyond them has one of its own.

    `tls` is for tests with a certificate of their own; the default trusts the roots of certifi.
    """
    # urllib3 writes every URL to its DEBUG log.
    logging.getLogger("urllib3.connectionpool").addFilter(_without_queries)
    session = requests.Session()
    session.trust_env = False
    adapter = _Adapter(connections, tls or ssl.create_default_context(cafile=certifi.where()))
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def send(session: requests.Session, call: Call, *, timeout_s: float, connect_s: float) -> Answer:
    """One call, over in `timeout_s` seconds whatever the server does; of these at most `connect_s` for the connection.

    Raises: NotConnected, NoAnswer, BrokenAnswer.
    """
    request = _prepared(call)
    timeout = urllib3.Timeout(total=timeout_s, connect=connect_s)
    try:
        # The adapter and not the session: it keeps no cookies, follows no redirect and reads no environment.
        response = session.get_adapter(call.url).send(request, stream=True, timeout=timeout)  # type: ignore[arg-type]
    except requests.RequestException as error:
        # `from None`, always: the original carries the URL, and the URL the secret.
        raise _without_url(error) from None
    except (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError):
        raise BrokenAnswer("the answer is not HTTP") from None
    try:
        if response.status_code != 200 or response.headers.get("Content-Length") == "0":
            # Not read, so that closing it closes the connection. After a 103 or an empty reply the real one may still
            # be on its way, and the next login on this connection would take it for its own: another user's.
            return Answer(response.status_code, b"")
        return Answer(response.status_code, _read_body(response))
    finally:
        response.close()


def forget_connections(session: requests.Session) -> None:
    """Close what is kept open: after an answer that is none, the right one may still come on that connection."""
    for adapter in session.adapters.values():
        adapter.close()


def _prepared(call: Call) -> requests.PreparedRequest:
    request = _without_query(call.method, call.url).copy()
    if call.query:
        request.url = f"{request.url}?{urlencode(call.query)}"
    if call.members is not None:
        request.prepare_body(None, None, json=dict(call.members))
    return request


@lru_cache(maxsize=64)
def _without_query(method: str, url: str) -> requests.PreparedRequest:
    """What requests makes of the address and the headers: the same each time, and a tenth of a login's CPU."""
    return requests.Request(method, url, headers=_HEADERS).prepare()


def _read_body(response: requests.Response) -> bytes:
    body = b""
    try:
        while len(body) <= MAX_BODY_BYTES:
            # A bound on what is decompressed, not on what is received: 200 KB can hold 200 MB.
            chunk = response.raw.read(MAX_BODY_BYTES + 1 - len(body), decode_content=True)
            if not chunk:
                # Kept for the next call: the connection goes back to the pool only from a body that was read out.
                response.raw.release_conn()
                return body
            body += chunk
    except TimeoutError:
        raise NoAnswer("the answer did not end in time") from None
    except urllib3.exceptions.ReadTimeoutError:
        raise NoAnswer("the answer did not end in time") from None
    except (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError):
        raise BrokenAnswer("the body is not whole") from None
    raise BrokenAnswer("the body is larger than 64 KiB")


def _without_url(error: requests.RequestException) -> TransportError:
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return NotConnected("not a URL that can be asked")
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None)
    if isinstance(cause, ClosedPoolError):
        return NotConnected("the kept connections were just given up")
    if isinstance(reason, NewConnectionError | ConnectTimeoutError | NameResolutionError):
        return NotConnected("no connection")
    if isinstance(error, requests.exceptions.SSLError):
        if isinstance(getattr(reason, "args", (None,))[0], ssl.SSLCertVerificationError):
            return NotConnected("the certificate is not trusted")
        # Before or after the request was sent: OpenSSL does not say.
        return BrokenAnswer("the TLS connection failed")
    if isinstance(cause, urllib3.exceptions.ProtocolError) and isinstance(cause.args[-1], deadline.TooMuchReceived):
        return BrokenAnswer("the answer is too long")
    return NoAnswer("no answer in time" if isinstance(error, requests.Timeout) else "the connection was closed")


# ---- a timeout that is a deadline ---------------------------------------------------------------


class _Connect:
    """Connecting with one deadline over name resolution, every address and the TLS handshake."""

    debuglevel = 0  # not http.client's switch that prints requests, URL and all

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        try:
            # urllib3 sets the timeout anew for every request, which starts the next deadline.
            return deadline.connect(
                connection._dns_host,
                connection.port,
                timeout_s=connection.timeout,
                options=connection.socket_options or (),
            )
        except TimeoutError:
            raise ConnectTimeoutError(connection, "connect") from None
        except OSError:
            raise NewConnectionError(connection, "no address answers") from None


class _HTTPConnection(_Connect, HTTPConnection):
    pass


class _HTTPSConnection(_Connect, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    def __init__(self, connections: int, tls: ssl.SSLContext) -> None:
        tls.sslsocket_class = deadline.DeadlineTLSSocket
        self._tls = tls
        super().__init__(pool_connections=4, pool_maxsize=connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        # One TLS context for all connections: reading the roots again for each costs 19 ms of CPU.
        # Keep-alive probes: a NAT that forgot an idle connection would cost the next login its whole deadline.
        keep_alive = [
            *HTTPConnection.default_socket_options,
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            *([(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)] if hasattr(socket, "TCP_KEEPIDLE") else []),
        ]
        super().init_poolmanager(
            connections, maxsize, block, ssl_context=self._tls, socket_options=keep_alive, **options
        )
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ARG002 - requests' signature
        # The context of ours verifies; requests would have each connection load certifi's bundle once more.
        conn.cert_reqs = "CERT_REQUIRED"


def _without_queries(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True
