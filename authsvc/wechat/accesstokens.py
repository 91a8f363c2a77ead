"""The access_token of each app: fetched when one is needed, by one at a time, and shared by all who need it.

https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeGuard, TypeVar

from authsvc.clock import Clock
from authsvc.errors import AccessTokenRejected, WeChatError, WeChatTimeout
from authsvc.wechat.client import App
from authsvc.wechat.replies import AccessToken

# WeChat renews a token in its last five minutes, in which the old one and the new one are good.
_RENEWED_BEFORE_END_S: Final = 300
_LOOK_EVERY_S: Final = 0.05
_CLAIMED_LONGER_S: Final = 2

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class LivingToken:
    """An access_token and the second in which it ends (Unix)."""

    token: str = field(repr=False)
    expires_at: int


class TokenSource(Protocol):
    """What of WeChatClient is needed here."""

    def stable_access_token(self, app: App, *, ends_at: float | None = None) -> AccessToken: ...


class TokenShare(Protocol):
    """Where processes leave access tokens for one another. One that is out of order raises nothing: it has no token,
    and lets everybody fetch."""

    def token(self, appid: str) -> LivingToken | None: ...

    def put(self, appid: str, token: LivingToken) -> None: ...

    def drop(self, appid: str, token: LivingToken) -> None:
        """Forget it, if it is still this one."""

    def claim(self, appid: str, *, for_s: int) -> Callable[[], None] | None:
        """Be the one who fetches, for `for_s` seconds at most: what ends it earlier; None if somebody else is."""


class AccessTokens:
    """Hands out access tokens: from memory, from the share, from WeChat. Thread-safe."""

    def __init__(
        self,
        wechat: TokenSource,
        *,
        share: TokenShare,
        timeout_s: float,
        clock: Clock,
        sleep: Callable[[float], None],
    ) -> None:
        self._wechat = wechat
        self._share = share
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def use(self, app: App, call: Callable[[str, float], _Found]) -> _Found:
        """What `call` gives for an access_token and the time that bounds all of it, on `clock.monotonic`.

        If WeChat does not take the token, another one is had and `call` made once more.
        Raises: whatever `call` raises; WeChatError if there is no token to be had.
        """
        ends_at = self._clock.monotonic() + self._timeout_s
        token = self._token(app, ends_at=ends_at)
        try:
            return call(token.token, ends_at)
        except AccessTokenRejected:
            self._discard(app, token)
        return call(self._token(app, ends_at=ends_at).token, ends_at)

    def _token(self, app: App, *, ends_at: float) -> LivingToken:
        with self._lock:
            kept = self._kept.setdefault(app.appid, _Kept())
        old = kept.token
        if self._is_fresh(old):
            return old
        lives = old is not None and self._clock.now() < old.expires_at
        left_s = max(0.0, ends_at - self._clock.monotonic())
        # Who has one that lives does not wait for its successor.
        if not kept.lock.acquire(timeout=0 if lives else left_s):
            if old is not None and lives:
                return old
            raise WeChatTimeout("there was no access token in time")
        try:
            if not self._is_fresh(kept.token):
                kept.token = self._renewed(app, ends_at=ends_at)
            return kept.token
        except WeChatError:
            if old is not None and lives:
                return old  # good to its end; the next call tries again
            raise
        finally:
            kept.lock.release()

    def _renewed(self, app: App, *, ends_at: float) -> LivingToken:
        while not self._is_fresh(shared := self._share.token(app.appid)):
            left_s = ends_at - self._clock.monotonic()
            if left_s <= 0:
                raise WeChatTimeout("there was no access token in time")
            end_claim = self._share.claim(app.appid, for_s=int(left_s) + _CLAIMED_LONGER_S)
            if end_claim is None:
                self._sleep(_LOOK_EVERY_S)
                continue
            try:
                # It may have come between our look and our claim.
                if not self._is_fresh(shared := self._share.token(app.appid)):
                    shared = self._fetched(app, ends_at=ends_at)
                    self._share.put(app.appid, shared)
            finally:
                end_claim()
            break
        return shared

    def _fetched(self, app: App, *, ends_at: float) -> LivingToken:
        # Counted from before the call, so that it ends here no later than at WeChat.
        asked_at = self._clock.now()
        found = self._wechat.stable_access_token(app, ends_at=ends_at)
        return LivingToken(found.token, asked_at + found.expires_in_s)

    def _discard(self, app: App, token: LivingToken) -> None:
        # Only if it is still the one that failed: another thread or process may have a new one already.
        kept = self._kept[app.appid]
        with kept.lock:
            if kept.token == token:
                kept.token = None
        self._share.drop(app.appid, token)

    def _is_fresh(self, token: LivingToken | None) -> TypeGuard[LivingToken]:
        return token is not None and self._clock.now() < token.expires_at - _RENEWED_BEFORE_END_S


@dataclass(slots=True)
class _Kept:
    lock: threading.Lock = field(default_factory=threading.Lock)
    token: LivingToken | None = None
