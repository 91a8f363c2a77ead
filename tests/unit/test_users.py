"""Who a user is in the side store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from authsvc.errors import SettingsError
from authsvc.keyring import Keyring
from authsvc.store.memory import MemoryStore
from authsvc.users import Users, adopt, check_owner, is_hashed, take_over
from tests.support.keys import keyring
from tests.support.users import NOW, login


def users(ring: Keyring | None = None, *, hashed: bool = False) -> Users:
    found = ring or keyring()
    return Users(keys=lambda: found, hashed=hashed)


def another_ring() -> Keyring:
    """With another index key."""
    ring = keyring()
    return Keyring(ring.keyset, ring.private_keys, {key_id: bytes(32) for key_id in ring.secret_keys})


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


# ---- whose a store is ---------------------------------------------------------------------------


def check(store: MemoryStore, it: Users) -> None:
    check_owner(store, it, now=NOW)


@pytest.mark.parametrize("hashed", [False, True])
def test_a_store_keeps_the_kind_of_names_that_it_was_made_with(hashed: bool) -> None:
    store, ring = MemoryStore(), keyring()
    assert adopt(store, users(ring, hashed=hashed), now=NOW) is True
    assert adopt(store, users(ring, hashed=not hashed), now=NOW) is False
    check(store, users(ring, hashed=hashed))
    with pytest.raises(SettingsError, match="STORE_OPENID has to be"):
        check(store, users(ring, hashed=not hashed))
    check(store, users(ring, hashed=hashed))
    assert is_hashed(store, now=NOW) is hashed


def test_a_store_keeps_to_the_index_key_that_it_was_made_with() -> None:
    store, ring, other = MemoryStore(), keyring(), another_ring()
    adopt(store, users(ring), now=NOW)
    with pytest.raises(SettingsError, match="not the key folder"):
        check(store, users(other))
    check(store, users(ring))
    take_over(store, users(other))
    check(store, users(other))
    with pytest.raises(SettingsError):
        check(store, users(ring))


def test_a_store_without_users_may_be_taken_over_with_the_other_kind_of_names() -> None:
    store, ring = MemoryStore(), keyring()
    adopt(store, users(ring), now=NOW)
    take_over(store, users(ring, hashed=True))
    check(store, users(ring, hashed=True))
    store.put_login(replace(login("s1"), user=users(ring, hashed=True).user("wx-a", "oUser")), unionid=None)
    take_over(store, users(ring, hashed=False))
    check(store, users(ring, hashed=True))


def test_a_store_of_an_older_program_has_openids_in_clear() -> None:
    store, ring = MemoryStore(), keyring()
    store.put_login(login("s1"), unionid=None)
    adopt(store, users(ring, hashed=True), now=NOW)
    with pytest.raises(SettingsError, match="openids in clear"):
        check(store, users(ring, hashed=True))
    check(store, users(ring))


def test_both_problems_are_named_at_once() -> None:
    store = MemoryStore()
    adopt(store, users(keyring()), now=NOW)
    with pytest.raises(SettingsError) as refused:
        check(store, users(another_ring(), hashed=True))
    assert len(refused.value.problems) == 2
