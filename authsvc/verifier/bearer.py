"""What every adapter has in common: the token of a request, and the answer to one that is refused (RFC 6750)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from authsvc.errors import KeysUnavailable, TokenError, TokenMalformed, TokenMissing

PROBLEM_JSON: Final = "application/problem+json"

CLAIMS: Final = "authsvc.claims"
"""Where the claims are in a WSGI environ."""

_SCHEME: Final = "bearer"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A whole reply: RFC 9457 in the body, and a challenge or a time to come back in the headers."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def bearer_token(authorizations: Iterable[str]) -> str:
    """The token of the Authorization headers of a request (RFC 6750, 2.1), the word Bearer in any case.

    Raises: TokenMissing; TokenMalformed for more than one, whichever of them would be good.
    """
    # A server may hand two headers over as one, with a comma between them (RFC 9110, 5.3); no token has a comma in it.
    values = [part for value in authorizations for part in value.split(",")]
    if len(values) > 1 and any(map(is_bearer, values)):
        raise TokenMalformed("more than one token")
    token = "".join(map(credentials, values))
    if not token:
        raise TokenMissing("no token")
    return token


def is_bearer(authorization: str) -> bool:
    return authorization.strip(" ").partition(" ")[0].lower() == _SCHEME


def credentials(authorization: str) -> str:
    """What stands behind the word Bearer. Another scheme (Basic, for a proxy) is no token, and no mistake either."""
    return authorization.strip(" ").partition(" ")[2].strip(" ") if is_bearer(authorization) else ""


def refusal(error: TokenError | KeysUnavailable) -> Refusal:
    """401 with a challenge, or 503 with Retry-After: who cannot be told from a stranger is not logged out."""
    if isinstance(error, KeysUnavailable):
        status, reason, title = 503, "Service Unavailable", "Whether the token is good cannot be told now"
        extra = ("Retry-After", str(error.retry_after_s))
    else:
        status, reason, title = 401, "Unauthorized", "The token is not accepted"
        extra = ("WWW-Authenticate", challenge(error))
    body = json.dumps({"status": status, "title": title, "code": error.code}).encode("ascii") + b"\n"
    headers = (
        ("Content-Type", PROBLEM_JSON),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        extra,
    )
    return Refusal(status, reason, headers, body)


def challenge(error: TokenError) -> str:
    """The WWW-Authenticate of a 401."""
    # RFC 6750, 3.1: without any token there is nothing wrong with it yet.
    if isinstance(error, TokenMissing):
        return "Bearer"
    return f'Bearer error="invalid_token", error_description="{error.code}"'
