"""The use-case that the service is for: a code of wx.login in, a signed token out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from authsvc.claims import Claims
from authsvc.clock import Clock
from authsvc.codes import Codes, LoginCode
from authsvc.encoding import base64url_encode
from authsvc.errors import BadRequest, CodeInvalid, CodeUsed
from authsvc.keyring import Keyring
from authsvc.sessionkeys import sealed_login
from authsvc.store import Store
from authsvc.tokens import sign_token
from authsvc.users import Users
from authsvc.wechat import App, WeChatSession

_ID_BYTES: Final = 16  # 128 random bits: jti and sid are never guessed and never meet (RFC 7519, 4.1.7)


class CodeExchange(Protocol):
    """What of WeChat a login needs."""

    def code2session(self, app: App, code: str) -> WeChatSession:
        """Raises: BadRequest, WeChatError."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a code, as far as that can be told. None of it proves anything."""

    address: str
    appid: str | None = None  # of the mini-program that the Referer names


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What every token of this service says. Seconds."""

    issuer: str
    audience: str
    typ: str
    token_ttl_s: int
    session_key_ttl_s: int
    with_unionid: bool


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """`user` stands for the openid in logs."""

    token: str = field(repr=False)
    expires_in_s: int
    user: str


class Login:
    """Exchanges codes for tokens. Thread-safe."""

    def __init__(
        self,
        *,
        apps: Mapping[str, App],
        wechat: CodeExchange,
        store: Store,
        users: Users,
        keys: Callable[[], Keyring],
        codes: Codes[LoggedIn],
        terms: TokenTerms,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._apps = apps
        self._wechat = wechat
        self._codes = codes
        self._store = store
        self._users = users
        self._keys = keys
        self._terms = terms
        self._clock = clock
        self._random_bytes = random_bytes

    def app(self, appid: str | None) -> App:
        """The app that a request means. Raises: BadRequest; with several apps none is ever assumed."""
        if appid is None:
            if len(self._apps) != 1:
                raise BadRequest("appid is required: this service serves several apps")
            return next(iter(self._apps.values()))
        if appid not in self._apps:
            raise BadRequest("appid is not one of this service")
        return self._apps[appid]

    def log_in(self, app: App, code: str, caller: Caller) -> LoggedIn:
        """Raises: BadRequest, WeChatError, UserBanned, StoreUnavailable. No token is given with any."""
        # By the start and not the end: of two logins that race, the later start has the later session_key.
        started_at_us = self._clock.now_us()
        known_as = LoginCode.of(app.appid, code)
        try:
            return self._codes.once(
                known_as, caller.address, lambda: self._exchange(app, code, known_as, started_at_us=started_at_us)
            )
        except CodeInvalid as error:
            if caller.appid in (None, app.appid):
                raise
            mend = "send it as `appid`" if caller.appid in self._apps else "one of the two is configured wrongly"
            other = CodeInvalid(
                f"the code comes from the mini-program {caller.appid} (by its Referer), and WeChat was asked for "
                f"{app.appid}: {mend}",
                errcode=error.errcode,
                rid=error.rid,
            )
            other.call = error.call
            raise other from None

    def _exchange(self, app: App, code: str, known_as: LoginCode, *, started_at_us: int) -> LoggedIn:
        try:
            who = self._wechat.code2session(app, code)
        except CodeUsed:
            self._codes.note_used(known_as)
            raise
        self._codes.note_used(known_as)
        now = self._clock.now()
        keyring = self._keys()
        sid = self._random_id()
        row = sealed_login(
            who.session_key,
            keyring,
            user=self._users.user(app.appid, who.openid),
            sid=sid,
            started_at_us=started_at_us,
            created_at=now,
            expires_at=now + self._terms.session_key_ttl_s,
            now=now,
            random_bytes=self._random_bytes,
        )
        self._store.put_login(row, unionid=who.unionid)
        claims = Claims(
            issuer=self._terms.issuer,
            audience=self._terms.audience,
            openid=who.openid,
            appid=app.appid,
            issued_at=now,
            expires_at=now + self._terms.token_ttl_s,
            auth_time=now,
            jti=self._random_id(),
            sid=sid,
            unionid=who.unionid if self._terms.with_unionid else None,
        )
        token = sign_token(claims, keyring.signing_key(now=now), typ=self._terms.typ)
        return LoggedIn(token, self._terms.token_ttl_s, keyring.pseudonym(app.appid, who.openid))

    def _random_id(self) -> str:
        return base64url_encode(self._random_bytes(_ID_BYTES))
