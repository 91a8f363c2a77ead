"""What a token says, and whether we accept it. Pure: bytes and the time come in, Claims or a TokenError come out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

from authsvc.encoding import NotCanonical, canonical_json, parse_json_object
from authsvc.errors import TokenExpired, TokenInvalid, TokenMalformed
from authsvc.jwk import ALGORITHMS

IAT_AHEAD_S: Final = 60
"""How far ahead of our clock a token's `iat` may be, in seconds: what two hosts' clocks may differ."""

MAX_LEEWAY_S: Final = 300
"""RFC 7519, 4.1.4: "no more than a few minutes"."""

OPENID: Final = re.compile(r"[0-9A-Za-z_-]{1,128}")

# Beyond 2^53 a JSON number is another number to every reader that uses doubles (RFC 8259, 6).
_LAST_SECOND: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Header:
    """The JWS header, exactly these members (RFC 9068, 2.1). Unverified until the signature is."""

    alg: str
    kid: str
    typ: str


@dataclass(frozen=True, slots=True)
class Claims:
    """Who logged in, where, and until when. Times are Unix seconds. The claims: RFC 7519, 4.1; RFC 9068, 2.2."""

    issuer: str  # iss
    audience: str  # aud, always one plain string
    openid: str  # sub, and again as openid: the user, within this appid
    appid: str  # client_id: the mini-program
    issued_at: int  # iat
    expires_at: int  # exp: the first second in which the token is dead
    auth_time: int  # when WeChat said who this is
    jti: str  # this token
    sid: str  # this login; names the row of the side store
    unionid: str | None = None  # the user over all apps of one Open Platform account; only where it was asked for


@dataclass(frozen=True, slots=True)
class Policy:
    """What the one who asks insists on. No default for issuer and audience: a token for another is none for us.

    The other defaults are the strictest there are, but for `appids`: None is every mini-program of this issuer.
    """

    issuer: str
    audience: str | tuple[str, ...]  # one of them has to be the token's
    algorithms: tuple[str, ...] = ALGORITHMS  # narrows; a key has one algorithm for life, whatever stands here
    typ: tuple[str, ...] = ("at+jwt",)
    appids: tuple[str, ...] | None = None
    leeway_s: int = 0  # how much longer than `exp` a token lives, for a clock that is ahead (RFC 7519, 4.1.4)
    audiences: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        audiences = (self.audience,) if isinstance(self.audience, str) else self.audience
        object.__setattr__(self, "audiences", frozenset(audiences))
        if not isinstance(self.issuer, str) or not self.issuer or not _are_names(audiences):
            raise TypeError("a policy has an issuer and an audience, or a tuple of them")
        # A plain text would make `in` a search for a part of it.
        if not _are_names(self.typ) or not (self.appids is None or _are_names(self.appids)):
            raise TypeError("typ and appids are tuples of texts, and not empty")
        if not _are_names(self.algorithms) or not set(self.algorithms) <= set(ALGORITHMS):
            raise TypeError(f"algorithms is a tuple of some of {', '.join(ALGORITHMS)}")
        if type(self.leeway_s) is not int or not 0 <= self.leeway_s <= MAX_LEEWAY_S:
            raise TypeError(f"leeway_s is a number of whole seconds from 0 to {MAX_LEEWAY_S}")


def parse_header(data: bytes) -> Header:
    """Raises: TokenMalformed unless it is a JSON object of exactly `alg`, `kid`, `typ`, all strings."""
    members = _object(data)
    if members.keys() != {"alg", "kid", "typ"} or not all(isinstance(value, str) for value in members.values()):
        # Whatever else could stand here (jwk, jku, x5u, crit, b64) asks us to trust the token about itself.
        raise TokenMalformed("the header has exactly alg, kid and typ")
    return Header(**members)


def parse_payload(data: bytes) -> dict[str, Any]:
    """Raises: TokenMalformed unless it is one JSON object without duplicate members."""
    return _object(data)


def claims_of(payload: dict[str, Any]) -> Claims:
    """The claims of a payload whose signature is good; unknown ones are ignored (RFC 7519, 4).

    Raises: TokenInvalid for a claim that is missing or not of its exact type, or a `sub` that is not the `openid`.
    """
    try:
        sub, *texts = _TEXTS(payload)
        times = _TIMES(payload)
    except KeyError as error:
        raise TokenInvalid(f"{error.args[0]} is missing") from None
    unionid = payload.get("unionid", "-")
    for text in (sub, unionid, *texts):
        if type(text) is not str or not text:
            raise TokenInvalid("a claim is not a text")
    for seconds in times:
        # bool is an int to isinstance; `"exp": true` must not pass as second 1. A float is no NumericDate of ours.
        if type(seconds) is not int or not 0 <= seconds <= _LAST_SECOND:
            raise TokenInvalid("a claim is not a time in whole seconds")
    issued_at, expires_at, auth_time = times
    issuer, audience, openid, appid, jti, sid = texts
    if sub != openid or not OPENID.fullmatch(openid):
        raise TokenInvalid("sub and openid are one openid")
    # By place, as the class has them: by name would cost 1 % of a verification.
    return Claims(issuer, audience, openid, appid, issued_at, expires_at, auth_time, jti, sid, payload.get("unionid"))


def payload_of(claims: Claims) -> bytes:
    """The payload that says these claims; the inverse of `claims_of(parse_payload(...))`."""
    members: dict[str, Any] = {
        "iss": claims.issuer,
        "sub": claims.openid,
        "openid": claims.openid,
        "aud": claims.audience,
        "client_id": claims.appid,
        "iat": claims.issued_at,
        "exp": claims.expires_at,
        "jti": claims.jti,
        "sid": claims.sid,
        "auth_time": claims.auth_time,
    }
    if claims.unionid is not None:
        members["unionid"] = claims.unionid
    return canonical_json(members)


def check_claims(claims: Claims, policy: Policy, *, now: int) -> None:
    """Whether these claims are meant for this policy at this second.

    Raises: TokenInvalid for another issuer, audience or appid, or an `iat` too far ahead; TokenExpired if all else is
    good.
    """
    if claims.issuer != policy.issuer:
        raise TokenInvalid("another issuer")
    if claims.audience not in policy.audiences:
        raise TokenInvalid("another audience")
    if policy.appids is not None and claims.appid not in policy.appids:
        raise TokenInvalid("another mini-program")
    if claims.issued_at > now + IAT_AHEAD_S:
        raise TokenInvalid("issued in the future")
    # RFC 7519, 4.1.4: dead *on* exp, not one second after it.
    if now >= claims.expires_at + policy.leeway_s:
        raise TokenExpired("expired")


def _are_names(names: object) -> bool:
    return isinstance(names, tuple) and bool(names) and all(isinstance(name, str) and name for name in names)


def _object(data: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(data)
    except NotCanonical as error:
        raise TokenMalformed(str(error)) from None


_TEXTS: Final = itemgetter("sub", "iss", "aud", "openid", "client_id", "jti", "sid")
_TIMES: Final = itemgetter("iat", "exp", "auth_time")
