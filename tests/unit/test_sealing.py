"""A sealed session_key opens in its own row alone."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from authsvc.errors import KeysError, SealBroken
from authsvc.sealing import Place, SealingKey, open_sealed, seal, sealing_key_id
from tests.support.clock import NOW
from tests.support.keys import keyring

KEY = SealingKey("5ea15ea1", b"k" * 32)
PLACE = Place("logins", "wx1", "o1", "sid1", 1_800_000_000)
SECRET = b"tiihtNczf5v6AKRyjwEUhQ=="


def _sealed() -> bytes:
    return seal(SECRET, KEY, PLACE, random_bytes=os.urandom)


def test_a_sealed_value_opens_in_its_row() -> None:
    assert open_sealed(_sealed(), KEY, PLACE) == SECRET


def test_a_sealed_value_names_its_key_and_shows_nothing_else() -> None:
    assert sealing_key_id(_sealed()) == KEY.id
    assert SECRET not in _sealed()
    assert "kkkk" not in repr(KEY)


def test_the_same_value_is_never_sealed_to_the_same_bytes() -> None:
    assert len({_sealed() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "place",
    [
        replace(PLACE, table="users"),
        replace(PLACE, appid="wx2"),
        replace(PLACE, openid="o2"),
        replace(PLACE, sid="sid2"),
        replace(PLACE, expires_at=PLACE.expires_at + 1),
        replace(PLACE, appid="wx1o", openid="1"),
        replace(PLACE, openid="o1s", sid="id1"),
    ],
)
def test_a_row_that_was_moved_renamed_or_stretched_does_not_open(place: Place) -> None:
    with pytest.raises(SealBroken):
        open_sealed(_sealed(), KEY, place)


def test_no_changed_byte_opens() -> None:
    blob = _sealed()
    for at in range(len(blob)):
        with pytest.raises(SealBroken):
            open_sealed(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :], KEY, PLACE)


@pytest.mark.parametrize("cut", [0, 1, 5, 17, 32])
def test_a_blob_that_was_cut_short_does_not_open(cut: int) -> None:
    with pytest.raises(SealBroken):
        open_sealed(_sealed()[:cut], KEY, PLACE)


def test_another_key_does_not_open_even_under_the_same_id() -> None:
    for key in (SealingKey("5ea15ea1", b"x" * 32), SealingKey("5ea15ea2", KEY.key)):
        with pytest.raises(SealBroken):
            open_sealed(_sealed(), key, PLACE)


def test_without_the_secret_of_a_key_that_is_active_nothing_is_sealed_or_opened() -> None:
    # Loaded when the key had ended, and a clock was set back.
    ring = keyring()
    bare = replace(ring, secret_keys={})
    with pytest.raises(KeysError, match="clock"):
        bare.sealing_key(now=NOW)
    with pytest.raises(SealBroken):
        bare.opening_key("5ea15ea1", now=NOW)
    assert ring.opening_key("5ea15ea1", now=NOW).id == "5ea15ea1"
