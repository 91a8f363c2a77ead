"""The exchange of a login code for the user behind it: WeChat's auth.code2Session.

https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import requests

from authsvc.encoding import NotCanonical, base64_decode, parse_json_object
from authsvc.errors import (
    BadRequest,
    CodeInvalid,
    CodeUsed,
    UserBlocked,
    WeChatBadReply,
    WeChatBusy,
    WeChatError,
    WeChatMisconfigured,
    WeChatRateLimited,
    WeChatTimeout,
)
from authsvc.wechat.errcodes import error_of
from authsvc.wechat.transport import Answer, BrokenAnswer, NoAnswer, NotConnected, forget_connections, get

# WeChat DevTools hands this out, to the letter, when it has no appid to log in with.
_MOCK_CODE: Final = "the code is a mock one"

_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z_-]{1,128}")  # a code, an openid, a unionid
_ERRCODE: Final = re.compile(r"-?[0-9]{1,9}")
_INVALID_SECRET: Final = 40125
_SESSION_KEY_BYTES: Final = 16

_BACKOFF_S: Final = 0.4  # half to one and a half of it between two calls
_CONNECT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class App:
    """A mini-program. Two secrets while one is being reset at WeChat; the first is tried first."""

    appid: str
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class WeChatSession:
    """What WeChat says of a code. The session_key is base64 of 16 bytes; it never leaves the service."""

    openid: str
    session_key: str = field(repr=False)
    unionid: str | None = None


def check_code(code: str) -> None:
    """Raises: BadRequest unless the code is 1 to 128 of `0-9A-Za-z_-`. With anything else in it, it could change
    the URL that it is sent in."""
    if code == _MOCK_CODE:
        raise BadRequest(
            "WeChat DevTools made this code up: it has no real appid. Put the mini-program's own appid into "
            "project.config.json (a test account or a tourist appid cannot log in)"
        )
    if not _IDENTIFIER.fullmatch(code):
        raise BadRequest("code is 1 to 128 characters of 0-9, A-Z, a-z, _ and -")


class WeChatClient:
    """WeChat's server API. Thread-safe; how many calls may wait at a time is for the caller to bound."""

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
    ) -> None:
        """`session` is one of `transport.new_session`; `timeout_s` bounds a login, retry and waiting included."""
        self._session = session
        self._url = url
        self._fallback_url = fallback_url or url
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._monotonic = monotonic
        self._jitter = jitter
        self._health = "untried"

    @property
    def health(self) -> str:
        """How the last exchange went: "untried", "ok" (also when WeChat refused the code), or the error's code."""
        return self._health

    def code2session(self, app: App, code: str) -> WeChatSession:
        """Exchange a code of wx.login, which WeChat takes once. At most two calls.

        Raises: BadRequest for a code that is none, WeChatError.
        """
        check_code(code)
        try:
            who = self._exchange(app, code, ends_at=self._monotonic() + self._timeout_s)
        except (CodeInvalid, CodeUsed, UserBlocked, WeChatRateLimited):
            self._health = "ok"  # an answer about the user is an answer
            raise
        except WeChatError as error:
            self._health = error.code
            raise
        self._health = "ok"
        return who

    def _exchange(self, app: App, code: str, *, ends_at: float) -> WeChatSession:
        # A second call only where the code cannot have been used by the first. A silence after the request was sent
        # is not among these: the same code again would come back as used.
        url, secret = self._url, app.secrets[0]
        try:
            return self._call(url, app.appid, secret, code, ends_at=ends_at)
        except _NoConnection:
            url = self._fallback_url
        except WeChatBusy:
            self._sleep(min(_BACKOFF_S * (0.5 + self._jitter()), max(0.0, ends_at - self._monotonic()) / 2))
        except WeChatMisconfigured as error:
            # While a secret is being reset, old and new work for some minutes, and then only the new one.
            if error.errcode != _INVALID_SECRET or len(app.secrets) == 1:
                raise
            secret = app.secrets[1]
        return self._call(url, app.appid, secret, code, ends_at=ends_at)

    def _call(self, url: str, appid: str, secret: str, code: str, *, ends_at: float) -> WeChatSession:
        left_s = ends_at - self._monotonic()
        if left_s <= 0:
            raise WeChatTimeout("WeChat did not answer in time")
        query = {"appid": appid, "secret": secret, "js_code": code, "grant_type": "authorization_code"}
        # A first connection gets half of the time at most, so that the fallback host has the other half.
        connect_s = min(_CONNECT_S, self._timeout_s / 2, left_s)
        try:
            answer = get(self._session, f"{url}/sns/jscode2session", query, timeout_s=left_s, connect_s=connect_s)
        except NotConnected as error:
            raise _NoConnection(str(error)) from None
        except NoAnswer as error:
            raise WeChatTimeout(str(error)) from None
        except BrokenAnswer as error:
            raise WeChatBadReply(str(error)) from None
        try:
            return _parse(answer)
        except WeChatBadReply:
            forget_connections(self._session)
            raise


class _NoConnection(WeChatTimeout):
    """The request was never sent."""


def _parse(answer: Answer) -> WeChatSession:
    if answer.status != 200:
        raise WeChatBadReply(f"HTTP status {answer.status}")
    try:
        # From bytes, as UTF-8: WeChat says text/plain, which requests takes for ISO-8859-1.
        reply = parse_json_object(answer.body, control_characters=True)
    except NotCanonical as error:
        raise WeChatBadReply(str(error)) from None
    errcode = _errcode(reply.get("errcode", 0))
    if errcode != 0:
        raise error_of(errcode, reply.get("errmsg"))
    return WeChatSession(
        openid=_identifier(reply.get("openid"), "openid"),
        session_key=_session_key(reply.get("session_key")),
        # Only for apps that are bound to an Open Platform account; null and "" have been seen for the others.
        unionid=_identifier(reply["unionid"], "unionid") if reply.get("unionid") else None,
    )


def _errcode(value: object) -> int:
    # A number, or, on some of WeChat's pages and hosts, its digits as a text. bool is an int to isinstance.
    if type(value) is int and abs(value) < 10**9:
        return value
    if type(value) is str and _ERRCODE.fullmatch(value):
        return int(value)
    raise WeChatBadReply("errcode is no number")


def _identifier(value: object, name: str) -> str:
    if type(value) is not str or not _IDENTIFIER.fullmatch(value):
        raise WeChatBadReply(f"{name} is not 1 to 128 characters of 0-9, A-Z, a-z, _ and -")
    return value


def _session_key(value: object) -> str:
    try:
        if type(value) is str and len(base64_decode(value)) == _SESSION_KEY_BYTES:
            return value
    except NotCanonical:
        pass  # the answer below, which does not quote it
    raise WeChatBadReply("session_key is not base64 of 16 bytes")
