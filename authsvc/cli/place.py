"""Where an operator's command works: the settings, the keys and the side store of the service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from authsvc.cli.shared import DOTENV
from authsvc.clock import SystemClock
from authsvc.errors import StoreUnavailable
from authsvc.keyring import Keyring
from authsvc.settings import SANDBOX_FOLDER, OperatorSettings, load_operator_settings
from authsvc.store import Store, check_store, open_store, store_address
from authsvc.users import Users, check_owner
from authsvc.wiring import open_keys


@dataclass(frozen=True, slots=True)
class Place:
    settings: OperatorSettings
    keyring: Keyring
    store: Store
    users: Users


def operator_settings() -> OperatorSettings:
    return load_operator_settings(os.environ, dotenv=DOTENV)


@contextmanager
def place() -> Iterator[Place]:
    """Raises: SettingsError, KeysError, StoreUnavailable."""
    settings = operator_settings()
    keyring = open_keys(settings.keys).load(now=SystemClock().now())
    users = Users(keys=lambda: keyring, hashed=settings.store_openid == "hash")
    with opened_store(settings.store_url) as store:
        check_owner(store, users, now=SystemClock().now())
        yield Place(settings, keyring, store, users)


@contextmanager
def opened_store(url: str) -> Iterator[Store]:
    """A store that is there. Nothing is made, and no table changed under a service that may be an older one.

    Raises: StoreUnavailable if there is none: a command in the wrong place is not to work on an empty one.
    """
    address = store_address(url)
    if address.is_missing:
        sandbox = SANDBOX_FOLDER / "authsvc.db"
        hint = "is this the working folder of the service, and AUTHSVC_STORE what it has?"
        if sandbox.exists():
            hint = f"that of `make run` is {sandbox}: set AUTHSVC_SANDBOX=1 for the command to work on it"
        raise StoreUnavailable(f"there is no side store {address.shown}; {hint}")
    check_store(url)
    store = open_store(url, patient=True)
    try:
        yield store
    finally:
        store.close()
