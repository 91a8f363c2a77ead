"""What the views answer, as types: the type checker holds the views to them, and the OpenAPI document is made of them.

Members that may come later are no change of the contract; whoever reads a reply passes over what it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import ConfigDict, Field

# Pydantic does not take typing's before Python 3.12.
from typing_extensions import TypedDict

from authsvc.errors import TokenExpired, TokenInvalid, TokenMalformed, TokenMissing, TokenRevoked

REASONS: Final = tuple(e.code for e in (TokenMissing, TokenMalformed, TokenRevoked, TokenInvalid, TokenExpired))
"""Why a token is not good; of several the first."""


class LoginReply(TypedDict):
    token: Annotated[
        str,
        Field(
            pattern=r"^[0-9A-Za-z_-]+\.[0-9A-Za-z_-]+\.[0-9A-Za-z_-]+$",
            description="The signed JWT. Whoever has it is the user until it ends.",
        ),
    ]
    token_type: Literal["Bearer"]
    expires_in: Annotated[int, Field(ge=1, description="Seconds until the token ends.")]


class LoggedInReply(TypedDict):
    is_login: Literal[True]
    expires_in: Annotated[int, Field(ge=0, description="Seconds that the token has left.")]


class NotLoggedInReply(TypedDict):
    is_login: Literal[False]
    reason: Annotated[
        str, Field(json_schema_extra={"enum": [*REASONS]}, description="The first that fits, in this order.")
    ]


CheckLoginReply = LoggedInReply | NotLoggedInReply


class Watermark(TypedDict):
    """Whose data these are, and when WeChat made them."""

    appid: str
    timestamp: Annotated[int, Field(description="Unix seconds.")]


class OpenWatermark(Watermark):
    """What was checked of the watermark, and whatever else WeChat put in."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class OpenData(TypedDict):
    """What WeChat encrypted, as it made it; which members there are depends on what the mini-program asked for."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    watermark: OpenWatermark


class VerifyReply(TypedDict):
    valid: Annotated[bool, Field(description="Whether WeChat gave this rawData with this signature to the user.")]


class PhoneReply(TypedDict):
    """As WeChat's `phone_info` has it."""

    phoneNumber: Annotated[str, Field(description="With the country code where it is a foreign number.")]
    purePhoneNumber: Annotated[str, Field(description="Without the country code.")]
    countryCode: str
    watermark: Watermark


class SignReply(TypedDict):
    signature: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    sig_method: Literal["hmac_sha256"]


class CheckReply(TypedDict):
    valid: Annotated[bool, Field(description="Whether the newest session_key that is kept here is the one WeChat has.")]


class ResetReply(TypedDict):
    reset: Literal[True]


class HealthReply(TypedDict):
    status: Literal["ok"]


class ReadyParts(TypedDict):
    """What does not decide: tokens are verified without it."""

    store: Literal["ok", "unavailable"]
    wechat: Annotated[
        str,
        Field(description="How this worker's last login went at WeChat: `untried`, `ok`, or the code of the error."),
    ]


class ReadyReply(ReadyParts):
    status: Literal["ready"]
    keys: Annotated[
        Literal["ok", "not reloaded"],
        Field(description="`not reloaded`: the keys in force sign, and a newer manifest cannot be read."),
    ]
    generation: Annotated[int, Field(ge=1, description="Of the key manifest that is in force.")]
    kid: Annotated[str, Field(description="Of the key that signs.")]


class NotReadyMembers(ReadyParts):
    """What the problem of `/readyz` says besides."""

    keys: Literal["unusable"]


class _Key(TypedDict):
    use: Literal["sig"]
    kid: Annotated[str, Field(pattern="^[0-9A-Za-z_-]{43}$", description="The thumbprint of the key (RFC 7638).")]


_Number = Annotated[str, Field(pattern="^[0-9A-Za-z_-]+$", description="base64url.")]


class EcKey(_Key):
    kty: Literal["EC"]
    alg: Literal["ES256"]
    crv: Literal["P-256"]
    x: _Number
    y: _Number


class OkpKey(_Key):
    kty: Literal["OKP"]
    alg: Literal["EdDSA"]
    crv: Literal["Ed25519"]
    x: _Number


class RsaKey(_Key):
    kty: Literal["RSA"]
    alg: Literal["RS256"]
    n: _Number
    e: _Number


class JwksReply(TypedDict):
    """RFC 7517. Public members alone."""

    keys: Annotated[list[EcKey | OkpKey | RsaKey], Field(min_length=1)]


class MetadataReply(TypedDict):
    """RFC 8414, OpenID Connect Discovery 1.0. There is no authorization endpoint: tokens come from `POST /login`."""

    issuer: Annotated[str, Field(json_schema_extra={"format": "uri"})]
    jwks_uri: Annotated[str, Field(json_schema_extra={"format": "uri"})]
    id_token_signing_alg_values_supported: Annotated[
        list[Literal["ES256", "EdDSA", "RS256"]], Field(min_length=1, description="Every one that is in the JWKS.")
    ]
    response_types_supported: list[Literal["id_token"]]
    subject_types_supported: list[Literal["public"]]


class Problem(TypedDict):
    """RFC 9457. The code is a promise, the texts are not."""

    status: Annotated[int, Field(ge=400, le=599, description="The HTTP status.")]
    title: Annotated[str, Field(description="The code in words.")]
    code: Annotated[str, Field(description="What a client goes by.")]
    detail: NotRequired[Annotated[str, Field(description="What is wrong with this very request.")]]
    wechat_errcode: NotRequired[Annotated[int, Field(description="WeChat's own number of the error.")]]
    request_id: Annotated[
        str, Field(pattern="^[0-9A-Za-z._-]{1,64}$", description="As in X-Request-ID; it finds the line in the log.")
    ]


class OpenApiReply(TypedDict):
    """OpenAPI 3.1."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    openapi: Literal["3.1.0"]
    info: dict[str, Any]
    paths: dict[str, Any]
