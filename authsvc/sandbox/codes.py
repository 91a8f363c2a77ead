"""Codes that the phone gets and the server hands in: good once, for five minutes.

Sources: wx.login, https://developers.weixin.qq.com/miniprogram/dev/api/open-api/login/wx.login.html, and the phone
button, https://developers.weixin.qq.com/miniprogram/dev/server/API/user-info/phone-number/api_getphonenumber
"""

from __future__ import annotations

import string
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from authsvc.sandbox.faults import FaultPlan
from authsvc.sandbox.users import SessionKey

CODE_LIFETIME_S: Final = 300  # five minutes, used or not

KEPT_CODES: Final = 500_000  # bounds only what one burst can pile up: codes end by themselves

_ALPHABET: Final = string.digits + string.ascii_letters
_LENGTH: Final = 32


@dataclass(slots=True)
class Code:
    """What both kinds have."""

    appid: str
    openid: str
    user: str
    minted_at: int  # Unix seconds
    used: bool = field(default=False, kw_only=True)

    def ended(self, now: int) -> bool:
        return now - self.minted_at >= CODE_LIFETIME_S


@dataclass(slots=True)
class LoginCode(Code):
    unionid: str | None
    key: SessionKey
    plan: FaultPlan | None


@dataclass(slots=True)
class PhoneCode(Code):
    number: str = field(repr=False)  # digits, without the country code


_AnyCode = TypeVar("_AnyCode", bound=Code)


class Codes(Generic[_AnyCode]):
    """Codes of one kind. Not thread-safe by itself: SandboxWeChat holds its lock around every call."""

    def __init__(self) -> None:
        self._codes: OrderedDict[str, _AnyCode] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._codes)

    def add(self, text: str, code: _AnyCode, *, now: int) -> None:
        self._forget_ended(now)
        self._codes[text] = code
        if len(self._codes) > KEPT_CODES:
            self._codes.popitem(last=False)

    def find(self, text: str, *, now: int) -> _AnyCode | None:
        """The code of this text, used or not, but not ended."""
        self._forget_ended(now)
        code = self._codes.get(text)
        # Behind a younger one if the clock was set back.
        return None if code is None or code.ended(now) else code

    def _forget_ended(self, now: int) -> None:
        while self._codes and next(iter(self._codes.values())).ended(now):
            self._codes.popitem(last=False)


def new_login_code(random_bytes: Callable[[int], bytes]) -> str:
    """32 letters and digits."""
    number = int.from_bytes(random_bytes(_LENGTH))
    characters = []
    for _ in range(_LENGTH):
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(characters)


def new_phone_code(random_bytes: Callable[[int], bytes]) -> str:
    """64 hex digits, as in the sample of WeChat's page."""
    return random_bytes(32).hex()
