"""Who a user is in the side store."""

from __future__ import annotations

import pytest

from authsvc.errors import SettingsError
from authsvc.keyring import Keyring
from authsvc.store.memory import MemoryStore
from authsvc.users import Users, check_naming
from tests.support.keys import keyring
from tests.support.users import NOW, login


def users(ring: Keyring | None = None, *, hashed: bool = False) -> Users:
    found = ring or keyring()
    return Users(keys=lambda: found, hashed=hashed)


def test_in_clear_a_user_has_the_openid_and_hashed_the_digest_alone() -> None:
    clear, hashed = users().user("wx-a", "oUser"), users(hashed=True).user("wx-a", "oUser")
    assert (clear.openid, hashed.openid) == ("oUser", f"#{hashed.digest}")
    assert clear.digest == hashed.digest
    assert len(clear.digest) == 32
    assert "oUser" not in repr(hashed)


def test_the_digest_is_of_this_app_and_this_openid_and_not_that_of_the_log() -> None:
    ring = keyring()
    names = [("a", "bc"), ("ab", "c"), ("a", "Bc"), ("a", "b"), ("a 1", "c"), ("a", "1 c")]
    digests = {users(ring).user(*name).digest for name in names}
    assert len(digests) == len(names)
    assert not any(digest.startswith(ring.pseudonym("a", "bc")) for digest in digests)


@pytest.mark.parametrize("hashed", [False, True])
def test_a_stored_name_is_understood(hashed: bool) -> None:
    it = users(hashed=hashed)
    user = it.user("wx-a", "oUser")
    assert it.stored(user.appid, user.openid) == user


def test_an_openid_in_clear_is_renamed_for_a_store_that_is_not_to_know_it() -> None:
    it = users(hashed=True)
    assert it.stored("wx-a", "oUser") == it.user("wx-a", "oUser")


# ---- one kind of names in a store ---------------------------------------------------------------


def check(store: MemoryStore, *, hashed: bool) -> None:
    check_naming(store, hashed=hashed, now=NOW)


@pytest.mark.parametrize("hashed", [False, True])
def test_a_store_keeps_the_kind_of_names_that_it_has(hashed: bool) -> None:
    store = MemoryStore()
    check(store, hashed=hashed)
    name = users(hashed=hashed).user("wx-a", "oUser").openid
    store.put_login(login("s1", openid=name), unionid=None)
    check(store, hashed=hashed)
    with pytest.raises(SettingsError, match="STORE_OPENID"):
        check(store, hashed=not hashed)
    check(store, hashed=hashed)


@pytest.mark.parametrize("hashed", [False, True])
def test_what_has_no_users_yet_may_change_its_mind(hashed: bool) -> None:
    store = MemoryStore()
    for kind in (hashed, not hashed, hashed):
        check(store, hashed=kind)
    store.put_login(login("s1", openid="#x" if hashed else "oUser"), unionid=None)
    with pytest.raises(SettingsError):
        check(store, hashed=not hashed)


def test_a_store_of_an_older_program_has_openids_in_clear() -> None:
    store = MemoryStore()
    store.put_login(login("s1"), unionid=None)
    with pytest.raises(SettingsError, match="openids in clear"):
        check(store, hashed=True)
    check(store, hashed=False)
