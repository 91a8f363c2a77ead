"""Which names the service answers to: its issuer's, and those that never come from the internet."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from flask import Flask, request

from authsvc.errors import Misdirected

# Probes and monitoring come by whatever address they find, and there is nothing in these for anybody else.
_ANY_HOST: Final = ("health.healthz", "health.readyz", "operators.metrics")
# RFC 6762, RFC 6761, and what was set aside for private use; Kubernetes's names end in cluster.local.
_PRIVATE_ENDINGS: Final = (".local", ".localhost", ".internal", ".svc")


def install_host_check(app: Flask, *, issuer: str) -> None:
    """Refuse requests for another public name than the issuer's: a name of somebody else's that leads here, as in DNS
    rebinding, or a proxy that is set up wrongly."""

    def check() -> None:
        if request.endpoint not in _ANY_HOST and not is_host_of(request.environ.get("HTTP_HOST", ""), issuer):
            raise Misdirected("the request is for another host than that of the issuer")

    app.before_request(check)


@lru_cache(maxsize=256)
def is_host_of(host: str, issuer: str) -> bool:
    """Whether a Host header may mean the service of this issuer."""
    try:
        name, issuer_name = urlsplit(f"//{host}").hostname or "", urlsplit(issuer).hostname
    except ValueError:
        return False
    name = name.rstrip(".")
    if name == issuer_name:
        return True
    if "." not in name and ":" not in name:
        return True  # also without any: HTTP/1.0
    if name.endswith(_PRIVATE_ENDINGS):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
