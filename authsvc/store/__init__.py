"""The side store: one row per login with its sealed session_key, one row per user. `protocol` says what a store is."""

from authsvc.store.open import StoreAddress, open_store, prepare_store, store_address
from authsvc.store.protocol import KEPT_LOGINS, STATE_ACTIVE, STATE_BANNED, LoginRow, SharedValue, Store, UserRow

__all__ = [
    "KEPT_LOGINS",
    "STATE_ACTIVE",
    "STATE_BANNED",
    "LoginRow",
    "SharedValue",
    "Store",
    "StoreAddress",
    "UserRow",
    "open_store",
    "prepare_store",
    "store_address",
]
