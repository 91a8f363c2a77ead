"""Every route as the OpenAPI document has it: what it takes, what it answers, with which codes it says no."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from authsvc.http import login, replies, session
from authsvc.http.bodies import SHORT_BYTES


class Caller(Enum):
    """Who may ask."""

    ANYONE = auto()
    TOKEN_OR_NONE = auto()
    TOKEN = auto()
    BACK_END = auto()
    OPERATOR = auto()


@dataclass(frozen=True, slots=True)
class Body:
    """A request body, as JSON or as a form."""

    model: type[BaseModel]
    example: Mapping[str, str]
    max_bytes: int


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """One that may be left out."""

    name: str
    description: str
    example: str


@dataclass(frozen=True, slots=True)
class ProblemMembers:
    """What the problems of a route have in them besides: a type that pydantic can describe."""

    type: Any
    example: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route with one method; HEAD and OPTIONS follow from it.

    `reply` is a type that pydantic can describe; `codes` are those of PROBLEMS that it answers, without those of
    `IDENTIFYING_CODES`. Texts are plain but for `code` in back quotes.
    """

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str
    reply: Any
    examples: Mapping[str, Any]
    caller: Caller = Caller.ANYONE
    parameter: QueryParameter | None = None
    body: Body | None = None
    codes: tuple[str, ...] = ()
    problem_members: ProblemMembers | None = None
    media_type: str = "application/json"
    may_be_kept: bool = False  # with an ETag, for as long as Cache-Control says; else it is never cached


TAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Login": "From a code of wx.login() to a token, and whether a token is good.",
        "Session": "What a session_key is needed for, done here, so that the key never leaves the service. Every route "
        "reaches the data of the token's own user alone. Let your back end ask, and not the client: whatever a client "
        "has decrypted and posts to you, it can also have made up.",
        "Back ends": "What would make an oracle for the session_key of every token holder. These routes want a service "
        "token too, and are not there while the service has none configured.",
        "Keys": "What verifiers read.",
        "Health": "For load balancers and monitoring. `/metrics` is not there while no operators' token is configured.",
        "Reference": "This description.",
    }
)

IDENTIFYING_CODES: Final[Mapping[Caller, tuple[str, ...]]] = MappingProxyType(
    {
        Caller.ANYONE: (),
        Caller.TOKEN_OR_NONE: (),
        Caller.TOKEN: replies.REASONS,
        Caller.BACK_END: (*replies.REASONS, "service_token_invalid"),
        Caller.OPERATOR: ("ops_token_invalid",),
    }
)
"""What is answered before anything but the headers is looked at."""

_OF_BODIES: Final = ("bad_request", "request_timeout", "payload_too_large", "unsupported_media_type")
_OF_USERS: Final = ("user_banned", "session_key_gone", "store_unavailable")
_OF_WECHAT: Final = (
    *("rate_limited", "wechat_config", "wechat_bad_reply", "wechat_error", "wechat_busy", "wechat_quota"),
    "wechat_timeout",
)

# None of these is anybody's.
_TOKEN: Final = "eyJhbGciOiJFUzI1NiJ9.eyJvcGVuaWQiOiJvQUJDIn0.c2lnbmF0dXJl"  # noqa: S105
_KID: Final = "n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg"
_CODE: Final = "0712cDoV0cfty22AeloV0daMoV02cDog"
_APPID: Final = "wx1234567890abcdef"
_WATERMARK: Final = {"timestamp": 1760000000, "appid": _APPID}
_METADATA: Final = {
    "issuer": "https://auth.example.com",
    "jwks_uri": "https://auth.example.com/.well-known/jwks.json",
    "id_token_signing_alg_values_supported": ["ES256"],
    "response_types_supported": ["id_token"],
    "subject_types_supported": ["public"],
}

OPERATIONS: Final = (
    Operation(
        "post",
        "/login",
        "logIn",
        "Login",
        "Exchange a code of wx.login() for a token",
        "The service asks WeChat who the code is of, keeps the session_key, and answers with a signed JWT that carries "
        "the openid. A code works once; the same code twice at once, from the same address, gets the same answer. "
        "There is no refresh: wx.login() is silent.",
        replies.LoginReply,
        {"token": {"token": _TOKEN, "token_type": "Bearer", "expires_in": 7200}},
        body=Body(login.LoginRequest, {"code": _CODE}, login.MAX_BODY_BYTES),
        codes=(
            *_OF_BODIES,
            *("code_invalid", "code_used", "user_blocked", "user_banned"),
            *_OF_WECHAT,
            *("store_unavailable", "keys_unusable", "overloaded"),
        ),
    ),
    Operation(
        "get",
        "/checklogin",
        "checkLogin",
        "Login",
        "Tell whether a token is good",
        "From the token alone, in the query or in the header; the answer is always 200. More than one token is "
        "`malformed`. Other services need not ask: they verify tokens with the public keys.",
        replies.CheckLoginReply,
        {
            "good": {"is_login": True, "expires_in": 7000},
            "not good": {"is_login": False, "reason": "expired"},
        },
        caller=Caller.TOKEN_OR_NONE,
        parameter=QueryParameter("token", "The token; better sent in the header, for URLs end up in logs.", _TOKEN),
    ),
    Operation(
        "post",
        "/session/decrypt",
        "decryptData",
        "Session",
        "Open encryptedData",
        "Gives what WeChat encrypted, if it is of this user and this mini-program, and fresh. The key of the token's "
        "own login is tried first, then those of the user's other last logins. After 50 failures of a user within a "
        "day the route is closed to that user.",
        replies.OpenData,
        {"open data": {"openId": "oABC-def_123", "nickName": "小明", "gender": 0, "watermark": _WATERMARK}},
        caller=Caller.TOKEN,
        body=Body(
            session.DecryptRequest,
            {"encryptedData": "CiyLU1Aw2KjvrjMdj8YKliAjtP4gsMZM", "iv": "r7BXXKkLb8qrSNn05n0qiA=="},
            session.MAX_BODY_BYTES,
        ),
        codes=(*_OF_BODIES, "decrypt_failed", *_OF_USERS, "rate_limited", "overloaded"),
    ),
    Operation(
        "post",
        "/session/verify",
        "verifySignature",
        "Session",
        "Tell whether WeChat signed rawData for this user",
        "Under any session_key of the user's last logins.",
        replies.VerifyReply,
        {"signed": {"valid": True}},
        caller=Caller.TOKEN,
        body=Body(
            session.VerifyRequest,
            {"rawData": '{"nickName":"Band","gender":1}', "signature": "75e81ceda165f4ffa64f4068af58c64b8f54b88c"},
            session.MAX_BODY_BYTES,
        ),
        codes=(*_OF_BODIES, *_OF_USERS, "overloaded"),
    ),
    Operation(
        "post",
        "/session/phone",
        "getPhoneNumber",
        "Session",
        "Get the user's phone number from WeChat",
        "WeChat charges for it, and takes a code once, with the openid that belongs to it.",
        replies.PhoneReply,
        {
            "number": {
                "phoneNumber": "+8613800138000",
                "purePhoneNumber": "13800138000",
                "countryCode": "86",
                "watermark": _WATERMARK,
            }
        },
        caller=Caller.TOKEN,
        body=Body(session.PhoneRequest, {"code": "e31968a7f94cc5ee25fafc2aef2773f0"}, session.MAX_CODE_BODY_BYTES),
        codes=(*_OF_BODIES, "phone_code_invalid", *_OF_USERS, *_OF_WECHAT, "overloaded"),
    ),
    Operation(
        "post",
        "/session/sign",
        "signBody",
        "Back ends",
        "Sign a request to WeChat with the user's newest session_key",
        "WeChat's login-state signature of a body that the back end is about to send.",
        replies.SignReply,
        {
            "signature": {
                "signature": "20e1e3ba19a0d4ca68d0f1ab2a8bd1ba4b6d6b3a8c3b9a4f6e3a6f0dcb1c9a77",
                "sig_method": "hmac_sha256",
            }
        },
        caller=Caller.BACK_END,
        body=Body(session.SignRequest, {"body": '{"foo":"bar"}'}, session.MAX_BODY_BYTES),
        codes=(*_OF_BODIES, *_OF_USERS, "overloaded"),
    ),
    Operation(
        "post",
        "/session/check",
        "checkSessionKey",
        "Back ends",
        "Ask WeChat whether it still has the session_key that is kept here",
        "The newest of the user. There is no body, and none is read.",
        replies.CheckReply,
        {"kept": {"valid": True}},
        caller=Caller.BACK_END,
        codes=(*_OF_USERS, *_OF_WECHAT, "overloaded"),
    ),
    Operation(
        "post",
        "/session/reset",
        "resetSessionKey",
        "Back ends",
        "Have WeChat make a new session_key",
        "What was made under an older one is not opened any more. There is no body, and none is read.",
        replies.ResetReply,
        {"reset": {"reset": True}},
        caller=Caller.BACK_END,
        codes=(*_OF_USERS, *_OF_WECHAT, "keys_unusable", "overloaded"),
    ),
    Operation(
        "get",
        "/.well-known/jwks.json",
        "getJwks",
        "Keys",
        "Get the public keys",
        "The key that signs, its standby, and those whose tokens still live.",
        replies.JwksReply,
        {
            "one key": {
                "keys": [
                    {
                        "use": "sig",
                        "kid": _KID,
                        "kty": "EC",
                        "alg": "ES256",
                        "crv": "P-256",
                        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
                    }
                ]
            }
        },
        may_be_kept=True,
    ),
    Operation(
        "get",
        "/.well-known/openid-configuration",
        "getOpenidConfiguration",
        "Keys",
        "Get where the keys are (OpenID Connect Discovery)",
        "For libraries that find the keys by the issuer.",
        replies.MetadataReply,
        {"metadata": _METADATA},
        may_be_kept=True,
    ),
    Operation(
        "get",
        "/.well-known/oauth-authorization-server",
        "getAuthorizationServerMetadata",
        "Keys",
        "Get where the keys are (RFC 8414)",
        "The same as the OpenID configuration.",
        replies.MetadataReply,
        {"metadata": _METADATA},
        may_be_kept=True,
    ),
    Operation(
        "get",
        "/healthz",
        "getHealth",
        "Health",
        "Tell that the process lives",
        "Looks at nothing.",
        replies.HealthReply,
        {"alive": {"status": "ok"}},
    ),
    Operation(
        "get",
        "/readyz",
        "getReadiness",
        "Health",
        "Tell whether the service can sign",
        "The side store and WeChat are told, and do not decide: tokens are verified without them.",
        replies.ReadyReply,
        {
            "ready": {
                "status": "ready",
                "keys": "ok",
                "generation": 4,
                "kid": _KID,
                "store": "ok",
                "wechat": "untried",
            }
        },
        codes=("keys_unusable",),
        problem_members=ProblemMembers(
            replies.NotReadyMembers, {"keys": "unusable", "store": "ok", "wechat": "untried"}
        ),
    ),
    Operation(
        "get",
        "/metrics",
        "getMetrics",
        "Health",
        "Get figures for Prometheus",
        "Of all workers together: requests, logins and tokens by what became of them, what WeChat and the side store "
        "took, the keys. No label has anything of a user in it.",
        str,
        {"one": "# TYPE authsvc_tokens_issued_total counter\nauthsvc_tokens_issued_total 12.0\n"},
        caller=Caller.OPERATOR,
        media_type="text/plain",
    ),
    Operation(
        "get",
        "/openapi.json",
        "getOpenapi",
        "Reference",
        "Get this description as OpenAPI 3.1",
        "It has the routes that there are with this configuration.",
        replies.OpenApiReply,
        {},
        may_be_kept=True,
    ),
    Operation(
        "get",
        "/docs",
        "getDocs",
        "Reference",
        "Read this description in a browser",
        "One page without scripts, which loads nothing.",
        str,
        {},
        media_type="text/html",
        may_be_kept=True,
    ),
)
"""Each is documented where the app has its route; one that depends on the settings stands here all the same."""

_LONGEST_BODIES: Final = MappingProxyType({each.path: each.body.max_bytes for each in OPERATIONS if each.body})


def longest_body(path: str) -> int:
    """How many bytes of a body are read where `path` leads; a few also where it leads nowhere."""
    return _LONGEST_BODIES.get(path, SHORT_BYTES)
