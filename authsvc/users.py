"""Who a user is in the side store: by openid or, where the store is not to know that, by a keyed hash alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from authsvc.errors import SettingsError
from authsvc.keyring import Keyring
from authsvc.store import SharedValue, Store, UserId, UserRow

_HASHED: Final = "#"  # in no openid (0-9A-Za-z_-): the two kinds are never taken for one another
_NOTE: Final = "belongs to"
_CLEAR: Final = "clear"
_HASH: Final = "hash"
_AT_ONCE: Final = 1_000
_FOR_EVER: Final = 253_402_300_799  # the last second of the year 9999


class Users:
    """Names users for the store. Thread-safe."""

    def __init__(self, *, keys: Callable[[], Keyring], hashed: bool) -> None:
        self._keys = keys
        self.hashed = hashed

    @property
    def proof(self) -> str:
        """The same for everybody who has the same index key; it tells nothing of that."""
        return self._keys().index_proof()

    def user(self, appid: str, openid: str) -> UserId:
        """The user who has this openid at WeChat."""
        digest = self._keys().user_digest(appid, openid)
        return UserId(appid, f"{_HASHED}{digest}" if self.hashed else openid, digest)

    def stored(self, appid: str, openid: str) -> UserId:
        """The user who is in a store by this openid, which may be a hash already."""
        if openid.startswith(_HASHED):
            return UserId(appid, openid, openid.removeprefix(_HASHED))
        return self.user(appid, openid)


def adopt(store: Store, users: Users, *, now: int) -> bool:
    """Note whose a new store is: the index key that its hashes are made under, and how it names users. False if that is
    noted already, whatever it is. Raises: StoreUnavailable."""
    if store.shared(_NOTE, now=now) is not None:
        return False
    return store.share_first(_note(store, users), now=now)


def take_over(store: Store, users: Users) -> None:
    """Note that the store belongs to this index key from now on, as if its hashes were made under it.

    Raises: StoreUnavailable.
    """
    store.share(_note(store, users))


def check_owner(store: Store, users: Users, *, now: int) -> None:
    """See to it that a store is used with the key and the kind of names that it was made with: with others nobody would
    be found in it, and no ban met.

    Raises: SettingsError if it is not; StoreUnavailable.
    """
    proof, hashed = _noted(store, now=now) or (users.proof, users.hashed)
    problems = []
    if hashed is not users.hashed:
        has, right = ("hashes in place of openids", _HASH) if hashed else ("openids in clear", _CLEAR)
        problems.append(
            f"AUTHSVC_STORE_OPENID has to be {right}: the side store has {has}, and no ban of its users would be met; "
            "authsvc store migrate makes a store with hashes of one with openids, authsvc store adopt of an empty one"
        )
    if proof != users.proof:
        problems.append(
            "AUTHSVC_KEYS is not the key folder of this side store: its hashes were made under another index key, and "
            "no ban would be met by them; mend: the folder that belongs to it or, if that one is lost for good, "
            "authsvc store adopt"
        )
    if problems:
        raise SettingsError(problems)


def is_hashed(store: Store, *, now: int) -> bool:
    """Whether a store has hashes in place of openids. Raises: StoreUnavailable."""
    found = _noted(store, now=now)
    return found is not None and found[1]


def _note(store: Store, users: Users) -> SharedValue:
    first = _first_user(store)
    # What has users and no note is of a program that knew openids in clear alone.
    hashed = users.hashed if first is None else first.openid.startswith(_HASHED)
    return SharedValue(_NOTE, f"{_HASH if hashed else _CLEAR} {users.proof}".encode(), _FOR_EVER)


def _noted(store: Store, *, now: int) -> tuple[str, bool] | None:
    found = store.shared(_NOTE, now=now)
    if found is None:
        return None
    naming, _, proof = found.value.decode().partition(" ")
    return proof, naming == _HASH


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
