"""What the views use. Built once by the wiring, handed to the app factory, reached through `services()`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Final, Literal, Protocol

from flask import Flask, current_app

from authsvc.clock import Clock
from authsvc.http.limits import LoginLimit
from authsvc.keyring import Keyring
from authsvc.login import Login
from authsvc.session import Session
from authsvc.spans import Spans
from authsvc.store import Store
from authsvc.verifier import Verifier

if TYPE_CHECKING:  # who imports it decides where prometheus-client counts
    from authsvc.http.metrics import Metrics

AccessLog = Literal["all", "login", "none"]


class WeChatHealth(Protocol):
    @property
    def health(self) -> str:
        """How the last exchange went: "untried", "ok", or the code of the error."""


class UsersAtWork:
    """How many requests of each user are under way. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def begin(self, appid: str, openid: str) -> bool:
        """Count one more, unless there are as many as one user may have."""
        with self._lock:
            if self._counts[appid, openid] >= _MOST_OF_A_USER:
                return False
            self._counts[appid, openid] += 1
            return True

    def end(self, appid: str, openid: str) -> None:
        with self._lock:
            self._counts[appid, openid] -= 1
            if not self._counts[appid, openid]:
                del self._counts[appid, openid]


# A mini-program decrypts one thing at a time.
_MOST_OF_A_USER: Final = 4


@dataclass(frozen=True, slots=True)
class Services:
    login: Login
    session: Session
    verifier: Verifier
    keys: Callable[[], Keyring]
    keys_are_current: Callable[[], bool]
    store: Store
    wechat: WeChatHealth
    places: BoundedSemaphore  # for requests that wait for WeChat
    call_places: BoundedSemaphore  # those of them that are no logins
    users_at_work: UsersAtWork
    work_places: BoundedSemaphore  # for those that wait for the store alone
    service_token_digests: tuple[bytes, ...]  # SHA-256
    trusted_proxies: int
    issuer: str
    hosts: tuple[str, ...]  # names besides the issuer's
    cors_origins: tuple[str, ...]
    clock: Clock
    access_log: AccessLog
    fast_lane: bool
    login_limit: LoginLimit | None
    ops_token_digest: bytes | None  # SHA-256
    metrics: Metrics | None
    spans: Spans


def install_services(app: Flask, services: Services) -> None:
    app.extensions[_NAME] = services


def services() -> Services:
    """Those of the app that is at work."""
    return services_of(current_app)


def services_of(app: Flask) -> Services:
    found: Services = app.extensions[_NAME]
    return found


_NAME: Final = "authsvc"
