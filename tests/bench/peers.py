"""Apps that the benchmark runs on our own server beside ours: `python -m tests.bench.peers NAME PROCESSES PORT`.

One of them runs on granian alone, as whoever has no server of their own would do it. The public key that
flask-jwt-extended verifies with comes on stdin.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from flask import Flask
from flask_jwt_extended import JWTManager, jwt_required
from granian.constants import HTTPModes, Interfaces
from granian.server.mp import MPServer

from authsvc.http.gateway import AtOnce, Gateway
from authsvc.http.listener import Address, free_address
from authsvc.http.server import serve

_BODY: Final = b'{"is_login":true,"expires_in":7200}\n'
_THREADS: Final = 64


def raw(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The least that a WSGI app can do."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [_BODY]


def at_once(*_request: Any, **_headers: Any) -> tuple[list[tuple[str, str]], bytes]:
    """The least that the gateway can be given."""
    return [("Content-Type", "application/json"), ("Cache-Control", "no-store")], _BODY


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


def on_our_server(app: Callable[..., Any], address: Address, processes: int, *, quick: AtOnce | None = None) -> None:
    serve(
        lambda: Gateway(app, threads=_THREADS, longest_body=lambda _path: 0, at_once=quick),
        address=address,
        workers=processes,
        stop_within_s=5,
        on_listening=lambda: None,
        on_ready=lambda: None,
        on_reload=lambda: None,
        on_stopping=lambda: None,
        on_worker_end=lambda: None,
        hangup_ends=False,
    )


def on_granian(app: Callable[..., Any], address: Address, processes: int) -> None:
    host, port = address[1][:2]
    server = MPServer(
        "bench",
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=processes,
        blocking_threads=_THREADS,
        log_enabled=False,
    )
    server.serve(target_loader=lambda: app, wrap_loader=False)


_SERVE: Final[dict[str, Callable[[Address, int], None]]] = {
    "raw": partial(on_our_server, raw, quick=at_once),
    "raw-wsgi": partial(on_granian, raw),
    "flask": lambda address, processes: on_our_server(flask_hello(), address, processes),
    "flask-jwt-extended": lambda address, processes: on_our_server(flask_jwt_extended(), address, processes),
}


def main() -> None:
    kind, processes, port = sys.argv[1:]
    _SERVE[kind](free_address("127.0.0.1", int(port)), int(processes))


if __name__ == "__main__":
    main()
