"""What every reply says to browsers: take it for what it says it is, run nothing, show it nowhere else."""

from __future__ import annotations

from typing import Final

from flask import Flask, Response

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def install_security_headers(app: Flask) -> None:
    app.after_request(_add)


def _add(reply: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        reply.headers.setdefault(name, value)  # the reference page has a policy of its own
    reply.headers.setdefault("Cache-Control", "no-store")
    if reply.allow:
        reply.headers["Allow"] = ", ".join(sorted(reply.allow))  # in one order in every process
    return reply
