"""Who asks, as far as an address tells."""

from __future__ import annotations

from flask import request


def client_address() -> str:
    """The address of the client, without the port that some proxies write behind it; empty if there is none."""
    found = request.remote_addr or ""
    if found.startswith("["):
        return found[1:].partition("]")[0]
    host, _, port = found.partition(":")
    return host if port.isdecimal() else found
