"""`/session/…`: what a back end needs the session_key for, done here, so that the key never leaves the service.

Every route is bound to the user of its own Bearer token. `sign`, `check` and `reset` would make an oracle for the
session_key of every token holder; they are for our own back ends, which show an X-Service-Token too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from flask import Blueprint, g, request
from pydantic import BaseModel, ConfigDict, Field

from authsvc.claims import Claims
from authsvc.errors import KeysUnavailable, ServiceTokenInvalid, TokenError
from authsvc.http.context import note, note_token
from authsvc.http.guards import CODE_PATTERN, call_place, for_user, read_body, work_place
from authsvc.http.replies import CheckReply, PhoneReply, ResetReply, SignReply, VerifyReply
from authsvc.http.services import Services, services
from authsvc.verifier.bearer import bearer_token
from authsvc.wechat import SIG_METHOD

MAX_BODY_BYTES: Final = 262_144
MAX_CODE_BODY_BYTES: Final = 4_096

client_blueprint = Blueprint("session", __name__, url_prefix="/session")
"""For whoever has a token."""

service_blueprint = Blueprint("service", __name__, url_prefix="/session")
"""For our own back ends; not there while there is no service token."""


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class DecryptRequest(_Request):
    """As wx.getUserInfo and others give them."""

    encryptedData: Annotated[  # noqa: N815 - WeChat's names
        str, Field(json_schema_extra={"minLength": 24, "contentEncoding": "base64"})
    ]
    iv: Annotated[str, Field(json_schema_extra={"minLength": 24, "maxLength": 24, "contentEncoding": "base64"})]


class VerifyRequest(_Request):
    """As wx.getUserInfo and others give them."""

    rawData: Annotated[str, Field(description="The text as WeChat gave it, to the letter.")]  # noqa: N815
    signature: Annotated[str, Field(description="40 hex digits; any other text is `valid: false`.")]


class PhoneRequest(_Request):
    """What the phone number button gives."""

    code: Annotated[
        str, Field(json_schema_extra={"pattern": CODE_PATTERN}, description="Of the button, not that of wx.login().")
    ]


class SignRequest(_Request):
    """What is to be signed."""

    body: Annotated[
        str, Field(json_schema_extra={"minLength": 1}, description="What will be sent to WeChat, to the letter.")
    ]


def sender_of(services: Services, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """The user whose token a request has, if it is good; `headers` are named as in a WSGI environ."""
    try:
        claims = services.verifier.verify(bearer_token([headers.get("HTTP_AUTHORIZATION", "")]))
    except (TokenError, KeysUnavailable):
        return None
    return claims.appid, claims.openid


@client_blueprint.before_request
@service_blueprint.before_request
def _identify() -> None:
    """Before anything of the body is read."""
    if request.method == "OPTIONS":
        return  # a browser asks so before it sends the token
    claims = services().verifier.verify(bearer_token(request.headers.getlist("Authorization")))
    note_token(None)
    note(appid=claims.appid, user=services().keys().pseudonym(claims.appid, claims.openid))
    g.claims = claims


@service_blueprint.before_request
def _identify_service() -> None:
    if request.method == "OPTIONS":
        return
    given = hashlib.sha256(request.headers.get("X-Service-Token", "").encode("utf-8", "surrogateescape")).digest()
    # Digests: the time tells neither how long a token is nor how much of it is right.
    if not any(hmac.compare_digest(given, known) for known in services().service_token_digests):
        raise ServiceTokenInvalid("X-Service-Token is missing, or is none of this service")


@client_blueprint.post("/decrypt")
def decrypt() -> tuple[dict[str, Any], dict[str, str]]:
    wanted = read_body(DecryptRequest, max_bytes=MAX_BODY_BYTES)
    with work_place(_claims()):
        return _reply(services().session.decrypt(_claims(), wanted.encryptedData, wanted.iv))


@client_blueprint.post("/verify")
def verify() -> tuple[VerifyReply, dict[str, str]]:
    wanted = read_body(VerifyRequest, max_bytes=MAX_BODY_BYTES)
    with work_place(_claims()):
        return _reply({"valid": services().session.verify(_claims(), wanted.rawData, wanted.signature)})


@client_blueprint.post("/phone")
def phone() -> tuple[PhoneReply, dict[str, str]]:
    wanted = read_body(PhoneRequest, max_bytes=MAX_CODE_BODY_BYTES)
    with for_user(_claims()), call_place():
        number = services().session.phone(_claims(), wanted.code)
    return _reply(
        {
            "phoneNumber": number.phone_number,
            "purePhoneNumber": number.pure_phone_number,
            "countryCode": number.country_code,
            "watermark": {"timestamp": number.timestamp, "appid": _claims().appid},
        }
    )


@service_blueprint.post("/sign")
def sign() -> tuple[SignReply, dict[str, str]]:
    # No place: nobody but a back end of ours gets here.
    wanted = read_body(SignRequest, max_bytes=MAX_BODY_BYTES)
    return _reply({"signature": services().session.sign(_claims(), wanted.body), "sig_method": SIG_METHOD})


@service_blueprint.post("/check")
def check() -> tuple[CheckReply, dict[str, str]]:
    with call_place():
        return _reply({"valid": services().session.check(_claims())})


@service_blueprint.post("/reset")
def reset() -> tuple[ResetReply, dict[str, str]]:
    with call_place():
        services().session.reset(_claims())
    return _reply({"reset": True})


def _claims() -> Claims:
    claims: Claims = g.claims
    return claims


_Members = TypeVar("_Members")


def _reply(members: _Members) -> tuple[_Members, dict[str, str]]:
    note(outcome="ok")
    return members, {"Cache-Control": "no-store"}
