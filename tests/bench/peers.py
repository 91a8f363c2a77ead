"""Apps that the benchmark runs on our own server beside ours: `python -m tests.bench.peers NAME PROCESSES PORT`.

The public key that flask-jwt-extended verifies with comes on stdin.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from flask import Flask
from flask_jwt_extended import JWTManager, jwt_required
from granian.constants import HTTPModes, Interfaces
from granian.server.mp import MPServer

from authsvc.http.listener import free_address

_BODY: Final = b'{"is_login":true,"expires_in":7200}\n'
_THREADS: Final = 64


def raw(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The least that a WSGI app can do."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [_BODY]


async def raw_rsgi(_scope: Any, protocol: Any) -> None:
    """The same of an app of granian's own kind, which has no threads."""
    protocol.response_bytes(200, [("content-type", "application/json"), ("cache-control", "no-store")], _BODY)


def flask_hello() -> Flask:
    app = Flask("hello")

    @app.get("/checklogin")
    def check() -> dict[str, Any]:
        return {"is_login": True, "expires_in": 7200}

    return app


def flask_jwt_extended() -> Flask:
    app = Flask("extended")
    app.config |= {
        "JWT_ALGORITHM": "ES256",
        "JWT_PUBLIC_KEY": sys.stdin.read(),
        "JWT_TOKEN_LOCATION": ["query_string"],
        "JWT_QUERY_STRING_NAME": "token",
        "JWT_DECODE_AUDIENCE": "api",
    }
    JWTManager(app)

    @app.get("/checklogin")
    @jwt_required()  # type: ignore[untyped-decorator]
    def check() -> dict[str, Any]:
        return {"is_login": True}

    return app


_APPS: Final[dict[str, Callable[[], Callable[..., Any]]]] = {
    "raw": lambda: raw,
    "raw-rsgi": lambda: raw_rsgi,
    "flask": flask_hello,
    "flask-jwt-extended": flask_jwt_extended,
}


def main() -> None:
    kind, processes, wanted_port = sys.argv[1:]
    app = _APPS[kind]()
    host, port = free_address("127.0.0.1", int(wanted_port))[1][:2]
    is_rsgi = kind == "raw-rsgi"
    server = MPServer(
        "bench",
        address=host,
        port=port,
        interface=Interfaces.RSGI if is_rsgi else Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=int(processes),
        blocking_threads=1 if is_rsgi else _THREADS,
        log_enabled=False,
    )
    server.serve(target_loader=lambda: app, wrap_loader=False)


if __name__ == "__main__":
    main()
