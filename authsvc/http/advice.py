"""What the one who gets an error does about it, for each code of PROBLEMS."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_LOG_IN: Final = "Log in again, once, and not in a loop."
_NEW_CODE: Final = "Call wx.login() again, once, and not in a loop."
_WAIT: Final = "Wait for as long as Retry-After says, then send it again."
_LATER: Final = "Try later. If it goes on, the operator has to look."
_OPERATOR: Final = "The operator has to act: the log says what is wrong."

ADVICE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bad_request": "Mend the request; `detail` says what is wrong with it.",
        "decrypt_failed": "Ask WeChat for the data anew. What was wrong with them stands in the service's log alone.",
        "phone_code_invalid": "Let the user press the phone number button again.",
        "missing": "Send the token as `Authorization: Bearer`.",
        "malformed": "Send one whole token. " + _LOG_IN,
        "revoked": _LOG_IN,
        "invalid": _LOG_IN,
        "expired": _LOG_IN,
        "code_invalid": _NEW_CODE + " If it stays, the appid is another one than the server's.",
        "code_used": _NEW_CODE,
        "user_blocked": "Tell the user, and do not try again.",
        "user_banned": "Tell the user, and do not try again.",
        "service_token_invalid": "Send one of the service's tokens as `X-Service-Token`. Clients have no use for it.",
        "ops_token_invalid": "Send the operators' token as `Authorization: Bearer`.",
        "not_found": "Mend the path. Nothing here redirects.",
        "method_not_allowed": "Use one of the methods that Allow names.",
        "request_timeout": "Send it again. After a login call wx.login() first.",
        "session_key_gone": "Log in again, then ask WeChat for the data anew.",
        "payload_too_large": "Send less.",
        "unsupported_media_type": "Send `application/json` or `application/x-www-form-urlencoded`.",
        "misdirected_request": "Send the request to the issuer's host. The operator may have to mend the proxy.",
        "rate_limited": _WAIT,
        "internal_error": "Try later, and report it with its `request_id`: it is a fault of the service.",
        "wechat_config": _OPERATOR,
        "wechat_bad_reply": _LATER,
        "wechat_error": _LATER + " `wechat_errcode` says what WeChat answered.",
        "wechat_busy": _WAIT + " The code is still good.",
        "wechat_quota": _WAIT + " The operator may have to buy more.",
        "store_unavailable": _WAIT + " After a login call wx.login() first: the code may be used.",
        "keys_unusable": _OPERATOR,
        "overloaded": _WAIT,
        "wechat_timeout": "Call wx.login() again, or ask for a new phone number code: the old one may be used.",
    }
)
