"""WeChat's errcodes, and what each means for the one who called. Numbers decide; errmsg is prose that changes.

Source: the pages of the calls, https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session
first of all, and WeChat's table of global return codes.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from authsvc.errors import (
    AccessTokenRejected,
    CodeInvalid,
    CodeUsed,
    SessionKeyGone,
    UserBlocked,
    WeChatBusy,
    WeChatError,
    WeChatMisconfigured,
    WeChatQuotaExceeded,
    WeChatRateLimited,
)


def error_of(errcode: int, errmsg: object) -> WeChatError:
    """The error that an errcode other than 0 stands for; WeChatError itself for one that we do not know."""
    error_class, meaning = _MEANINGS.get(errcode, (WeChatError, "WeChat answered with an error"))
    seen_address = _address(errmsg) if errcode == _NOT_ALLOWED else None
    return error_class(meaning, errcode=errcode, rid=_request_id(errmsg), seen_address=seen_address)


_NOT_ALLOWED: Final = 40164


_MEANINGS: Final[dict[int, tuple[type[WeChatError], str]]] = {
    -1: (WeChatBusy, "WeChat is busy; the same request may work in a moment"),
    40029: (CodeInvalid, "the code is expired, mistyped, used, or of another appid; call wx.login again"),
    40163: (CodeUsed, "the code has been used; call wx.login again"),
    40226: (UserBlocked, "WeChat has stopped this user's login for security reasons"),
    45011: (WeChatRateLimited, "WeChat is asked too often for this user; wait a minute"),
    45009: (WeChatQuotaExceeded, "the app's daily quota at WeChat is used up"),
    40013: (WeChatMisconfigured, "WeChat does not know the appid"),
    40125: (WeChatMisconfigured, "WeChat does not accept the app secret"),
    40164: (WeChatMisconfigured, "this server's address is not in the app's allow list at WeChat"),
    40243: (WeChatMisconfigured, "the app secret is frozen at WeChat"),
    40003: (WeChatError, "WeChat does not know this openid in this app"),
    40001: (AccessTokenRejected, "WeChat does not take the access token"),
    40014: (AccessTokenRejected, "WeChat does not take the access token"),
    42001: (AccessTokenRejected, "the access token has ended"),
    87009: (SessionKeyGone, "WeChat has another session_key of this user by now; the user has to log in again"),
    41002: (WeChatMisconfigured, "WeChat misses the appid"),
    41004: (WeChatMisconfigured, "WeChat misses the app secret"),
    41008: (WeChatMisconfigured, "WeChat misses the code"),
}

KNOWN_ERRCODES: Final = frozenset(_MEANINGS)

# "…, rid: 652d44d0-1d0af18b-5b069232" or "…, hints: [ req_id: MdoBRh4FE-_iqKea ]". The shapes are exact, so that
# nothing else that an errmsg may echo gets into a log.
_REQUEST_ID: Final = re.compile(
    r"rid: ([0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8})(?![0-9A-Za-z_-])|req_id: ([0-9A-Za-z_-]{16})(?![0-9A-Za-z_-])"
)


# "invalid ip 8.149.1.108 ipv6 ::ffff:8.149.1.108, not in whitelist"
_ADDRESS: Final = re.compile(r"invalid ip ([0-9A-Fa-f.:]{2,45})(?![0-9A-Za-z.:])")


def _address(errmsg: object) -> str | None:
    found = _ADDRESS.search(errmsg) if isinstance(errmsg, str) else None
    try:
        return str(ipaddress.ip_address(found[1])) if found else None
    except ValueError:
        return None


def _request_id(errmsg: object) -> str | None:
    found = _REQUEST_ID.search(errmsg) if isinstance(errmsg, str) else None
    return (found[1] or found[2]) if found else None
