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
from authsvc.store import Store, open_store, prepare_store, store_address
from authsvc.users import Users, check_naming
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
    hashed = settings.store_openid == "hash"
    with opened_store(settings.store_url) as store:
        check_naming(store, hashed=hashed, now=SystemClock().now())
        yield Place(settings, keyring, store, Users(keys=lambda: keyring, hashed=hashed))


@contextmanager
def opened_store(url: str, *, may_be_new: bool = False) -> Iterator[Store]:
    """Raises: StoreUnavailable if there is none: a command in the wrong folder is not to work on an empty one."""
    address = store_address(url)
    if address.is_missing and not may_be_new:
        sandbox = SANDBOX_FOLDER / "authsvc.db"
        hint = "is this the working folder of the service, and AUTHSVC_STORE what it has?"
        if sandbox.exists():
            hint = f"that of `make run` is {sandbox}: set AUTHSVC_SANDBOX=1 for the command to work on it"
        raise StoreUnavailable(f"there is no side store {address.shown}; {hint}")
    prepare_store(url)
    store = open_store(url)
    try:
        yield store
    finally:
        store.close()
