"""The HTTP app over fakes, in this process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import TypeVar

from flask.testing import FlaskClient

from authsvc.claims import Policy
from authsvc.codes import Codes
from authsvc.errors import BadRequest, SessionKeyGone
from authsvc.failures import Failures
from authsvc.http.app import create_app
from authsvc.http.limits import LoginLimit
from authsvc.http.metrics import Metrics
from authsvc.http.services import AccessLog, Services, UsersAtWork
from authsvc.keyring import Keyring
from authsvc.login import LoggedIn, Login, TokenTerms
from authsvc.session import Session
from authsvc.spans import NO_SPANS, Spans
from authsvc.store import Store, UserId
from authsvc.store.memory import MemoryStore
from authsvc.users import Users
from authsvc.verifier import Verifier
from authsvc.wechat import App, PhoneNumber, WeChatSession, check_code
from authsvc.wechat.replies import IDENTIFIER
from tests.support.clock import NOW, FakeClock
from tests.support.document import DocumentedClient
from tests.support.keys import AUDIENCE, ISSUER, keyring

APPID = "wx1234567890abcdef"
SESSION_KEY = "tiihtNczf5v6AKRyjwEUhQ=="
OPS_TOKEN = "ops-token-of-an-operator"
SERVICE_TOKEN = "service-token-of-a-back-end"
CODE = "0712cDoV0cfty22AeloV0daMoV02cDog"

_Found = TypeVar("_Found")


@dataclass
class FakeWeChat:
    """Says the same of every code, and of every session_key, or fails as it is told to."""

    answer: WeChatSession | Exception = field(default_factory=lambda: WeChatSession("oABC-def_123", SESSION_KEY))
    health: str = "untried"
    meanwhile: Callable[[], object] = lambda: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    takes_key: bool = True
    new_session_key: str = "bmV3IHNlc3Npb24ga2V5IQ=="
    failure: Exception | None = None  # of the calls that need an access token
    asked_with: list[tuple[str, str, str]] = field(default_factory=list)

    def code2session(self, app: App, code: str) -> WeChatSession:
        check_code(code)
        self.asked.append((app.appid, code))
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def check_session_key(
        self, access_token: str, openid: str, session_key: str, *, ends_at: float | None = None
    ) -> bool:
        self.asked_with.append((access_token, openid, session_key))
        self._fail_as_told()
        return self.takes_key

    def reset_user_session_key(
        self, access_token: str, openid: str, session_key: str, *, ends_at: float | None = None
    ) -> WeChatSession:
        self.asked_with.append((access_token, openid, session_key))
        self._fail_as_told()
        if not self.takes_key:
            raise SessionKeyGone("another one", errcode=87009)
        return WeChatSession(openid, self.new_session_key)

    def phone_number(
        self, access_token: str, code: str, *, appid: str, openid: str, ends_at: float | None = None
    ) -> PhoneNumber:
        if not IDENTIFIER.fullmatch(code):
            raise BadRequest("code is none")
        self.asked_with.append((access_token, openid, code))
        self._fail_as_told()
        return PhoneNumber("+8613800138000", "13800138000", "86", NOW)

    def _fail_as_told(self) -> None:
        if self.failure is not None:
            raise self.failure


class LentToken:
    """An access token for whoever asks."""

    def use(self, app: App, call: Callable[[str, float], _Found]) -> _Found:
        return call(f"access-token-of-{app.appid}", 0.0)


@dataclass
class FakeService:
    """What a test reaches into."""

    clock: FakeClock = field(default_factory=FakeClock)
    wechat: FakeWeChat = field(default_factory=FakeWeChat)
    store: Store = field(default_factory=MemoryStore)
    ring: Keyring = field(default_factory=keyring)
    appids: tuple[str, ...] = (APPID,)
    typ: str = "at+jwt"
    with_unionid: bool = False
    hashed: bool = False
    access_log: AccessLog = "all"
    fast_lane: bool = False
    places: int = 4
    call_places: int = 2
    work_places: int = 2
    users_at_work: UsersAtWork = field(default_factory=UsersAtWork)
    service_tokens: tuple[str, ...] = (SERVICE_TOKEN,)
    trusted_proxies: int = 0
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    keys_are_current: bool = True
    login_limit: LoginLimit | None = None
    metrics: Metrics | None = None  # made unless `with_metrics` is off
    with_metrics: bool = True
    spans: Spans = NO_SPANS

    def __post_init__(self) -> None:
        if self.with_metrics:
            self.metrics = Metrics(None, keys=lambda: self.ring, rotate_every_s=1_000, clock=self.clock)

    @property
    def users(self) -> Users:
        return Users(keys=lambda: self.ring, hashed=self.hashed)

    def user(self, openid: str, *, appid: str = APPID) -> UserId:
        return self.users.user(appid, openid)

    def client(self) -> FlaskClient:
        terms = TokenTerms(ISSUER, AUDIENCE, self.typ, 7200, 259_200, self.with_unionid)
        apps = {appid: App(appid, ("secret",)) for appid in self.appids}
        login = Login(
            apps=apps,
            wechat=self.wechat,
            store=self.store,
            users=self.users,
            keys=lambda: self.ring,
            codes=Codes[LoggedIn](wait_s=10, monotonic=self.clock.monotonic),
            terms=terms,
            clock=self.clock,
            random_bytes=os.urandom,
        )
        session = Session(
            apps=apps,
            wechat=self.wechat,
            access_tokens=LentToken(),
            store=self.store,
            users=self.users,
            keys=lambda: self.ring,
            decrypt_window_s=600,
            failures=Failures(monotonic=self.clock.monotonic),
            clock=self.clock,
            random_bytes=os.urandom,
        )
        services = Services(
            login=login,
            session=session,
            verifier=Verifier(self.ring, Policy(ISSUER, AUDIENCE), clock=self.clock),
            keys=lambda: self.ring,
            keys_are_current=lambda: self.keys_are_current,
            store=self.store,
            wechat=self.wechat,
            places=BoundedSemaphore(self.places),
            call_places=BoundedSemaphore(self.call_places),
            users_at_work=self.users_at_work,
            work_places=BoundedSemaphore(self.work_places),
            service_token_digests=tuple(hashlib.sha256(text.encode()).digest() for text in self.service_tokens),
            trusted_proxies=self.trusted_proxies,
            issuer=ISSUER,
            hosts=self.hosts,
            cors_origins=self.cors_origins,
            clock=self.clock,
            access_log=self.access_log,
            fast_lane=self.fast_lane,
            login_limit=self.login_limit,
            ops_token_digest=None if self.metrics is None else hashlib.sha256(OPS_TOKEN.encode()).digest(),
            metrics=self.metrics,
            spans=self.spans,
        )
        app = create_app(services)
        app.test_client_class = DocumentedClient
        return app.test_client()
