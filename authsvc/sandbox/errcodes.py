"""WeChat's errcodes, as far as the sandbox gives them: WeChat's own text, and what it means to who meets it.

Sources: the page of each call, and for what they have in common
https://developers.weixin.qq.com/doc/store/API/basics/commErrCode.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Errcode:
    """`errmsg` is WeChat's text without its request id."""

    errmsg: str
    meaning: str


class Refusal(Exception):
    """WeChat says no; never leaves the model."""

    def __init__(self, errcode: int) -> None:
        super().__init__(errcode)
        self.errcode = errcode


ERRCODES: Final[Mapping[int, Errcode]] = MappingProxyType(
    {
        -1: Errcode("system error", "WeChat is busy; the same call may work in a moment"),
        0: Errcode("ok", "a good answer"),
        40001: Errcode(
            "invalid credential, access_token is invalid or not latest",
            "the access_token is unknown, or a forced refresh has killed it",
        ),
        40002: Errcode("invalid grant_type", "grant_type is missing, or not the one of this call"),
        40003: Errcode("invalid openid", "no user of this app has that openid, or has never logged in here"),
        40013: Errcode("invalid appid", "the sandbox was not started with that appid"),
        40014: Errcode("invalid access_token", "the access_token is not of the right form"),
        40029: Errcode("invalid code", "the code is unknown, over five minutes old, another app's or of another kind"),
        40125: Errcode("invalid appsecret", "the secret is not the one the sandbox was started with"),
        40163: Errcode("code been used", "the code was exchanged before; each is good once"),
        40164: Errcode(
            "invalid ip 127.0.0.1 ipv6 ::ffff:127.0.0.1, not in whitelist",
            "the caller's address is not on the app's allow list",
        ),
        40226: Errcode("code blocked", "WeChat holds the user for high-risk and stops the login"),
        40243: Errcode("appsecret is frozen", "the secret was frozen in WeChat's console"),
        41001: Errcode("access_token missing", "there is no access_token in the query"),
        41002: Errcode("appid missing", "there is no appid where this call has it"),
        41004: Errcode("appsecret missing", "there is no secret where this call has it"),
        41008: Errcode("missing code", "there is no js_code in the query"),
        42001: Errcode("access_token expired", "the access_token has come to its end"),
        43001: Errcode("require GET method", "this call takes GET alone"),
        43002: Errcode("require POST method", "this call takes POST alone"),
        45009: Errcode("reach max api daily quota limit", "the app's quota of this day is used up"),
        45011: Errcode(
            "api minute-quota reach limit, must slower, retry next minute",
            "too often within a minute, or two forced refreshes within 30 seconds",
        ),
        47001: Errcode("data format error", "the body is not one JSON object with members of the right types"),
        50002: Errcode("user limited", "not in WeChat's page for this call"),
        87008: Errcode("invalid sig_method", "sig_method is not hmac_sha256"),
        87009: Errcode("invalid signature", "not signed with the session_key that is valid now, or none is"),
    }
)
