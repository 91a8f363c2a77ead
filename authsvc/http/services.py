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
    verifier: Verifier
    keys: Callable[[], Keyring]
    keys_are_current: Callable[[], bool]
    store: Store
    wechat: WeChatHealth
    places: BoundedSemaphore
    issuer: str
    clock: Clock
    access_log: AccessLog


def install_services(app: Flask, services: Services) -> None:
    app.extensions[_NAME] = services


def services() -> Services:
    found: Services = current_app.extensions[_NAME]
    return found


_NAME: Final = "authsvc"
