"""WeChat's access tokens in the side store, sealed, for all processes that serve an app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from authsvc.clock import Clock
from authsvc.errors import KeysError, SealBroken, StoreUnavailable
from authsvc.keyring import Keyring
from authsvc.sealing import Place, open_sealed, seal, sealing_key_id
from authsvc.store import SharedValue, Store
from authsvc.wechat import LivingToken

_CLAIM_BYTES: Final = 16


class StoredTokens:
    """A TokenShare (see authsvc.wechat). With the store or the keys out of order, it has nothing and keeps nothing."""

    def __init__(
        self, store: Store, *, keys: Callable[[], Keyring], clock: Clock, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random_bytes = random_bytes

    def token(self, appid: str) -> LivingToken | None:
        now = self._clock.now()
        try:
            found = self._store.shared(_token_name(appid), now=now)
            return None if found is None else self._opened(appid, found, now=now)
        except (StoreUnavailable, SealBroken):
            return None

    def put(self, appid: str, token: LivingToken) -> None:
        now = self._clock.now()
        try:
            key = self._keys().sealing_key(now=now)
            place = _place(appid, token.expires_at)
            sealed = seal(token.token.encode("ascii"), key, place, random_bytes=self._random_bytes)
            self._store.share(SharedValue(_token_name(appid), sealed, token.expires_at))
        except (StoreUnavailable, KeysError):
            return  # the others fetch one of their own, which is the same

    def drop(self, appid: str, token: LivingToken) -> None:
        now = self._clock.now()
        try:
            found = self._store.shared(_token_name(appid), now=now)
            if found is not None and self._opened(appid, found, now=now) == token:
                self._store.unshare(found)
        except (StoreUnavailable, SealBroken):
            return

    def claim(self, appid: str, *, for_s: int) -> Callable[[], None] | None:
        now = self._clock.now()
        mine = SharedValue(f"fetching {appid}", self._random_bytes(_CLAIM_BYTES), now + for_s)
        try:
            if not self._store.share_first(mine, now=now):
                return None
        except StoreUnavailable:
            return lambda: None
        return lambda: self._end_claim(mine)

    def _end_claim(self, mine: SharedValue) -> None:
        try:
            self._store.unshare(mine)
        except StoreUnavailable:
            return  # it ends by itself

    def _opened(self, appid: str, found: SharedValue, *, now: int) -> LivingToken:
        key = self._keys().opening_key(sealing_key_id(found.value), now=now)
        opened = open_sealed(found.value, key, _place(appid, found.expires_at))
        return LivingToken(opened.decode("ascii"), found.expires_at)


def _token_name(appid: str) -> str:
    return f"access_token {appid}"


def _place(appid: str, expires_at: int) -> Place:
    return Place("shared_values", appid, "", "access_token", expires_at)
