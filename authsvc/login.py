"""The one use-case of the service: a code of wx.login in, a signed token out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from authsvc.claims import Claims
from authsvc.clock import Clock
from authsvc.encoding import base64url_encode
from authsvc.errors import BadRequest
from authsvc.keyring import Keyring
from authsvc.sealing import Place, open_sealed, seal, sealing_key_id
from authsvc.store import LoginRow, Store
from authsvc.tokens import sign_token
from authsvc.wechat import App, WeChatSession

_ID_BYTES: Final = 16  # 128 random bits: jti and sid are never guessed and never meet (RFC 7519, 4.1.7)


class CodeExchange(Protocol):
    """What of WeChat a login needs."""

    def code2session(self, app: App, code: str) -> WeChatSession:
        """Raises: BadRequest, WeChatError."""


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
        keys: Callable[[], Keyring],
        terms: TokenTerms,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._apps = apps
        self._wechat = wechat
        self._store = store
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

    def log_in(self, app: App, code: str) -> LoggedIn:
        """Raises: BadRequest, WeChatError, UserBanned, StoreUnavailable. No token is given with any."""
        # By the start and not the end: of two logins that race, the later start has the later session_key.
        started_at_us = self._clock.now_us()
        who = self._wechat.code2session(app, code)
        now = self._clock.now()
        keyring = self._keys()
        sid = self._random_id()
        self._keep(app, who, sid, keyring, started_at_us=started_at_us, now=now)
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

    def _keep(self, app: App, who: WeChatSession, sid: str, keyring: Keyring, *, started_at_us: int, now: int) -> None:
        expires_at = now + self._terms.session_key_ttl_s
        sealed = seal(
            who.session_key.encode("ascii"),
            keyring.sealing_key(now=now),
            Place("logins", app.appid, who.openid, sid, expires_at),
            random_bytes=self._random_bytes,
        )
        row = LoginRow(app.appid, who.openid, sid, sealed, started_at_us, created_at=now, expires_at=expires_at)
        self._store.put_login(row, unionid=who.unionid)

    def _random_id(self) -> str:
        return base64url_encode(self._random_bytes(_ID_BYTES))


def kept_session_key(row: LoginRow, keyring: Keyring, *, now: int) -> str:
    """The session_key of a stored login. Raises: SealBroken if the row is not as it was written."""
    key = keyring.opening_key(sealing_key_id(row.sealed_session_key), now=now)
    place = Place("logins", row.appid, row.openid, row.sid, row.expires_at)
    return open_sealed(row.sealed_session_key, key, place).decode("ascii")
