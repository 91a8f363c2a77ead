"""WeChat's access tokens in the side store, sealed, for all processes that serve an app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from authsvc.clock import Clock
from authsvc.errors import KeysError, SealBroken, StoreUnavailable
from authsvc.keyring import Keyring
from authsvc.sealing import Place, open_sealed, seal, sealing_key_id
from authsvc.store import SharedValue, Store
from authsvc.wechat import LivingToken

_CLAIM_BYTES: Final = 16
# A store that is locked or gone is waited for by one request in a while, and not by each.
_RESTS_S: Final = 30.0

_Found = TypeVar("_Found")


class StoredTokens:
    """A TokenShare (see authsvc.wechat). With the store or the keys out of order, it has nothing and keeps nothing."""

    def __init__(
        self, store: Store, *, keys: Callable[[], Keyring], clock: Clock, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random_bytes = random_bytes
        self._rests_until = float("-inf")  # on the monotonic clock

    def token(self, appid: str) -> LivingToken | None:
        now = self._clock.now()
        found = self._asked(lambda: self._store.shared(_token_name(appid), now=now), otherwise=None)
        try:
            return None if found is None else self._opened(appid, found, now=now)
        except SealBroken:
            return None

    def put(self, appid: str, token: LivingToken) -> None:
        now = self._clock.now()
        try:
            key = self._keys().sealing_key(now=now)
        except KeysError:
            return  # the others fetch one of their own, which is the same
        place = _place(appid, token.expires_at)
        sealed = seal(token.token.encode("ascii"), key, place, random_bytes=self._random_bytes)
        value = SharedValue(_token_name(appid), sealed, token.expires_at)
        self._asked(lambda: self._store.share(value), otherwise=None)

    def claim(self, appid: str, *, for_s: int) -> Callable[[], None] | None:
        now = self._clock.now()
        mine = SharedValue(f"fetching {appid}", self._random_bytes(_CLAIM_BYTES), now + for_s)
        if not self._asked(lambda: self._store.share_first(mine, now=now), otherwise=True):
            return None
        return lambda: self._asked(lambda: self._store.unshare(mine), otherwise=None)

    def _asked(self, ask: Callable[[], _Found], *, otherwise: _Found) -> _Found:
        if self._clock.monotonic() < self._rests_until:
            return otherwise
        try:
            return ask()
        except StoreUnavailable:
            self._rests_until = self._clock.monotonic() + _RESTS_S
            return otherwise

    def _opened(self, appid: str, found: SharedValue, *, now: int) -> LivingToken:
        key = self._keys().opening_key(sealing_key_id(found.value), now=now)
        opened = open_sealed(found.value, key, _place(appid, found.expires_at))
        return LivingToken(opened.decode("ascii"), found.expires_at)


def _token_name(appid: str) -> str:
    return f"access_token {appid}"


def _place(appid: str, expires_at: int) -> Place:
    return Place("shared_values", appid, "", "access_token", expires_at)
