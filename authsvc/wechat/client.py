"""WeChat's server API: each call that a login service makes, with every way it can fail named.

https://developers.weixin.qq.com/miniprogram/dev/server/API/
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import requests

from authsvc.errors import (
    AccessTokenRejected,
    BadRequest,
    CodeInvalid,
    CodeUsed,
    PhoneCodeInvalid,
    SessionKeyGone,
    UserBlocked,
    WeChatBadReply,
    WeChatBusy,
    WeChatError,
    WeChatMisconfigured,
    WeChatRateLimited,
    WeChatTimeout,
)
from authsvc.spans import NO_SPANS, Span, Spans
from authsvc.wechat.breaker import Breaker
from authsvc.wechat.opendata import SIG_METHOD, sign
from authsvc.wechat.replies import (
    IDENTIFIER,
    AccessToken,
    PhoneNumber,
    WeChatSession,
    read_access_token,
    read_members,
    read_phone_number,
    read_session,
    read_success,
)
from authsvc.wechat.transport import BrokenAnswer, Call, NoAnswer, NotConnected, forget_connections, send

# WeChat DevTools hands this out, to the letter, when it has no appid to log in with.
_MOCK_CODE: Final = "the code is a mock one"

# The second is "invalid credential", which is the secret where there is no access token yet.
_WRONG_SECRET: Final = frozenset({40125, 40001})

_BACKOFF_S: Final = 0.4  # half to one and a half of it between two calls of one host
_CONNECT_S: Final = 3.0

_CODE2SESSION: Final = "/sns/jscode2session"
_STABLE_TOKEN: Final = "/cgi-bin/stable_token"  # noqa: S105 - a path
_CHECK_SESSION: Final = "/wxa/checksession"
_RESET_SESSION_KEY: Final = "/wxa/resetusersessionkey"
_PHONE_NUMBER: Final = "/wxa/business/getuserphonenumber"

_Found = TypeVar("_Found")

Observe = Callable[[str, float | None, bool], None]
"""Gets WeChat's name of the call, the seconds that it took, or None if WeChat was not asked because it has been down
for a while, and whether it is taken for down now."""

_log = logging.getLogger("authsvc.wechat")


@dataclass(frozen=True, slots=True)
class App:
    """A mini-program. Two secrets while one is being reset at WeChat: the one that worked last is tried first."""

    appid: str
    secrets: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        # A plain text would be taken for a row of secrets of one character each.
        secrets: object = self.secrets
        if isinstance(secrets, str) or not secrets:
            raise TypeError("secrets is a tuple of texts, and not empty")


def check_code(code: str) -> None:
    """Raises: BadRequest unless the code is 1 to 128 of `0-9A-Za-z_-`. With anything else in it, it could change
    the URL that it is sent in."""
    if code == _MOCK_CODE:
        raise BadRequest(
            "WeChat DevTools made this code up: it has no real appid. Put the mini-program's own appid into "
            "project.config.json (a test account or a tourist appid cannot log in)"
        )
    if not IDENTIFIER.fullmatch(code):
        raise BadRequest("code is 1 to 128 characters of 0-9, A-Z, a-z, _ and -")


class WeChatClient:
    """WeChat's server API. Thread-safe; how many calls may wait at a time is for the caller to bound.

    A call is made at most twice, and the second time only where the first cannot have had any effect: there was no
    connection (then at the fallback host, if there is one), WeChat was busy (-1), or it did not take the first of two
    secrets. `ends_at`, on the clock `monotonic`, bounds everything that a call does; left out, `timeout_s` from now.
    Every call raises WeChatError: WeChatBusy at once after a while in which that very call met nothing but silence.
    """

    def __init__(
        self,
        session: requests.Session,
        *,
        url: str,
        fallback_url: str | None = None,
        timeout_s: float,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        observe: Observe | None = None,
        spans: Spans = NO_SPANS,
    ) -> None:
        """`session` is one of `transport.new_session`. `observe` is told of every call; `spans` has one of every
        HTTP request."""
        self._session = session
        self._url = url
        self._fallback_url = fallback_url
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._monotonic = monotonic
        self._jitter = jitter
        self._observe = observe
        self._spans = spans
        # One for each path: what is wrong with the calls that need an access_token must not stop a login.
        self._breakers = {
            path: Breaker(_name(path), down_for_s=2 * timeout_s, monotonic=monotonic)
            for path in (_CODE2SESSION, _STABLE_TOKEN, _CHECK_SESSION, _RESET_SESSION_KEY, _PHONE_NUMBER)
        }
        self._health = "untried"
        self._works_second: set[str] = set()  # appids whose first secret WeChat does not take
        self._lock = threading.Lock()

    @property
    def health(self) -> str:
        """How the last exchange of a login code went: "untried", "ok" (also when WeChat refused the code), or the
        error's code."""
        return self._health

    def code2session(self, app: App, code: str, *, ends_at: float | None = None) -> WeChatSession:
        """auth.code2Session: exchange a code of wx.login, which WeChat takes once.

        Raises: BadRequest for a code that is none; CodeInvalid, CodeUsed, UserBlocked, WeChatRateLimited.
        """
        check_code(code)

        def call(url: str, secret: str) -> Call:
            query = {"appid": app.appid, "secret": secret, "js_code": code, "grant_type": "authorization_code"}
            return Call(url, query)

        try:
            who = self._ask_as(app, _CODE2SESSION, call, read_session, ends_at=ends_at)
        except (CodeInvalid, CodeUsed, UserBlocked, WeChatRateLimited):
            self._health = "ok"  # an answer about the user is an answer
            raise
        except WeChatError as error:
            self._health = error.code
            raise
        self._health = "ok"
        return who

    def stable_access_token(self, app: App, *, ends_at: float | None = None) -> AccessToken:
        """getStableAccessToken: the app's access_token, the same for everybody who asks until shortly before its end.

        https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken
        Raises: WeChatMisconfigured if WeChat does not take appid, secret or address.
        """

        def call(url: str, secret: str) -> Call:
            # Never force_refresh: it is for leaks, and kills the token that others use.
            members = {"grant_type": "client_credential", "appid": app.appid, "secret": secret, "force_refresh": False}
            return Call(url, members=members)

        try:
            return self._ask_as(app, _STABLE_TOKEN, call, read_access_token, ends_at=ends_at)
        except AccessTokenRejected as error:
            raise _as(WeChatMisconfigured("WeChat does not accept the app secret"), error) from None
        except WeChatRateLimited as error:
            raise _as(WeChatBusy("the app asks for access tokens too often"), error) from None

    def check_session_key(
        self, access_token: str, openid: str, session_key: str, *, ends_at: float | None = None
    ) -> bool:
        """checkSessionKey: whether this is the session_key that WeChat has of the user, and not ended.

        https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_checksessionkey
        Raises: AccessTokenRejected.
        """
        signed = _signed(openid, session_key)
        try:
            self._ask_with(_CHECK_SESSION, access_token, signed, read_success, ends_at=ends_at)
        except SessionKeyGone:
            return False
        return True

    def reset_user_session_key(
        self, access_token: str, openid: str, session_key: str, *, ends_at: float | None = None
    ) -> WeChatSession:
        """ResetUserSessionKey: a new session_key for the user; the one given dies at once, its life is inherited.

        https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_resetusersessionkey
        Raises: AccessTokenRejected; SessionKeyGone if the one given is not the user's any more.
        """
        signed = _signed(openid, session_key)
        renewed = self._ask_with(_RESET_SESSION_KEY, access_token, signed, read_session, ends_at=ends_at)
        if renewed.openid != openid:
            raise WeChatBadReply("the session_key is one of another user")
        return renewed

    def phone_number(
        self, access_token: str, code: str, *, appid: str, openid: str, ends_at: float | None = None
    ) -> PhoneNumber:
        """getPhoneNumber: the number behind the code of a phone number button, which WeChat takes once.

        The openid goes along, so that nobody gets the number of another user's code.
        https://developers.weixin.qq.com/miniprogram/dev/server/API/user-info/phone-number/api_getphonenumber
        Raises: BadRequest for a code that is none; AccessTokenRejected, PhoneCodeInvalid.
        """
        if not IDENTIFIER.fullmatch(code):
            raise BadRequest("code is 1 to 128 characters of 0-9, A-Z, a-z, _ and -")
        members = {"code": code, "openid": openid}

        def read(answer: Mapping[str, Any]) -> PhoneNumber:
            return read_phone_number(answer, appid=appid)

        try:
            return self._ask_with(_PHONE_NUMBER, access_token, {}, read, members=members, ends_at=ends_at)
        except (CodeInvalid, CodeUsed) as error:
            meaning = "the code is expired, used, another user's, or one of wx.login and not of the phone number button"
            raise _as(PhoneCodeInvalid(meaning), error) from None

    def _ask_as(
        self,
        app: App,
        path: str,
        call: Callable[[str, str], Call],
        read: Callable[[Mapping[str, Any]], _Found],
        *,
        ends_at: float | None,
    ) -> _Found:
        """With the secrets of an app, the one first that worked last: a login has no call to spare for the other."""
        second_first = app.appid in self._works_second and len(app.secrets) > 1
        secrets = app.secrets[::-1] if second_first else app.secrets
        used = []

        def noted(url: str, secret: str) -> Call:
            used.append(secret)
            return call(url, secret)

        found = self._ask(path, secrets, noted, read, ends_at=ends_at)
        if used[-1] != secrets[0]:
            self._note_other_secret(app, is_second=not second_first)
        return found

    def _note_other_secret(self, app: App, *, is_second: bool) -> None:
        with self._lock:
            if (app.appid in self._works_second) is is_second:
                return
            (self._works_second.add if is_second else self._works_second.discard)(app.appid)
        works, refused = ("second", "first") if is_second else ("first", "second")
        _log.warning(
            "of the two secrets of %s WeChat does not take the %s any more; the %s works", app.appid, refused, works
        )

    def _ask_with(
        self,
        path: str,
        access_token: str,
        query: Mapping[str, str],
        read: Callable[[Mapping[str, Any]], _Found],
        *,
        members: Mapping[str, object] | None = None,
        ends_at: float | None,
    ) -> _Found:
        def call(url: str, token: str) -> Call:
            return Call(url, {"access_token": token, **query}, members)

        return self._ask(path, (access_token,), call, read, ends_at=ends_at)

    def _ask(
        self,
        path: str,
        credentials: tuple[str, ...],
        call: Callable[[str, str], Call],
        read: Callable[[Mapping[str, Any]], _Found],
        *,
        ends_at: float | None,
    ) -> _Found:
        ends_at = self._monotonic() + self._timeout_s if ends_at is None else ends_at
        try:
            return self._asked(path, credentials, call, read, ends_at=ends_at)
        except WeChatError as error:
            error.call = _name(path)
            raise

    def _asked(
        self,
        path: str,
        credentials: tuple[str, ...],
        call: Callable[[str, str], Call],
        read: Callable[[Mapping[str, Any]], _Found],
        *,
        ends_at: float,
    ) -> _Found:
        if ends_at <= self._monotonic():
            # Before the breaker: WeChat was not asked.
            raise WeChatTimeout("there was no time left to ask WeChat")

        def once(host: str, credential: str) -> _Found:
            return self._answer(call(host + path, credential), read, ends_at=ends_at)

        with self._watched(path):
            # A second call only where the first cannot have had an effect. A silence after the request was sent is not
            # among these: the same code again would come back as used.
            host, credential = self._url, credentials[0]
            try:
                return once(host, credential)
            except _NoConnection:
                if self._fallback_url is None:
                    self._pause(ends_at)
                else:
                    host = self._fallback_url
            except WeChatBusy:
                self._pause(ends_at)
            except (WeChatMisconfigured, AccessTokenRejected) as error:
                # While a secret is being reset, old and new work for some minutes, and then only the new one.
                if error.errcode not in _WRONG_SECRET or len(credentials) == 1:
                    raise
                credential = credentials[1]
            return once(host, credential)

    @contextmanager
    def _watched(self, path: str) -> Iterator[None]:
        """Around one call of WeChat: the breaker, and whoever observes."""
        breaker, asked_at = self._breakers[path], None
        try:
            with breaker.guarded():
                asked_at = self._monotonic()
                yield
        finally:
            if self._observe is not None:
                took_s = None if asked_at is None else self._monotonic() - asked_at
                self._observe(_name(path), took_s, breaker.is_open)

    def _pause(self, ends_at: float) -> None:
        self._sleep(min(_BACKOFF_S * (0.5 + self._jitter()), max(0.0, ends_at - self._monotonic()) / 2))

    def _answer(self, call: Call, read: Callable[[Mapping[str, Any]], _Found], *, ends_at: float) -> _Found:
        with self._spans.span(f"{call.method} {call.path}", "client", _attributes(call)) as span:
            try:
                return self._answered(call, read, span, ends_at=ends_at)
            except WeChatError as error:
                if error.errcode is not None:
                    span.note("wechat.errcode", error.errcode)
                span.fail(error.code)
                raise

    def _answered(
        self, call: Call, read: Callable[[Mapping[str, Any]], _Found], span: Span, *, ends_at: float
    ) -> _Found:
        left_s = ends_at - self._monotonic()
        if left_s <= 0:
            raise WeChatTimeout("WeChat did not answer in time")
        # A first connection gets half of the time at most, so that the fallback host has the other half.
        connect_s = min(_CONNECT_S, self._timeout_s / 2, left_s)
        try:
            answer = send(self._session, call, timeout_s=left_s, connect_s=connect_s)
        except NotConnected as error:
            raise _NoConnection(str(error)) from None
        except NoAnswer as error:
            raise WeChatTimeout(str(error)) from None
        except BrokenAnswer as error:
            raise WeChatBadReply(str(error)) from None
        span.note("http.response.status_code", answer.status)
        try:
            return read(read_members(answer))
        except WeChatBadReply:
            forget_connections(self._session)
            raise


class _NoConnection(WeChatTimeout):
    """The request was never sent."""


def _attributes(call: Call) -> dict[str, str | int]:
    """By OpenTelemetry's conventions for HTTP, but for the query, which has the secrets in it."""
    return {"http.request.method": call.method, "server.address": call.host, "url.path": call.path}


def _name(path: str) -> str:
    """As logs have it: the last part of the path."""
    return path.rsplit("/", 1)[1]


def _as(other: WeChatError, error: WeChatError) -> WeChatError:
    """The other error, with what WeChat said."""
    other.errcode, other.rid, other.call, other.seen_address = (
        error.errcode,
        error.rid,
        error.call,
        error.seen_address,
    )
    return other


def _signed(openid: str, session_key: str) -> dict[str, str]:
    # The signature covers the body, so there is none: even "{}" would come back as 87009.
    return {"openid": openid, "signature": sign("", session_key), "sig_method": SIG_METHOD}
