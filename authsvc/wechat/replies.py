"""What WeChat's answers have to look like before anything in them is believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from authsvc.encoding import NotCanonical, base64_decode, parse_json_object
from authsvc.errors import WeChatBadReply
from authsvc.wechat.errcodes import error_of
from authsvc.wechat.transport import Answer

IDENTIFIER: Final = re.compile(r"[0-9A-Za-z_-]{1,128}")
"""A code, an openid, a unionid."""

_ERRCODE: Final = re.compile(r"-?[0-9]{1,9}")
_ACCESS_TOKEN: Final = re.compile(r"[!-~]{1,2048}")  # WeChat: leave room for 512 characters at least
_COUNTRY_CODE: Final = re.compile(r"[0-9]{1,8}")
_SESSION_KEY_BYTES: Final = 16
_MAX_PHONE_CHARS: Final = 64
_MAX_EXPIRES_IN_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class WeChatSession:
    """What WeChat says of a code. The session_key is base64 of 16 bytes; it never leaves the service."""

    openid: str
    session_key: str = field(repr=False)
    unionid: str | None = None


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a server's calls to WeChat carry. Seconds from when WeChat gave it."""

    token: str = field(repr=False)
    expires_in_s: int


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """A user's phone number. `country_code` is a text, though WeChat writes it as a number too."""

    phone_number: str = field(repr=False)  # with the country code in front, if it is a foreign one
    pure_phone_number: str = field(repr=False)
    country_code: str
    timestamp: int  # when the user gave it, Unix seconds


def read_members(answer: Answer) -> dict[str, Any]:
    """The members of a good answer.

    Raises: WeChatBadReply if it is none; the WeChatError that its errcode stands for.
    """
    if answer.status != 200:
        raise WeChatBadReply(f"HTTP status {answer.status}")
    try:
        # From bytes, as UTF-8: WeChat says text/plain, which requests takes for ISO-8859-1.
        members = parse_json_object(answer.body, control_characters=True)
    except NotCanonical as error:
        raise WeChatBadReply(str(error)) from None
    errcode = _errcode(members.get("errcode", 0))
    if errcode != 0:
        raise error_of(errcode, members.get("errmsg"))
    return members


def read_session(members: Mapping[str, Any]) -> WeChatSession:
    """Raises: WeChatBadReply, as the others do, for a member that is missing or ill-formed."""
    return WeChatSession(
        openid=_identifier(members.get("openid"), "openid"),
        session_key=_session_key(members.get("session_key")),
        # Only for apps that are bound to an Open Platform account; null and "" have been seen for the others.
        unionid=_identifier(members["unionid"], "unionid") if members.get("unionid") else None,
    )


def read_success(members: Mapping[str, Any]) -> None:
    """For an answer that says nothing but that: `{}` may be anybody's."""
    if "errcode" not in members:
        raise WeChatBadReply("there is no errcode")


def read_access_token(members: Mapping[str, Any]) -> AccessToken:
    token, expires_in_s = members.get("access_token"), members.get("expires_in")
    if type(token) is not str or not _ACCESS_TOKEN.fullmatch(token):
        raise WeChatBadReply("access_token is not 1 to 2048 visible characters")
    if type(expires_in_s) is not int or not 0 < expires_in_s <= _MAX_EXPIRES_IN_S:
        raise WeChatBadReply("expires_in is not a number of seconds up to a day")
    return AccessToken(token, expires_in_s)


def read_phone_number(members: Mapping[str, Any], *, appid: str) -> PhoneNumber:
    info = members.get("phone_info")
    watermark = info.get("watermark") if isinstance(info, dict) else None
    if not isinstance(info, dict) or not isinstance(watermark, dict):
        raise WeChatBadReply("there is no phone_info with a watermark")
    if watermark.get("appid") != appid:
        raise WeChatBadReply("the phone number is one given to another app")
    timestamp, country_code = watermark.get("timestamp"), info.get("countryCode")
    if type(timestamp) is not int or timestamp < 0:
        raise WeChatBadReply("timestamp is no number of seconds")
    if type(country_code) is int:
        country_code = str(country_code)
    if type(country_code) is not str or not _COUNTRY_CODE.fullmatch(country_code):
        raise WeChatBadReply("countryCode is no number")
    return PhoneNumber(
        phone_number=_phone(info.get("phoneNumber")),
        pure_phone_number=_phone(info.get("purePhoneNumber")),
        country_code=country_code,
        timestamp=timestamp,
    )


def _errcode(value: object) -> int:
    # A number, or, on some of WeChat's pages and hosts, its digits as a text. bool is an int to isinstance.
    if type(value) is int and abs(value) < 10**9:
        return value
    if type(value) is str and _ERRCODE.fullmatch(value):
        return int(value)
    raise WeChatBadReply("errcode is no number")


def _identifier(value: object, name: str) -> str:
    if type(value) is not str or not IDENTIFIER.fullmatch(value):
        raise WeChatBadReply(f"{name} is not 1 to 128 characters of 0-9, A-Z, a-z, _ and -")
    return value


def _session_key(value: object) -> str:
    try:
        if type(value) is str and len(base64_decode(value)) == _SESSION_KEY_BYTES:
            return value
    except NotCanonical:
        pass  # the answer below, which does not quote it
    raise WeChatBadReply("session_key is not base64 of 16 bytes")


def _phone(value: object) -> str:
    if type(value) is not str or not 0 < len(value) <= _MAX_PHONE_CHARS:
        raise WeChatBadReply("a phone number is missing")
    return value
