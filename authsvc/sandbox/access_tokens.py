"""The access_tokens of each app: one that stays the same until shortly before its end.

Source: https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from authsvc.sandbox.errcodes import Refusal

TOKEN_LIFETIME_S: Final = 7200
TOKEN_OVERLAP_S: Final = 300  # in a token's last five minutes there is a new one beside it
REFRESHES_PER_DAY: Final = 20  # forced ones, of one app (45009)
REFRESHES_APART_S: Final = 30  # forced ones (45011)
TOKEN_CALLS_PER_MINUTE: Final = 10_000  # of one app (45011)
TOKEN_CALLS_PER_DAY: Final = 500_000  # of one app (45009)

KEPT_TOKENS: Final = 50  # of one app, ended ones for the most part: those are told from unknown ones

_TOKEN_LENGTH: Final = 136
_PREFIX: Final = "92_"  # WeChat's begin with a number and "_" as well
# WeChat's day is Beijing's. That its quotas start anew with it is what users see; the page does not say.
_BEIJING_S: Final = 8 * 3600
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class GivenToken:
    text: str = field(repr=False)
    appid: str
    ends_at: int  # Unix seconds; ended on it


class AccessTokens:
    """Not thread-safe by itself: SandboxWeChat holds its lock around every call."""

    def __init__(self, appids: Iterable[str], *, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._apps = {appid: _App() for appid in appids}

    def stable(self, appid: str, *, force_refresh: bool, now: int) -> GivenToken:
        """The token in force, after a forced refresh a new one and no other.

        Raises: Refusal 45011 or 45009 beyond a quota, the token in force stays then. KeyError for an unknown app.
        """
        app = self._apps[appid]
        app.count_call(now)
        if force_refresh:
            app.count_refresh(now)
            app.tokens.clear()
        elif app.tokens and app.tokens[-1].ends_at - now > TOKEN_OVERLAP_S:
            return app.tokens[-1]
        token = GivenToken(new_token(self._random_bytes), appid, now + TOKEN_LIFETIME_S)
        app.tokens = [*app.tokens[1 - KEPT_TOKENS :], token]
        return token

    def find(self, text: str) -> GivenToken | None:
        """The token of this text, ended or not; None if it is nobody's or a forced refresh has killed it."""
        return next((token for app in self._apps.values() for token in app.tokens if token.text == text), None)


def new_token(random_bytes: Callable[[int], bytes]) -> str:
    """136 of 0-9, A-Z, a-z, _ and -."""
    return (_PREFIX + base64.urlsafe_b64encode(random_bytes(_TOKEN_LENGTH)).decode())[:_TOKEN_LENGTH]


@dataclass(slots=True)
class _App:
    tokens: list[GivenToken] = field(default_factory=list)  # the newest last
    minute: int = 0
    calls_in_minute: int = 0
    day: int = 0
    calls_in_day: int = 0
    refreshes_in_day: int = 0
    refreshed_at: int | None = None  # Unix seconds of the last forced refresh

    def count_call(self, now: int) -> None:
        minute, day = now // 60, (now + _BEIJING_S) // _DAY_S
        if minute != self.minute:
            self.minute, self.calls_in_minute = minute, 0
        if day != self.day:
            self.day, self.calls_in_day, self.refreshes_in_day = day, 0, 0
        if self.calls_in_minute == TOKEN_CALLS_PER_MINUTE:
            raise Refusal(45011)
        if self.calls_in_day == TOKEN_CALLS_PER_DAY:
            raise Refusal(45009)
        self.calls_in_minute += 1
        self.calls_in_day += 1

    def count_refresh(self, now: int) -> None:
        if self.refreshed_at is not None and now - self.refreshed_at < REFRESHES_APART_S:
            raise Refusal(45011)
        if self.refreshes_in_day == REFRESHES_PER_DAY:
            raise Refusal(45009)
        self.refreshes_in_day += 1
        self.refreshed_at = now
