"""Who a user is in the side store: by openid or, where the store is not to know that, by a keyed hash alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from authsvc.errors import SettingsError
from authsvc.keyring import Keyring
from authsvc.store import SharedValue, Store, UserId, UserRow

_HASHED: Final = "#"  # in no openid (0-9A-Za-z_-): the two kinds are never taken for one another
_NAMING: Final = "users are named by"
_AT_ONCE: Final = 1_000
_FOR_EVER: Final = 253_402_300_799  # the last second of the year 9999


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


def check_naming(store: Store, *, hashed: bool, now: int) -> None:
    """See to it that a store has one kind of names: by the other kind nobody would be found, and no ban met.

    Raises: SettingsError if it has users by the other kind; StoreUnavailable.
    """
    ours = _naming(hashed=hashed)
    found = naming(store, now=now)
    if found is None:
        store.share(ours)
    elif found.value != ours.value:
        if _first_user(store) is not None:
            has, mend = ("openids in clear", "hash") if hashed else ("hashes in place of openids", "clear")
            raise SettingsError(
                [
                    f"AUTHSVC_STORE_OPENID={mend}, and the side store has {has}: bans of its users would not be met; "
                    "mend: set it as it was, or see the README on moving to another store"
                ]
            )
        store.share(ours)


def naming(store: Store, *, now: int) -> SharedValue | None:
    """The kind of names that the store has; None if it has none yet. Raises: StoreUnavailable."""
    found = store.shared(_NAMING, now=now)
    if found is None and (user := _first_user(store)) is not None:
        # Of a program that knew openids in clear alone; or the note of it got lost.
        return _naming(hashed=user.openid.startswith(_HASHED))
    return found


def is_hashed(found: SharedValue | None) -> bool:
    return found is not None and found.value == b"hash"


def _naming(*, hashed: bool) -> SharedValue:
    return SharedValue(_NAMING, b"hash" if hashed else b"clear", _FOR_EVER)


def _first_user(store: Store) -> UserId | None:
    after: str | None = ""
    while after is not None:
        # Not one: a Redis that is shared with others looks at so many keys each time, of whomever they are.
        rows, after = store.page(UserRow, after=after, at_most=_AT_ONCE, identify=_anybody)
        for row in rows:
            if isinstance(row, UserRow):
                return row.user
    return None


def _anybody(appid: str, openid: str) -> UserId:
    return UserId(appid, openid, digest="")
