"""Who a user is in the side store: by openid or, where the store is not to know that, by a keyed hash alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from authsvc.keyring import Keyring
from authsvc.store import UserId

_HASHED: Final = "#"  # in no openid (0-9A-Za-z_-): the two kinds are never taken for one another


class Users:
    """Names users for the store. Thread-safe."""

    def __init__(self, *, keys: Callable[[], Keyring], hashed: bool) -> None:
        self._keys = keys
        self._hashed = hashed

    def user(self, appid: str, openid: str) -> UserId:
        """The user who has this openid at WeChat."""
        digest = self._keys().user_digest(appid, openid)
        return UserId(appid, f"{_HASHED}{digest}" if self._hashed else openid, digest)

    def stored(self, appid: str, openid: str) -> UserId:
        """The user who is in a store by this openid, which may be a hash already."""
        if openid.startswith(_HASHED):
            return UserId(appid, openid, openid.removeprefix(_HASHED))
        return self.user(appid, openid)
