"""The side store: one row per login with its sealed session_key, one row per user. `protocol` says what a store is."""

from authsvc.store.open import StoreAddress, check_store, open_store, prepare_store, store_address
from authsvc.store.protocol import Store
from authsvc.store.redisurl import is_redis, redis_address
from authsvc.store.rows import (
    FORWARDING_HEADER_SEEN,
    KEPT_LOGINS,
    STATE_ACTIVE,
    STATE_BANNED,
    AuditLine,
    Ban,
    Census,
    LoginRow,
    RevokedKey,
    Row,
    SharedValue,
    UserId,
    UserRow,
    merged,
)

__all__ = [
    "FORWARDING_HEADER_SEEN",
    "KEPT_LOGINS",
    "STATE_ACTIVE",
    "STATE_BANNED",
    "AuditLine",
    "Ban",
    "Census",
    "LoginRow",
    "RevokedKey",
    "Row",
    "SharedValue",
    "Store",
    "StoreAddress",
    "UserId",
    "UserRow",
    "check_store",
    "is_redis",
    "merged",
    "open_store",
    "prepare_store",
    "redis_address",
    "store_address",
]
