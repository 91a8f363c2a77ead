"""Who asks, as far as an address tells."""

from __future__ import annotations

import re
from typing import Final

from flask import request

_WITH_PORT: Final = re.compile(r"\[(?P<ipv6>[^]]+)\](:[0-9]+)?|(?P<other>[^:]+):[0-9]+")


def client_address() -> str:
    """The address of the client, without the port that some proxies write behind it; empty if there is none."""
    found = request.remote_addr or ""
    match = _WITH_PORT.fullmatch(found)
    return match["ipv6"] or match["other"] if match else found
