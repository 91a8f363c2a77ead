"""The rehearsal: its verifiers refuse and accept as the arithmetic of the lifecycle says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from authsvc.drill import HABITS, Rehearsal, Row, rehearse
from authsvc.keyset import Keyset, Kind, Lifecycle
from authsvc.rotation import revoke, revoke_all, rotate
from tests.support.clock import NOW
from tests.support.keys import NewTestKeys, first_keyset

MONTH = 30 * 86_400


def _rehearse(keyset: Keyset, *, now: int) -> tuple[Rehearsal, dict[str, Row]]:
    found = rehearse(keyset, now=now, seed=1, random_bytes=os.urandom)
    return found, {row.name: row for row in found.rows}


def test_with_a_standby_that_is_weeks_old_nobody_refuses_a_genuine_token_who_fetches_at_all() -> None:
    found, rows = _rehearse(first_keyset(NewTestKeys(), now=NOW), now=NOW + MONTH)
    assert found.is_clean
    assert found.rotation_at == NOW + MONTH
    never = rows.pop("reads the JWKS once")
    assert {row.refused_by_rotation + row.refused_by_revocation for row in rows.values()} == {0}
    assert (never.within_policy, never.revoked_accepted_s) == (False, None)


def test_with_a_young_standby_only_who_keeps_keys_longer_than_the_policy_allows_refuses_after_a_rotation() -> None:
    new = NewTestKeys()
    rotated = rotate(first_keyset(new, now=NOW - MONTH), new, now=NOW - 60)
    found, rows = _rehearse(rotated, now=NOW)
    assert found.is_clean
    assert found.rotation_at == NOW - 60 + Lifecycle().lead_s
    assert rows["home-made, every 24 h"].refused_by_rotation > 0
    assert rows["Envoy, every 10 min"].refused_by_rotation == 0
    assert rows["Envoy, every 10 min"].refused_by_revocation > 0, "a revocation cannot wait for the lead"


def test_a_folder_in_which_a_key_was_just_revoked_can_be_rehearsed_too() -> None:
    new = NewTestKeys()
    keyset = first_keyset(new, now=NOW - MONTH)
    revoked = revoke(keyset, new, keyset.active(Kind.SIGNING, now=NOW - 5).id, now=NOW - 5, reason="stolen")
    for before in (revoked, revoke_all(keyset, new, now=NOW - 5, reason="stolen")):
        found, _ = _rehearse(before, now=NOW)
        assert found.is_clean
        assert found.rotation_at == NOW - 5 + Lifecycle().lead_s


def test_a_revoked_key_is_accepted_for_no_longer_than_the_exposure_says() -> None:
    _, rows = _rehearse(first_keyset(NewTestKeys(), now=NOW), now=NOW + MONTH)
    for habit in HABITS:
        accepted_s = rows[habit.name].revoked_accepted_s
        if habit.keeps_s is not None and habit.keeps_s <= 600:
            assert accepted_s is not None
            assert 60 < accepted_s <= 125 + 360 + max(habit.keeps_s, 0) + 5


def test_the_same_seed_gives_the_same_rehearsal_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    keyset = rotate(first_keyset(NewTestKeys(), now=NOW), NewTestKeys(), now=NOW + MONTH)
    assert _rehearse(keyset, now=NOW + MONTH + 9)[0] == _rehearse(keyset, now=NOW + MONTH + 9)[0]
    assert os.listdir(tmp_path) == []
