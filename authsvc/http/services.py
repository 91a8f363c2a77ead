"""What the views use. Built once by the wiring, handed to the app factory, reached through `services()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Final, Literal, Protocol

from flask import Flask, current_app

from authsvc.clock import Clock
from authsvc.keyring import Keyring
from authsvc.login import Login
from authsvc.session import Session
from authsvc.store import Store
from authsvc.verifier import Verifier

AccessLog = Literal["all", "login", "none"]


class WeChatHealth(Protocol):
    @property
    def health(self) -> str:
        """How the last exchange went: "untried", "ok", or the code of the error."""


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
    work_places: BoundedSemaphore  # for those that have work to do here, and may be sent slowly
    service_token_digests: tuple[bytes, ...]  # SHA-256
    trusted_proxies: int
    issuer: str
    clock: Clock
    access_log: AccessLog


def install_services(app: Flask, services: Services) -> None:
    app.extensions[_NAME] = services


def services() -> Services:
    found: Services = current_app.extensions[_NAME]
    return found


_NAME: Final = "authsvc"
