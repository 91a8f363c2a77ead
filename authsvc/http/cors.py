"""Browsers on pages of other origins (Flask-CORS, the Fetch standard): none, unless they are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flask import Flask, Response
from flask_cors import CORS

_PREFLIGHT_KEPT_S: Final = 600


def install_cors(app: Flask, origins: Sequence[str]) -> None:
    """`origins` are such as Origin has them. Nothing here goes by cookies, so none are asked for."""
    CORS(
        app,
        origins=list(origins),
        methods=["GET", "HEAD", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-ID", "traceparent"],
        expose_headers=["ETag", "Retry-After", "WWW-Authenticate", "X-Request-ID"],
        max_age=_PREFLIGHT_KEPT_S,
        supports_credentials=False,
        send_wildcard=False,
    )
    app.after_request(_vary)


def _vary(reply: Response) -> Response:
    # Also where one origin alone is named: what was answered to another one has no such header, and may be kept.
    reply.vary.add("Origin")
    return reply
