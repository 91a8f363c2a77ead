"""The HTTP app over fakes, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import BoundedSemaphore

from flask.testing import FlaskClient

from authsvc.claims import Policy
from authsvc.http.app import create_app
from authsvc.http.services import AccessLog, Services
from authsvc.keyring import Keyring
from authsvc.login import Login, TokenTerms
from authsvc.store import Store
from authsvc.store.memory import MemoryStore
from authsvc.verifier import Verifier
from authsvc.wechat import App, WeChatSession, check_code
from tests.support.clock import FakeClock
from tests.support.keys import AUDIENCE, ISSUER, keyring

APPID = "wx1234567890abcdef"
SESSION_KEY = "tiihtNczf5v6AKRyjwEUhQ=="


@dataclass
class FakeWeChat:
    """Says the same of every code, or fails as it is told to."""

    answer: WeChatSession | Exception = field(default_factory=lambda: WeChatSession("oABC-def_123", SESSION_KEY))
    health: str = "untried"
    meanwhile: Callable[[], object] = lambda: None
    asked: list[tuple[str, str]] = field(default_factory=list)

    def code2session(self, app: App, code: str) -> WeChatSession:
        check_code(code)
        self.asked.append((app.appid, code))
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


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
    access_log: AccessLog = "all"
    places: int = 4
    keys_are_current: bool = True

    def client(self) -> FlaskClient:
        terms = TokenTerms(ISSUER, AUDIENCE, self.typ, 7200, 259_200, self.with_unionid)
        login = Login(
            apps={appid: App(appid, ("secret",)) for appid in self.appids},
            wechat=self.wechat,
            store=self.store,
            keys=lambda: self.ring,
            terms=terms,
            clock=self.clock,
            random_bytes=os.urandom,
        )
        services = Services(
            login=login,
            verifier=Verifier(self.ring, Policy(ISSUER, AUDIENCE), clock=self.clock),
            keys=lambda: self.ring,
            keys_are_current=lambda: self.keys_are_current,
            store=self.store,
            wechat=self.wechat,
            places=BoundedSemaphore(self.places),
            issuer=ISSUER,
            clock=self.clock,
            access_log=self.access_log,
        )
        return create_app(services).test_client()
