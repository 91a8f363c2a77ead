"""Apps that the benchmark runs on our own server beside ours: `python -m tests.bench.peers NAME PORT`.

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
    "flask": flask_hello,
    "flask-jwt-extended": flask_jwt_extended,
}


def main() -> None:
    app = _APPS[sys.argv[1]]()
    host, port = free_address("127.0.0.1", int(sys.argv[2]))[1][:2]
    server = MPServer(
        "bench",
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        blocking_threads=_THREADS,
        log_enabled=False,
    )
    server.serve(target_loader=lambda: app, wrap_loader=False)


if __name__ == "__main__":
    main()
