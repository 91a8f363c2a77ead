"""The phone numbers of the users, and how WeChat writes one.

Source: https://developers.weixin.qq.com/miniprogram/dev/server/API/user-info/phone-number/api_getphonenumber
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from authsvc.errors import BadRequest

_COUNTRY_CODE: Final = 86
_NUMBER: Final = re.compile(r"[0-9]{5,15}")  # ITU-T E.164: at most 15


def phone_number_of(user: str) -> str:
    """The same for this user always; eleven digits, without the country code."""
    digest = hashlib.sha256(b"authsvc sandbox\0phone\0" + user.encode()).digest()
    return f"138{int.from_bytes(digest) % 10**8:08}"


def check_phone_number(number: str) -> None:
    """Raises: BadRequest."""
    if not _NUMBER.fullmatch(number):
        raise BadRequest("a phone is a number of 5 to 15 digits")


def phone_info(number: str, appid: str, now: int) -> dict[str, object]:
    """The member of that name, given to this app at this Unix second."""
    return {
        "phoneNumber": number,
        "purePhoneNumber": number,
        "countryCode": _COUNTRY_CODE,
        "watermark": {"timestamp": now, "appid": appid},
    }
