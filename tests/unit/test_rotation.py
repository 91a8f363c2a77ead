"""What may be done to keys, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from authsvc.errors import KeysError
from authsvc.keyreport import What, changes, exposure, next_step, problems
from authsvc.keyring import Keyring
from authsvc.keyset import KeyRecord, Keyset, Kind, Lifecycle, State
from authsvc.manifest import dump_manifest, parse_manifest
from authsvc.rotation import prune, renewed_parts, revoke, revoke_all, rotate, rotate_store, tick
from tests.support.clock import NOW
from tests.support.keys import NewTestKeys, first_keyset

DAY = 86_400
MONTH = 30 * DAY
LEAD = Lifecycle().lead_s


@pytest.fixture
def new() -> NewTestKeys:
    return NewTestKeys()


@pytest.fixture
def keyset(new: NewTestKeys) -> Keyset:
    return first_keyset(new, now=NOW)


def _states(keyset: Keyset, *, now: int, kind: Kind = Kind.SIGNING) -> list[State]:
    return [key.state(now=now) for key in keyset.of(kind)]


def _standby(keyset: Keyset, now: int) -> KeyRecord:
    standby = keyset.standby(now=now)
    assert standby is not None
    return standby


# ---- rotate -------------------------------------------------------------------------------------


def test_a_standby_as_old_as_the_lead_signs_at_once_and_the_next_is_published(keyset: Keyset, new: NewTestKeys) -> None:
    now = NOW + LEAD
    first, standby = keyset.of(Kind.SIGNING)
    after = rotate(keyset, new, now=now)
    assert after.active(Kind.SIGNING, now=now).id == standby.id
    assert [key.id for key in after.published(now=now)][:2] == [first.id, standby.id]
    assert _standby(after, now).publish_at == now
    assert (after.generation, after.updated_at) == (keyset.generation + 1, now)


def test_the_old_key_verifies_until_its_last_token_has_ended_everywhere(keyset: Keyset, new: NewTestKeys) -> None:
    old = next(iter(rotate(keyset, new, now=NOW + LEAD).of(Kind.SIGNING)))
    assert old.retire_at == NOW + LEAD
    assert old.remove_at == NOW + LEAD + 8_100
    assert 7_200 + 5 + 120 + 2 * 60 == 7_445 <= 8_100
    assert old.part_ends_at(keyset.lifecycle) == NOW + LEAD + 5 + 120 + 2 * 60


def test_a_young_standby_signs_when_it_is_as_old_as_the_lead(keyset: Keyset, new: NewTestKeys) -> None:
    first, standby = keyset.of(Kind.SIGNING)
    after = rotate(keyset, new, now=NOW + 10)
    assert after.active(Kind.SIGNING, now=NOW + LEAD - 1).id == first.id
    assert after.active(Kind.SIGNING, now=NOW + LEAD).id == standby.id
    assert after.scheduled(Kind.SIGNING, now=NOW + 10) is not None
    assert _standby(after, NOW + 10).id not in (first.id, standby.id)


def test_a_rotation_that_is_under_way_is_left_alone(keyset: Keyset, new: NewTestKeys) -> None:
    under_way = rotate(keyset, new, now=NOW + 10)
    assert rotate(under_way, new, now=NOW + 20) is under_way
    assert rotate(under_way, new, now=NOW + LEAD) is not under_way


def test_early_means_now_whatever_verifiers_know(keyset: Keyset, new: NewTestKeys) -> None:
    for before in (keyset, rotate(keyset, new, now=NOW + 10)):
        after = rotate(before, new, now=NOW + 20, early=True)
        assert after.active(Kind.SIGNING, now=NOW + 20).id == list(keyset.of(Kind.SIGNING))[1].id
        old = next(iter(after.of(Kind.SIGNING)))
        assert (old.retire_at, old.remove_at) == (NOW + 20, NOW + 20 + 8_100)


@pytest.mark.parametrize("alg", ["ES256", "EdDSA"])
def test_a_standby_published_by_a_host_whose_clock_is_ahead_makes_a_sound_manifest(new: NewTestKeys, alg: str) -> None:
    rotated = rotate(first_keyset(new, now=NOW), new, now=NOW + MONTH + 60)
    after = rotate(rotated, new, now=NOW + MONTH + 10, alg=alg, early=True)
    assert parse_manifest(dump_manifest(after)) == after
    active = rotated.active(Kind.SIGNING, now=NOW + MONTH + 60)
    revoked = revoke(rotated, new, active.id, now=NOW + MONTH + 10, reason="stolen")
    assert parse_manifest(dump_manifest(revoked)) == revoked
    burnt = revoke_all(rotated, new, now=NOW + MONTH + 90, reason="stolen")
    early = rotate(burnt, new, now=NOW + MONTH + 40, alg=alg, early=True)
    assert parse_manifest(dump_manifest(early)) == early


def test_another_algorithm_replaces_the_standby_and_waits_out_the_lead(keyset: Keyset, new: NewTestKeys) -> None:
    now = NOW + MONTH
    after = rotate(keyset, new, now=now, alg="EdDSA")
    scheduled = after.scheduled(Kind.SIGNING, now=now)
    assert scheduled is not None
    assert (scheduled.alg, scheduled.activate_at) == ("EdDSA", now + LEAD)
    assert _standby(after, now).alg == "EdDSA"
    passed_over = list(keyset.of(Kind.SIGNING))[1].id
    assert [key.remove_at for key in after.keys if key.id == passed_over] == [now + LEAD]
    assert passed_over in [key.id for key in after.published(now=now + LEAD - 1)]
    assert passed_over not in [key.id for key in after.published(now=now + LEAD)]


def test_a_revocation_during_a_change_of_algorithm_falls_back_on_the_key_that_verifiers_know(
    keyset: Keyset, new: NewTestKeys
) -> None:
    now = NOW + MONTH
    active, known = keyset.of(Kind.SIGNING)
    under_way = rotate(keyset, new, now=now, alg="EdDSA")
    after = revoke(under_way, new, active.id, now=now + 60, alg="EdDSA", reason="stolen")
    assert after.active(Kind.SIGNING, now=now + 60).id == known.id
    assert after.active(Kind.SIGNING, now=now + LEAD).alg == "EdDSA"


def test_without_a_wish_the_next_keys_have_the_algorithm_of_the_last(new: NewTestKeys) -> None:
    keyset = first_keyset(new, now=NOW, alg="EdDSA")
    assert {key.alg for key in rotate(keyset, new, now=NOW + MONTH).of(Kind.SIGNING)} == {"EdDSA"}


# ---- the side store's keys ----------------------------------------------------------------------


def test_a_new_sealing_key_is_used_when_every_worker_has_it(keyset: Keyset, new: NewTestKeys) -> None:
    after = rotate_store(keyset, new, now=NOW + MONTH)
    old, fresh = after.of(Kind.SEALING)
    used_from = NOW + MONTH + 5 + 120 + 60
    assert after.active(Kind.SEALING, now=used_from - 1).id == old.id
    assert after.active(Kind.SEALING, now=used_from).id == fresh.id
    assert old.remove_at == used_from + 259_200 + 60
    assert old.state(now=used_from + 259_200) is State.RETIRING
    # On a host whose clock is behind it is retiring until then, and has to be there.
    assert old.part_ends_at(keyset.lifecycle) == used_from + 259_200 + 2 * 60
    assert rotate_store(after, new, now=used_from - 1) is after


# ---- revoke -------------------------------------------------------------------------------------


def test_a_revoked_key_is_out_of_the_jwks_and_the_standby_signs_at_the_same_moment(
    keyset: Keyset, new: NewTestKeys
) -> None:
    now = NOW + MONTH
    active, standby = keyset.of(Kind.SIGNING)
    after = revoke(keyset, new, active.id, now=now, reason="stolen")
    assert active.id not in [key.id for key in after.published(now=now)]
    assert after.active(Kind.SIGNING, now=now).id == standby.id
    assert _standby(after, now).publish_at == now
    assert [(key.revoked_at, key.reason) for key in after.keys if key.id == active.id] == [(now, "stolen")]


@pytest.mark.parametrize("age_s", [0, 1, 30, 59, 60, MONTH])
def test_on_a_host_whose_clock_is_behind_a_key_is_active_all_the_time(
    keyset: Keyset, new: NewTestKeys, age_s: int
) -> None:
    now = NOW + age_s
    behind = now - Lifecycle().skew_s
    for kind in (Kind.SIGNING, Kind.SEALING):
        key = keyset.active(kind, now=now)
        for after in (
            revoke(keyset, new, key.id, now=now, reason="stolen"),
            revoke_all(keyset, new, now=now, reason="stolen"),
        ):
            assert after.active(kind, now=behind).id != key.id
            assert kind is Kind.SEALING or after.active(kind, now=behind) in after.published(now=behind)


def test_revoking_the_standby_puts_another_one_in_its_place(keyset: Keyset, new: NewTestKeys) -> None:
    active, standby = keyset.of(Kind.SIGNING)
    after = revoke(keyset, new, standby.id, now=NOW + 5, reason="stolen")
    assert after.active(Kind.SIGNING, now=NOW + 5).id == active.id
    assert _standby(after, NOW + 5).publish_at == NOW + 5


def test_revoking_the_key_that_a_rotation_has_named_lets_the_rotation_go_on_with_the_next(
    keyset: Keyset, new: NewTestKeys
) -> None:
    active, named = keyset.of(Kind.SIGNING)
    under_way = rotate(keyset, new, now=NOW + 10)
    after = revoke(under_way, new, named.id, now=NOW + 20, reason="stolen")
    assert after.active(Kind.SIGNING, now=NOW + 10 + LEAD - 1).id == active.id
    assert after.active(Kind.SIGNING, now=NOW + 10 + LEAD).id not in (active.id, named.id)
    assert after.generation == under_way.generation + 1


def test_revoking_a_retiring_key_changes_nothing_else(keyset: Keyset, new: NewTestKeys) -> None:
    rotated = rotate(keyset, new, now=NOW + MONTH)
    old, *others = rotated.of(Kind.SIGNING)
    after = revoke(rotated, new, old.id, now=NOW + MONTH + 60, reason="stolen")
    assert list(after.of(Kind.SIGNING))[1:] == others
    assert old.id not in [key.id for key in after.published(now=NOW + MONTH + 60)]


def test_revoking_twice_is_revoking_once(keyset: Keyset, new: NewTestKeys) -> None:
    key = keyset.active(Kind.SIGNING, now=NOW)
    once = revoke(keyset, new, key.id, now=NOW + 5, reason="stolen")
    assert revoke(once, new, key.id, now=NOW + 9, reason="again") is once


def test_a_revoked_sealing_key_has_a_fresh_one_in_its_place_at_once(keyset: Keyset, new: NewTestKeys) -> None:
    key = keyset.active(Kind.SEALING, now=NOW)
    after = revoke(keyset, new, key.id, now=NOW + 5, reason="stolen")
    assert after.active(Kind.SEALING, now=NOW + 5).id != key.id
    assert after.active(Kind.SIGNING, now=NOW + 5) == keyset.active(Kind.SIGNING, now=NOW + 5)


@pytest.mark.parametrize("under_way", [False, True])
def test_a_sealing_key_that_waits_takes_over_or_is_replaced(keyset: Keyset, new: NewTestKeys, under_way: bool) -> None:
    rotated = rotate_store(keyset, new, now=NOW + MONTH)
    old, waiting = rotated.of(Kind.SEALING)
    now = NOW + MONTH + 5
    after = revoke(rotated, new, waiting.id if under_way else old.id, now=now, reason="stolen")
    if under_way:
        assert after.active(Kind.SEALING, now=now).id == old.id
        assert after.active(Kind.SEALING, now=now + 185).id not in (old.id, waiting.id)
    else:
        assert after.active(Kind.SEALING, now=now).id == waiting.id


def test_an_unknown_key_and_the_index_key_are_not_revoked(keyset: Keyset, new: NewTestKeys) -> None:
    with pytest.raises(KeysError, match="keys-status"):
        revoke(keyset, new, "A" * 43, now=NOW, reason="stolen")
    with pytest.raises(KeysError, match="index"):
        revoke(keyset, new, next(keyset.of(Kind.INDEX)).id, now=NOW, reason="stolen")


def test_revoke_all_leaves_no_key_of_before_but_the_index_key(keyset: Keyset, new: NewTestKeys) -> None:
    now = NOW + MONTH
    before = rotate_store(rotate(keyset, new, now=now), new, now=now)
    after = revoke_all(before, new, now=now + 300, reason="folder stolen")
    old = {key.id for key in before.keys if key.kind is not Kind.INDEX}
    assert {key.state(now=now + 300) for key in after.keys if key.id in old} == {State.REVOKED}
    assert not old & {key.id for key in after.published(now=now + 300)}
    assert after.active(Kind.SIGNING, now=now + 300).id not in old
    assert after.active(Kind.SEALING, now=now + 300).id not in old
    assert _standby(after, now + 300).id not in old
    assert next(after.of(Kind.INDEX)) == next(before.of(Kind.INDEX))
    assert after.generation == before.generation + 1


# ---- tick and prune -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.SIGNING, Kind.SEALING])
def test_the_timer_rotates_on_the_second_it_is_due_and_once(keyset: Keyset, new: NewTestKeys, kind: Kind) -> None:
    due = NOW + 1000
    assert tick(keyset, new, now=due - 1, rotate_every_s=1000) is keyset
    after = tick(keyset, new, now=due, rotate_every_s=1000)
    assert next(iter(after.of(kind))).retire_at is not None
    assert tick(after, new, now=due, rotate_every_s=1000) is after
    assert after.generation == keyset.generation + 1


def test_with_0_nothing_is_ever_due(keyset: Keyset, new: NewTestKeys) -> None:
    assert tick(keyset, new, now=NOW + 100 * MONTH, rotate_every_s=0) is keyset


def test_the_timer_brings_a_missing_standby(keyset: Keyset, new: NewTestKeys) -> None:
    without = replace(keyset, keys=tuple(k for k in keyset.keys if k != keyset.standby(now=NOW)))
    assert _standby(tick(without, new, now=NOW + 5, rotate_every_s=0), NOW + 5).publish_at == NOW + 5


def test_removed_keys_are_forgotten_and_revoked_ones_are_not(keyset: Keyset, new: NewTestKeys) -> None:
    rotated = rotate(keyset, new, now=NOW + MONTH)
    old, active, *_ = rotated.of(Kind.SIGNING)
    burnt = revoke(rotated, new, active.id, now=NOW + MONTH + 1, reason="stolen")
    assert prune(burnt, now=NOW + MONTH + 8_099) is burnt
    after = prune(burnt, now=NOW + MONTH + 8_100)
    assert (after.key(old.id), after.key(active.id) is not None) == (None, True)
    assert tick(burnt, new, now=NOW + MONTH + 8_100, rotate_every_s=0).key(old.id) is None


def test_parts_are_written_anew_under_other_names_where_there_are_any(keyset: Keyset, new: NewTestKeys) -> None:
    rotated = rotate(keyset, new, now=NOW + MONTH)
    after = renewed_parts(rotated, now=NOW + MONTH + 3_600)
    old, *others = after.of(Kind.SIGNING)
    assert old.file == f"sign-{old.id}.pem", "its part is gone"
    assert [key.file for key in others] == [f"sign-{key.id}.2.pem" for key in others]
    assert parse_manifest(dump_manifest(after)) == after


# ---- lifetimes ----------------------------------------------------------------------------------


def test_a_longer_token_lifetime_keeps_a_key_that_may_still_sign(keyset: Keyset, new: NewTestKeys) -> None:
    now = NOW + MONTH
    rotated = rotate(keyset, new, now=now)
    for when, kept_s in ((now + 245, 80_000 + 245 + 655), (now + 246, 8_100)):
        longer = rotated.with_lifetimes(token_ttl_s=80_000, session_key_ttl_s=1, now=when)
        assert next(longer.of(Kind.SIGNING)).remove_at == now + kept_s


# ---- every sequence -----------------------------------------------------------------------------

STEPS: dict[str, Callable[[Keyset, NewTestKeys, int], Keyset]] = {
    "rotate": lambda k, n, t: rotate(k, n, now=t),
    "early": lambda k, n, t: rotate(k, n, now=t, early=True),
    "other alg": lambda k, n, t: rotate(k, n, now=t, alg="EdDSA"),
    "store": lambda k, n, t: rotate_store(k, n, now=t),
    "revoke active": lambda k, n, t: revoke(k, n, k.active(Kind.SIGNING, now=t).id, now=t, reason="x"),
    "revoke waiting": lambda k, n, t: revoke(k, n, k.pending(Kind.SIGNING, now=t)[0].id, now=t, reason="x"),
    "revoke sealing": lambda k, n, t: revoke(k, n, k.active(Kind.SEALING, now=t).id, now=t, reason="x"),
    "revoke all": lambda k, n, t: revoke_all(k, n, now=t, reason="x"),
    "tick": lambda k, n, t: tick(k, n, now=t, rotate_every_s=MONTH),
}


@pytest.mark.parametrize("apart_s", [0, 1, 600, LEAD, 9_000])
@pytest.mark.parametrize("first", STEPS)
def test_after_any_steps_one_key_signs_one_waits_and_the_manifest_is_sound(first: str, apart_s: int) -> None:
    for names in itertools.product([first], STEPS, ["rotate", "other alg", "revoke active"]):
        new = NewTestKeys()
        keyset = first_keyset(new, now=NOW)
        now = NOW + DAY
        for name in names:
            before, now = keyset, now + apart_s
            keyset = STEPS[name](keyset, new, now)
            assert keyset.generation - before.generation in (0, 1), names
            for kind in (Kind.SIGNING, Kind.SEALING):
                if "revoke" in name:  # there may be two then, of which all choose the later
                    assert keyset.active(kind, now=now - 60) in keyset.keys
                for when in (now, now + 1, now + LEAD, now + 10_000):
                    assert _states(keyset, now=when, kind=kind).count(State.ACTIVE) == 1, (names, when - now, kind)
            assert keyset.standby(now=now) is not None, names
            assert len(keyset.pending(Kind.SIGNING, now=now)) <= 3, names
            assert bool(changes(before, keyset, now=now)) is (keyset is not before), names
        assert parse_manifest(dump_manifest(keyset)) == keyset, names


# ---- what there is to say -----------------------------------------------------------------------


def _said(before: Keyset, after: Keyset, now: int) -> list[tuple[str, What, int | None]]:
    return [(step.key.id, step.what, step.at) for step in changes(before, after, now=now)]


def test_a_rotation_is_told_from_the_first_signature_to_the_end_of_the_old_key(
    keyset: Keyset, new: NewTestKeys
) -> None:
    now = NOW + MONTH
    after = rotate(keyset, new, now=now)
    old, standby, fresh = (key.id for key in after.of(Kind.SIGNING))
    told = _said(keyset, after, now)
    assert sorted(told[:3]) == sorted(
        [(old, What.RETIRES, now), (standby, What.TAKES_OVER, now), (fresh, What.PUBLISHED, now)]
    )
    assert told[3:] == [(old, What.PART_DESTROYED, now + 245), (old, What.REMOVED, now + 8_100)]
    assert _said(after, after, now) == []


def test_what_comes_next_is_known_of_every_key(keyset: Keyset, new: NewTestKeys) -> None:
    now = NOW + MONTH
    after = rotate_store(rotate(keyset, new, now=now, alg="EdDSA"), new, now=now)
    told = {}
    for key in after.keys:
        step = next_step(key, after, now=now, rotate_every_s=MONTH)
        told[key.id] = step and (step.what, step.at)
    active, passed_over, scheduled, standby = (key.id for key in after.of(Kind.SIGNING))
    assert told[active] == (What.RETIRES, now + LEAD)
    assert told[passed_over] == (What.PASSED_OVER, now + LEAD)
    assert told[scheduled] == (What.TAKES_OVER, now + LEAD)
    assert told[standby] == (What.TAKES_OVER, None)
    assert told[next(after.of(Kind.INDEX)).id] is None


def test_of_a_standby_it_is_known_when_the_timer_will_take_it(keyset: Keyset) -> None:
    standby = _standby(keyset, NOW)
    for every_s, at in ((MONTH, NOW + MONTH), (60, NOW + LEAD), (0, None)):
        step = next_step(standby, keyset, now=NOW, rotate_every_s=every_s)
        assert step is not None
        assert step.at == at


def test_what_needs_the_operator_is_named_with_its_mend(keyset: Keyset) -> None:
    assert problems(keyset, now=NOW + MONTH - 1, rotate_every_s=MONTH) == ()
    (signing, sealing) = problems(keyset, now=NOW + MONTH, rotate_every_s=MONTH)
    assert "make rotate," in signing
    assert "make rotate-store" in sealing
    assert problems(keyset, now=NOW + 100 * MONTH, rotate_every_s=0) == ()
    without = replace(keyset, keys=tuple(k for k in keyset.keys if k != keyset.standby(now=NOW)))
    assert "standby" in problems(without, now=NOW, rotate_every_s=0)[0]
    behind = problems(keyset, now=NOW - 61, rotate_every_s=0)
    assert "61 s behind" in behind[0]
    assert problems(keyset, now=NOW - 60, rotate_every_s=0)[0].startswith("no signing key is active")


def test_the_exposure_of_a_revoked_key_is_what_the_policy_adds_up_to() -> None:
    told = [line.seconds for line in exposure(Lifecycle())]
    assert told == [5, 125, 515, 1_085, 4_625, None, None]


def test_after_a_revocation_the_jwks_is_known_to_be_news_for_as_long_as_an_old_one_may_be_around(
    keyset: Keyset, new: NewTestKeys
) -> None:
    after = revoke(keyset, new, keyset.active(Kind.SIGNING, now=NOW).id, now=NOW, reason="stolen")
    assert not keyset.revoked_lately(now=NOW)
    assert after.revoked_lately(now=NOW + 1_084)
    assert not after.revoked_lately(now=NOW + 1_085)


def test_a_key_revoked_before_a_slower_host_would_have_published_it_is_revoked_there_too(
    keyset: Keyset, new: NewTestKeys
) -> None:
    rotated = rotate(keyset, new, now=NOW + 60, alg="EdDSA", early=True)
    burnt = rotated.active(Kind.SIGNING, now=NOW + 60)
    assert burnt.publish_at == NOW + 60
    after = revoke_all(rotated, new, now=NOW + 60, reason="stolen")
    found = Keyring(after, {}, {}).find(burnt.id, now=NOW)
    assert found is not None
    assert found.revoked
