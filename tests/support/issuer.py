"""An issuer over real HTTP that misbehaves as it is told: metadata and a JWKS, and whatever a broken host may do."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from authsvc.claims import Claims, Policy
from authsvc.keyring import Keyring
from authsvc.tokens import sign_token
from tests.support.clock import NOW
from tests.support.keys import CLAIMS, keyring

METADATA_PATH = "/.well-known/openid-configuration"
JWKS_PATH = "/.well-known/jwks.json"


@dataclass
class Issuer:
    """`answer` gets the handler of each JWKS request; None answers as a good issuer does."""

    url: str = ""
    ring: Keyring = field(default_factory=keyring)
    max_age_s: int = 300
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    connections: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def policy(self) -> Policy:
        return Policy(self.url, CLAIMS.audience)

    @property
    def jwks(self) -> bytes:
        return json.dumps(self.ring.jwks(now=NOW)).encode()

    @property
    def fetches(self) -> int:
        """Of the JWKS."""
        return sum(path == JWKS_PATH for path, _ in self.seen)

    def token(self, *, ring: Keyring | None = None, **changes: Any) -> str:
        now = int(time.time())
        claims = Claims(
            issuer=self.url,
            audience=CLAIMS.audience,
            openid=CLAIMS.openid,
            appid=CLAIMS.appid,
            issued_at=changes.get("iat", now),
            expires_at=changes.get("exp", now + 600),
            auth_time=now,
            jti="jti",
            sid="sid",
        )
        return sign_token(claims, (ring or self.ring).signing_key(now=NOW), typ="at+jwt")


def good(issuer: Issuer, handler: BaseHTTPRequestHandler) -> None:
    etag = f'"{hash(issuer.jwks) & 0xFFFFFFFF:x}"'
    headers = {"Cache-Control": f"public, max-age={issuer.max_age_s}", "ETag": etag}
    if handler.headers.get("If-None-Match") == etag:
        send(handler, 304, b"", headers)
    else:
        send(handler, 200, issuer.jwks, headers)


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    if status != 304:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def issuer_over_http(*, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Issuer]:
    issuer = Issuer()
    kept: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def setup(self) -> None:
            super().setup()
            with issuer._lock:
                issuer.connections += 1
                kept.append(self.connection)

        def do_GET(self) -> None:
            with issuer._lock:
                issuer.seen.append((self.path, dict(self.headers)))
            with contextlib.suppress(OSError):
                if self.path == METADATA_PATH:
                    metadata = {"issuer": issuer.url, "jwks_uri": issuer.url + JWKS_PATH}
                    send(self, 200, json.dumps(metadata).encode())
                elif issuer.answer is not None:
                    issuer.answer(self)
                else:
                    good(issuer, self)

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    issuer.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in kept:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        pass  # a client that gives up is what many a test wants

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().server_bind()
