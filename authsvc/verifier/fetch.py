"""One GET after the other to one host, over the standard library, safe whatever the host does.

A deadline over the whole of it, no redirects, no proxies, no decompression, a bound on what is received; https, or http
to this very machine.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import SplitResult, urlsplit

from authsvc import deadline
from authsvc.verifier.sources import MAX_JWKS_BYTES

_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "authsvc-verifier"}
_NO_CACHE: Final = 0
_ODD_AGE_S: Final = 86_400  # of a cache whose word is no number
_MAX_ETAG_CHARS: Final = 256  # it goes back in a header, and hosts refuse long ones
# A connection that was idle for longer may have been forgotten by whatever stands between, without a word.
_IDLE_S: Final = 30.0


class FetchFailed(Exception):
    """No usable answer. The message says why, and names no path and no query."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer. `body` is None for a 304: what the caller has is still right."""

    body: bytes | None
    etag: str | None
    fresh_s: int | None  # how much longer caches may keep it (RFC 9111, 4.2); None: it does not say
    date: int | None  # the host's own time, Unix seconds
    age_s: int = 0  # how long a cache on the way has had it (RFC 9111, 5.1)


class Fetcher:
    """Keeps one connection open. For one thread at a time."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._used_at = float("-inf")
        self._connection: http.client.HTTPConnection | None = None
        self._origin: tuple[str, str | None, int] | None = None

    def get(self, url: str, *, within_s: float, etag: str | None = None, past_caches: bool = False) -> Fetched:
        """`within_s` is over all of it. `past_caches`: caches on the way have to ask the host (RFC 9111, 5.2.1.4).

        Raises: FetchFailed; ValueError for a URL that `checked_url` refuses.
        """
        parts = checked_url(url)
        ends_at = time.monotonic() + within_s
        headers = _HEADERS | ({"If-None-Match": etag} if etag else {})
        headers |= {"Cache-Control": "no-cache"} if past_caches else {}
        if time.monotonic() > self._used_at + _IDLE_S:
            self.close()
        is_kept = self._connection is not None
        try:
            return self._get(parts, headers, ends_at)
        except (ConnectionError, http.client.RemoteDisconnected) as error:
            # The host may have closed the connection that we kept; that is found out by using it.
            if not is_kept or isinstance(error, deadline.TooMuchReceived):
                raise _failed(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _failed(error) from None
        try:
            return self._get(parts, headers, ends_at)
        except (OSError, http.client.HTTPException) as error:
            raise _failed(error) from None

    def abandon(self) -> None:
        """In the child of a fork: let go of our copy of the connection, of which the parent may be in the middle.

        Closing it in earnest would wait for a lock that a thread of the parent holds.
        """
        connection, self._connection, self._origin = self._connection, None, None
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                os.close(connection.sock.detach())

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._origin = None

    def _get(self, parts: SplitResult, headers: dict[str, str], ends_at: float) -> Fetched:
        is_over = False
        try:
            reply, fetched = self._asked(self._connected(parts, ends_at), parts, headers)
            self._used_at = time.monotonic()
            is_over = not reply.will_close
            return fetched
        finally:
            if not is_over:
                self.close()  # what is still to come on it would be taken for the next answer

    def _asked(
        self, connection: http.client.HTTPConnection, parts: SplitResult, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, Fetched]:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers=headers)
        reply = connection.getresponse()
        if reply.status == 304 and "If-None-Match" in headers:
            reply.read()
            return reply, _fetched(reply, None)
        if reply.status != 200:
            raise FetchFailed(f"the answer is {reply.status}")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchFailed("the answer is compressed, which was not asked for")
        body = reply.read(MAX_JWKS_BYTES + 1)
        if len(body) > MAX_JWKS_BYTES:
            raise FetchFailed(f"the answer is larger than {MAX_JWKS_BYTES} bytes")
        if reply.length:
            raise FetchFailed("the answer was cut short")
        return reply, _fetched(reply, body)

    def _connected(self, parts: SplitResult, ends_at: float) -> http.client.HTTPConnection:
        origin = parts.scheme, parts.hostname, _port(parts)
        if self._connection is not None and self._origin == origin:
            assert self._connection.sock is not None
            self._connection.sock.settimeout(_left(ends_at))
            return self._connection
        self.close()
        host, port = str(parts.hostname), _port(parts)
        sock = deadline.connect(host, port, timeout_s=_left(ends_at))
        connection = http.client.HTTPConnection(parts.netloc)
        connection.auto_open = 0  # by itself it would open one without our deadline
        try:
            is_tls = parts.scheme == "https"
            connection.sock = self._context().wrap_socket(sock, server_hostname=host) if is_tls else sock
            connection.sock.settimeout(_left(ends_at))  # the handshake has started its own anew
        except BaseException:
            sock.close()
            raise
        self._connection, self._origin = connection, origin
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        self._tls.sslsocket_class = deadline.DeadlineTLSSocket
        return self._tls


def checked_url(url: str) -> SplitResult:
    """Raises: ValueError unless it is an https URL, or an http URL of this machine's loopback, and a plain one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    plain = url.isascii() and url.isprintable() and " " not in url and not parts.fragment and port != 0
    if not plain or not parts.hostname or parts.username is not None or parts.scheme not in ("https", "http"):
        raise ValueError("not an http(s) URL without user, white space and fragment")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("keys that come over plain http are anybody's: only https, or http to this very machine")
    return parts


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _failed(error: BaseException) -> FetchFailed:
    if isinstance(error, TimeoutError):
        return FetchFailed("no answer in time")
    if isinstance(error, deadline.TooMuchReceived):
        return FetchFailed("more was received than any JWKS has")
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchFailed("the certificate is not trusted")
    if isinstance(error, http.client.HTTPException):
        return FetchFailed("the answer is no HTTP")
    return FetchFailed(f"no connection ({type(error).__name__})")


def _left(ends_at: float) -> float:
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("deadline")
    return left_s


def _fetched(reply: http.client.HTTPResponse, body: bytes | None) -> Fetched:
    headers = reply.headers
    etag = headers.get("ETag", "")
    return Fetched(
        body,
        etag if 0 < len(etag) <= _MAX_ETAG_CHARS else None,
        _fresh_s(headers),
        _date(headers.get("Date")),
        _age_s(headers),
    )


def _fresh_s(headers: http.client.HTTPMessage) -> int | None:
    directives = [part.strip().lower() for part in ", ".join(headers.get_all("Cache-Control", [])).split(",")]
    if "no-store" in directives or "no-cache" in directives:
        return _NO_CACHE
    for directive in directives:
        name, _, value = directive.partition("=")
        if name == "max-age" and _is_count(value.strip('"')):
            return max(int(value.strip('"')) - _age_s(headers), 0)
    return None


def _age_s(headers: http.client.HTTPMessage) -> int:
    age = (headers.get("Age") or "0").strip()
    return int(age) if _is_count(age) else _ODD_AGE_S


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _date(text: str | None) -> int | None:
    try:
        return int(parsedate_to_datetime(text).timestamp()) if text else None
    except (ValueError, OverflowError):
        return None
