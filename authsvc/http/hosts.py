"""Which names the service answers to: its issuer's, and those that never come from the internet."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from flask import Flask, request

from authsvc.errors import Misdirected

# Probes, monitoring and verifiers come by whatever name they find, and there is nothing in these but what is public.
_ANY_HOST: Final = ("health.healthz", "health.readyz", "operators.metrics", "wellknown.jwks", "wellknown.metadata")
# RFC 6762, RFC 6761, RFC 8375, what was set aside for private use, and what is used so; Kubernetes's names end in
# cluster.local.
_PRIVATE_ENDINGS: Final = (
    *(".local", ".localhost", ".internal", ".svc", ".lan", ".home.arpa", ".intranet", ".private", ".corp", ".home"),
    *(".consul", ".test"),
)

# RFC 3986, 3.2.2, without what no name has; urlsplit makes a name of nearly everything. None at all is HTTP/1.0.
_HOST: Final = re.compile(r"(\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*\.?)?(:[0-9]*)?")


def install_host_check(app: Flask, *, issuer: str, more: tuple[str, ...]) -> None:
    """Refuse requests for another public name than the issuer's and `more`.

    Such are a name of somebody else's that leads here, as in DNS rebinding, and a proxy that is set up wrongly.
    """

    def check() -> None:
        if request.endpoint not in _ANY_HOST and not is_host_of(request.environ.get("HTTP_HOST", ""), issuer, more):
            raise Misdirected("the request is for another host than that of the issuer")

    app.before_request(check)


@lru_cache(maxsize=256)
def is_host_of(host: str, issuer: str, more: tuple[str, ...]) -> bool:
    """Whether a Host header may mean the service of this issuer."""
    if not _HOST.fullmatch(host):
        return False
    try:
        name, issuer_name = urlsplit(f"//{host}").hostname or "", urlsplit(issuer).hostname
    except ValueError:
        return False
    name = name.removesuffix(".")
    if name == issuer_name or name in more:
        return True
    if "." not in name and ":" not in name:
        return True
    if name.endswith(_PRIVATE_ENDINGS):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
