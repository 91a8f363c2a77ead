"""The access_token of each app: fetched when one is needed, by one at a time, and shared by all who need it.

https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeGuard, TypeVar

from authsvc.clock import Clock
from authsvc.errors import AccessTokenRejected, WeChatError, WeChatTimeout
from authsvc.wechat.client import App
from authsvc.wechat.replies import AccessToken

# WeChat renews a token in its last five minutes, in which the old one and the new one are good.
_RENEWED_BEFORE_END_S: Final = 300
# How long it is left at that when a token that lives could not be renewed, or WeChat gives a token again and again that
# it does not take.
_LEFT_AT_THAT_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.05
_CLAIMED_LONGER_S: Final = 2
# Of the time of a call that has a token which lives: the call needs the rest.
_SHARE_OF_RENEWAL: Final = 1 / 3

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
        self._lock = threading.Lock()  # for moments only, never over a call
        self._apps: dict[str, _Kept] = {}

    def use(self, app: App, call: Callable[[str, float], _Found]) -> _Found:
        """What `call` gives for an access_token and the time that bounds all of it, on `clock.monotonic`.

        If WeChat does not take the token, another one is had and `call` made once more.
        Raises: whatever `call` raises; WeChatError if there is no token to be had.
        """
        ends_at = self._clock.monotonic() + self._timeout_s
        token = self._token(app, ends_at=ends_at)
        try:
            found = call(token.token, ends_at)
        except AccessTokenRejected:
            self._refuse(app, token)
            found = call(self._token(app, ends_at=ends_at).token, ends_at)
        self._apps[app.appid].confirmed = None  # it is taken after all
        return found

    def _token(self, app: App, *, ends_at: float) -> LivingToken:
        now = self._clock.monotonic()
        with self._lock:
            kept = self._apps.setdefault(app.appid, _Kept())
            old, fetch, failure = kept.token, kept.fetch, kept.failure
            if self._is_fresh(old, kept):
                return old
            lives = old is not None and self._clock.now() < old.expires_at
            is_ours = fetch is None and not (lives and now < kept.failed_at + _LEFT_AT_THAT_S)
            if is_ours:
                fetch = kept.fetch = Future()
        if not is_ours and old is not None and lives:
            return old  # who has one that lives does not wait for its successor
        if not is_ours and failure is not None:
            # WeChat gave none before. One at a time goes to see whether it does again, and holds nobody else up.
            raise _again(failure)
        assert fetch is not None
        if not is_ours:
            return self._awaited(fetch, ends_at=ends_at)
        try:
            return self._fetch_for_all(
                app, kept, fetch, ends_at=now + (ends_at - now) * (_SHARE_OF_RENEWAL if lives else 1)
            )
        except WeChatError:
            if old is not None and lives:
                return old  # good to its end
            raise

    def _awaited(self, fetch: Future[LivingToken], *, ends_at: float) -> LivingToken:
        try:
            return fetch.result(max(0.0, ends_at - self._clock.monotonic()))
        except NotInTime:
            raise WeChatTimeout("there was no access token in time") from None
        except WeChatError as error:
            raise _again(error) from None

    def _fetch_for_all(self, app: App, kept: _Kept, fetch: Future[LivingToken], *, ends_at: float) -> LivingToken:
        try:
            token = self._renewed(app, kept, ends_at=ends_at)
        except BaseException as error:
            with self._lock:
                kept.fetch = None
                kept.failed_at = self._clock.monotonic()
                kept.failure = error if isinstance(error, WeChatError) else None
            fetch.set_exception(error)
            raise
        with self._lock:
            kept.fetch = kept.failure = None
            kept.token, kept.refused = token, None
        fetch.set_result(token)
        return token

    def _renewed(self, app: App, kept: _Kept, *, ends_at: float) -> LivingToken:
        while not self._is_fresh(shared := self._share.token(app.appid), kept):
            left_s = ends_at - self._clock.monotonic()
            if left_s <= 0:
                raise WeChatTimeout("there was no access token in time")
            end_claim = self._share.claim(app.appid, for_s=int(left_s) + _CLAIMED_LONGER_S)
            if end_claim is None:
                self._sleep(_LOOK_EVERY_S)
                continue
            try:
                # It may have come between our look and our claim.
                if not self._is_fresh(shared := self._share.token(app.appid), kept):
                    shared = self._fetched(app, kept, ends_at=ends_at)
                    self._share.put(app.appid, shared)
            finally:
                end_claim()
            break
        return shared

    def _fetched(self, app: App, kept: _Kept, *, ends_at: float) -> LivingToken:
        # Counted from before the call, so that it ends here no later than at WeChat.
        asked_at = self._clock.now()
        found = self._wechat.stable_access_token(app, ends_at=ends_at)
        if found.token == kept.refused:
            with self._lock:
                kept.confirmed, kept.confirmed_at = found.token, self._clock.monotonic()
        return LivingToken(found.token, asked_at + found.expires_in_s)

    def _refuse(self, app: App, token: LivingToken) -> None:
        with self._lock:
            kept = self._apps[app.appid]
            if kept.token != token:
                return  # another thread has a new one already
            if token.token == kept.confirmed and self._clock.monotonic() < kept.confirmed_at + _LEFT_AT_THAT_S:
                return  # asking again and again would use up the app's quota
            # Remembered, because the share still has it, and may be of no mind to change.
            kept.token, kept.refused = None, token.token

    def _is_fresh(self, token: LivingToken | None, kept: _Kept) -> TypeGuard[LivingToken]:
        if token is None or token.token == kept.refused:
            return False
        return self._clock.now() < token.expires_at - _RENEWED_BEFORE_END_S


@dataclass(slots=True)
class _Kept:
    token: LivingToken | None = None
    refused: str | None = field(default=None, repr=False)
    confirmed: str | None = field(default=None, repr=False)  # refused, given again, and not taken since
    confirmed_at: float = float("-inf")  # on the monotonic clock
    fetch: Future[LivingToken] | None = None  # under way
    failure: WeChatError | None = None  # of the last one
    failed_at: float = float("-inf")


def _again(error: WeChatError) -> WeChatError:
    """The same error once more: one object in many threads would gather the tracebacks of them all."""
    return copy.copy(error).with_traceback(None)
