"""GET over requests, made safe for a URL that carries a secret and for a server that does as it likes.

What requests leaves open is closed here: a deadline over the whole call, no redirects, cookies, proxies or .netrc,
a bound on what comes out of the decompressor, and no URL in any exception or log.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

MAX_BODY_BYTES: Final = 65_536

# Everything received for one call, headers included: http.client alone would take 6 MB of headers, and parsing their
# cookies would go on for long after the deadline.
_MAX_RECEIVED_BYTES: Final = 262_144

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
class Answer:
    status: int
    body: bytes


def new_session(*, connections: int, tls: ssl.SSLContext | None = None) -> requests.Session:
    """A session for `get`. `connections` is how many are kept open; a call beyond them has one of its own.

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


def get(session: requests.Session, url: str, query: Mapping[str, str], *, timeout_s: float, connect_s: float) -> Answer:
    """One GET, over in `timeout_s` seconds whatever the server does; of these at most `connect_s` for the connection.

    Raises: NotConnected, NoAnswer, BrokenAnswer.
    """
    request = requests.Request("GET", url, params=dict(query), headers=_HEADERS).prepare()
    timeout = urllib3.Timeout(total=timeout_s, connect=connect_s)
    try:
        # The adapter and not the session: it keeps no cookies, follows no redirect and reads no environment.
        response = session.get_adapter(url).send(request, stream=True, timeout=timeout)  # type: ignore[arg-type]
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
    if isinstance(reason, NewConnectionError | ConnectTimeoutError | NameResolutionError):
        return NotConnected("no connection")
    if isinstance(error, requests.exceptions.SSLError):
        if isinstance(getattr(reason, "args", (None,))[0], ssl.SSLCertVerificationError):
            return NotConnected("the certificate is not trusted")
        # Before or after the request was sent: OpenSSL does not say.
        return BrokenAnswer("the TLS connection failed")
    if isinstance(cause, urllib3.exceptions.ProtocolError) and isinstance(cause.args[-1], _TooMuch):
        return BrokenAnswer("the answer is too long")
    return NoAnswer("no answer in time" if isinstance(error, requests.Timeout) else "the connection was closed")


# ---- a timeout that is a deadline ---------------------------------------------------------------


class _TooMuch(ConnectionError):
    """More was received than any answer of WeChat has."""


class _DeadlineMixin:
    """A socket whose timeout covers everything received since it was set, not each read, and that ends a flood.

    http.client reads headers line by line; a server that sends a byte a second, or `100 Continue` without end, would
    never meet a timeout of each read. urllib3 sets the timeout anew for every request, which starts the next deadline.
    """

    _ends_at: float | None = None
    _bytes_left = _MAX_RECEIVED_BYTES

    def settimeout(self, value: float | None) -> None:
        self._ends_at = None if value is None else time.monotonic() + value
        self._bytes_left = _MAX_RECEIVED_BYTES
        super().settimeout(value)  # type: ignore[misc]

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self._ends_at is not None:
            left_s = self._ends_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("deadline")
            super().settimeout(left_s)  # type: ignore[misc]
        received: int = super().recv_into(*args, **kwargs)  # type: ignore[misc]
        self._bytes_left -= received
        if self._bytes_left < 0:
            raise _TooMuch("too much was received")
        return received


class _DeadlineSocket(_DeadlineMixin, socket.socket):
    pass


class _DeadlineTLSSocket(_DeadlineMixin, ssl.SSLSocket):
    pass


class _Connect:
    """Connecting with one deadline over name resolution, every address and the TLS handshake."""

    debuglevel = 0  # not http.client's switch that prints requests, URL and all

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        timeout_s = connection.timeout
        ends_at = time.monotonic() + timeout_s
        addresses = _RESOLVER.addresses(connection._dns_host, connection.port, timeout_s=timeout_s)
        if addresses is None:
            raise ConnectTimeoutError(connection, "name resolution")
        for family, kind, protocol, _name, address in addresses:
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise ConnectTimeoutError(connection, "connect")
            sock = _DeadlineSocket(family, kind, protocol)
            try:
                for option in connection.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(left_s)
                sock.connect(address)
                # What is left is the TLS handshake's; OpenSSL keeps to the timeout over the whole of it.
                sock.settimeout(max(ends_at - time.monotonic(), 0.001))
                return sock
            except OSError:
                sock.close()
            except BaseException:
                sock.close()
                raise
        raise NewConnectionError(connection, "no address answers")


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
        tls.sslsocket_class = _DeadlineTLSSocket
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


class _Resolver:
    """getaddrinfo with a deadline. It knows no timeout and cannot be stopped, so it runs in a thread of its own, and
    whoever asks for the same name meanwhile waits for the same answer: at most one such thread hangs for each name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], _Lookup] = {}

    def addresses(self, host: str, port: int, *, timeout_s: float) -> list[Any] | None:
        """What getaddrinfo says, an empty list if the name has no address, None if it takes longer."""
        with self._lock:
            lookup = self._running.get((host, port))
            if lookup is None:
                lookup = self._running[host, port] = _Lookup()
                threading.Thread(target=self._look_up, args=(host, port, lookup), daemon=True).start()
        return lookup.addresses if lookup.done.wait(timeout_s) else None

    def _look_up(self, host: str, port: int, lookup: _Lookup) -> None:
        try:
            lookup.addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            pass  # no address: the list stays empty
        finally:
            with self._lock:
                del self._running[host, port]
            lookup.done.set()


class _Lookup:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.addresses: list[Any] = []


_RESOLVER: Final = _Resolver()


def _without_queries(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True
