"""`/session/…`: what a back end needs the session_key for, done here, so that the key never leaves the service.

Every route is bound to the user of its own Bearer token. `sign`, `check` and `reset` would make an oracle for the
session_key of every token holder; they are for our own back ends, which show an X-Service-Token too.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

from flask import Blueprint, g, request
from pydantic import BaseModel, ConfigDict

from authsvc.claims import Claims
from authsvc.errors import ServiceTokenInvalid
from authsvc.http.context import note
from authsvc.http.guards import call_place, for_user, read_body, work_place
from authsvc.http.services import services
from authsvc.verifier.bearer import bearer_token
from authsvc.wechat import SIG_METHOD

MAX_BODY_BYTES: Final = 262_144
MAX_CODE_BODY_BYTES: Final = 4_096

Reply = tuple[dict[str, Any], dict[str, str]]

client_blueprint = Blueprint("session", __name__, url_prefix="/session")
"""For whoever has a token."""

service_blueprint = Blueprint("service", __name__, url_prefix="/session")
"""For our own back ends; not there while there is no service token."""


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class DecryptRequest(_Request):
    """As wx.getUserInfo and others give them."""

    encryptedData: str  # noqa: N815 - WeChat's names
    iv: str


class VerifyRequest(_Request):
    rawData: str  # noqa: N815
    signature: str


class PhoneRequest(_Request):
    """`code` is what the phone number button gave, not the one of wx.login."""

    code: str


class SignRequest(_Request):
    """`body` is what will be sent to WeChat, to the letter."""

    body: str


@client_blueprint.before_request
@service_blueprint.before_request
def _identify() -> None:
    """Before anything of the body is read."""
    claims = services().verifier.verify(bearer_token(request.headers.getlist("Authorization")))
    note(appid=claims.appid, user=services().keys().pseudonym(claims.appid, claims.openid))
    g.claims = claims


@service_blueprint.before_request
def _identify_service() -> None:
    given = hashlib.sha256(request.headers.get("X-Service-Token", "").encode("utf-8", "surrogateescape")).digest()
    # Digests: the time tells neither how long a token is nor how much of it is right.
    if not any(hmac.compare_digest(given, known) for known in services().service_token_digests):
        raise ServiceTokenInvalid("X-Service-Token is missing, or is none of this service")


@client_blueprint.post("/decrypt")
def decrypt() -> Reply:
    with work_place(_claims()):
        wanted = read_body(DecryptRequest, max_bytes=MAX_BODY_BYTES)
        return _reply(services().session.decrypt(_claims(), wanted.encryptedData, wanted.iv))


@client_blueprint.post("/verify")
def verify() -> Reply:
    with work_place(_claims()):
        wanted = read_body(VerifyRequest, max_bytes=MAX_BODY_BYTES)
        return _reply({"valid": services().session.verify(_claims(), wanted.rawData, wanted.signature)})


@client_blueprint.post("/phone")
def phone() -> Reply:
    with for_user(_claims()), call_place():
        wanted = read_body(PhoneRequest, max_bytes=MAX_CODE_BODY_BYTES)
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
def sign() -> Reply:
    # No place: nobody but a back end of ours gets here.
    wanted = read_body(SignRequest, max_bytes=MAX_BODY_BYTES)
    return _reply({"signature": services().session.sign(_claims(), wanted.body), "sig_method": SIG_METHOD})


@service_blueprint.post("/check")
def check() -> Reply:
    with call_place():
        return _reply({"valid": services().session.check(_claims())})


@service_blueprint.post("/reset")
def reset() -> Reply:
    with call_place():
        services().session.reset(_claims())
    return _reply({"reset": True})


def _claims() -> Claims:
    claims: Claims = g.claims
    return claims


def _reply(members: dict[str, Any]) -> Reply:
    note(outcome="ok")
    return members, {"Cache-Control": "no-store"}
