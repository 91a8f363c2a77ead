"""Whatever is done to the keys, no valid token is refused: over every sequence of commands, and to the second."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from authsvc.errors import TokenExpired
from authsvc.keyset import Keyset, Kind, Lifecycle, State
from authsvc.rotation import NewKeys, prune, revoke, revoke_all, rotate, rotate_store, tick
from authsvc.tokens import open_token
from tests.support.fleet import Command, Fleet, Hurry, PartMissed, RowLost, TokenRefused, Worker
from tests.support.keys import POLICY

ALGS = ("EdDSA", "ES256")  # an RSA key takes too long to make
PARTS = 4  # clocks and delays are drawn in quarters of their range: both ends, and some between


def tight(**seconds: int) -> Lifecycle:
    """A policy with the least lead that it allows: with any slack a wrong formula could hide in that."""
    long = Lifecycle(**seconds | {"lead_s": 10**6})
    return replace(long, lead_s=long.minimum_lead_s)


TIGHT = {
    "as by default": tight(),
    "short": tight(
        reload_s=2,
        replication_s=3,
        jwks_max_age_s=4,
        jwks_stale_while_revalidate_s=1,
        verifier_cache_s=5,
        skew_s=3,
        ttl_max_s=12,
        session_key_ttl_max_s=25,
    ),
    "skew above all": tight(
        reload_s=1,
        replication_s=4,
        jwks_max_age_s=7,
        jwks_stale_while_revalidate_s=2,
        verifier_cache_s=3,
        skew_s=60,
        ttl_max_s=30,
        session_key_ttl_max_s=40,
    ),
    "one host": tight(
        reload_s=5,
        replication_s=0,
        jwks_max_age_s=30,
        jwks_stale_while_revalidate_s=0,
        verifier_cache_s=0,
        skew_s=0,
        ttl_max_s=60,
        session_key_ttl_max_s=60,
    ),
    "nobody caches": tight(
        reload_s=1,
        replication_s=300,
        jwks_max_age_s=0,
        jwks_stale_while_revalidate_s=0,
        verifier_cache_s=0,
        skew_s=60,
        ttl_max_s=900,
        session_key_ttl_max_s=400,
    ),
}
POLICIES = {"default": Lifecycle()} | TIGHT

SPANS = ("skew_s", "spread_s", "jwks_reach_s", "lead_s", "last_use_s", "ttl_max_s", "sealing_lead_s")

STATES = [(Kind.SIGNING, state) for state in State if state is not State.REVOKED]
STATES += [(Kind.SEALING, state) for state in (State.PENDING, State.ACTIVE, State.RETIRING)]

parts = st.integers(0, PARTS)
algs = st.none() | st.sampled_from(ALGS)
workers = st.integers(0, 4)


class Life(RuleBasedStateMachine):
    """Commands on hosts whose clocks differ, and time. What must hold is checked by the fleet as time passes."""

    fleet: Fleet

    @initialize(
        policy=st.sampled_from(sorted(POLICIES)),
        alg=st.sampled_from(ALGS),
        host=parts,
        clock=parts,
        delay=parts,
        per_s=st.sampled_from([1, 4]),
        begins_t=st.integers(0, 3),
    )
    def begin(self, policy: str, alg: str, host: int, clock: int, delay: int, per_s: int, begins_t: int) -> None:
        lifecycle = POLICIES[policy]
        slowest_t = whole_seconds(lifecycle, per_s)
        self.fleet = Fleet(
            lifecycle,
            alg=alg,
            per_s=per_s,
            begins_t=begins_t,
            offset_t=lifecycle.skew_s * per_s * host // PARTS,
            slowest_t=slowest_t,
            more=[Worker(lifecycle.skew_s * per_s * clock // PARTS, slowest_t * delay // PARTS)],
        )
        # Before this the first key is not active by every clock.
        self.fleet.advance(self.fleet.skew_t)

    def run(self, command: Command, host: int, hurry: Hurry = Hurry.NO) -> None:
        self.fleet.command(command, offset_t=self.fleet.skew_t * host // PARTS, hurry=hurry)

    # ---- time ----

    @rule(ticks=st.integers(1, 9))
    def a_moment_passes(self, ticks: int) -> None:
        self.fleet.advance(ticks)

    @rule(span=st.sampled_from(SPANS), shift_t=st.integers(-1, 1))
    def a_span_of_the_policy_passes(self, span: str, shift_t: int) -> None:
        span_s: int = getattr(self.fleet.newest.lifecycle, span)
        self.fleet.advance(max(span_s * self.fleet.per_s + shift_t, 0))

    @rule(number=st.integers(0, 3), host=parts, shift_t=st.integers(-1, 1))
    def a_time_of_the_manifest_comes(self, number: int, host: int, shift_t: int) -> None:
        moments = self.fleet.moments_t()
        if moments:
            at_t = moments[min(number, len(moments) - 1)] + self.fleet.skew_t * host // PARTS + shift_t
            self.fleet.advance(max(at_t - self.fleet.now_t, 0))

    # ---- commands ----

    @rule(host=parts, alg=algs)
    def rotate(self, host: int, alg: str | None) -> None:
        self.run(lambda keyset, new, now: rotate(keyset, new, now=now, alg=alg), host)

    @rule(host=parts, alg=algs)
    def rotate_early(self, host: int, alg: str | None) -> None:
        self.run(lambda keyset, new, now: rotate(keyset, new, now=now, alg=alg, early=True), host, Hurry.YES)

    @rule(host=parts)
    def rotate_store(self, host: int) -> None:
        self.run(lambda keyset, new, now: rotate_store(keyset, new, now=now), host)

    @rule(host=parts, which=st.sampled_from(STATES), number=st.integers(0, 2), alg=algs)
    def revoke(self, host: int, which: tuple[Kind, State], number: int, alg: str | None) -> None:
        def command(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
            kind, state = which
            ids = [key.id for key in keyset.of(kind) if key.state(now=now) is state]
            if not ids:
                return keyset
            return revoke(keyset, new, ids[number % len(ids)], now=now, alg=alg, reason="stolen")

        self.run(command, host, Hurry.IF_NEEDED)

    @rule(host=parts, alg=algs)
    def revoke_all(self, host: int, alg: str | None) -> None:
        def command(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
            return revoke_all(keyset, new, now=now, alg=alg, reason="stolen")

        self.run(command, host, Hurry.YES)

    @rule(host=parts, alg=algs, every_s=st.sampled_from([0, 1, 500, 10_000]))
    def tick(self, host: int, alg: str | None, every_s: int) -> None:
        def command(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
            after = tick(keyset, new, now=now, rotate_every_s=every_s, alg=alg)
            assert tick(after, new, now=now, rotate_every_s=every_s, alg=alg) is after
            return after

        self.run(command, host)

    @rule(host=parts)
    def prune(self, host: int) -> None:
        self.run(lambda keyset, _, now: prune(keyset, now=now), host)

    @rule(host=parts, more_s=st.tuples(st.integers(0, 100), st.integers(0, 100)))
    def longer_lifetimes(self, host: int, more_s: tuple[int, int]) -> None:
        """They are in use from here on, wherever the manifest is known that says so."""
        lifecycle = self.fleet.newest.lifecycle
        token_ttl_s, session_key_ttl_s = lifecycle.ttl_max_s + more_s[0], lifecycle.session_key_ttl_max_s + more_s[1]
        self.run(
            lambda keyset, _, now: keyset.with_lifetimes(
                token_ttl_s=token_ttl_s, session_key_ttl_s=session_key_ttl_s, now=now
            ),
            host,
        )

    # ---- workers and verifiers ----

    @rule(worker=workers, delay=parts)
    def restart(self, worker: int, delay: int) -> None:
        found = self._worker(worker)
        self.fleet.restart(found, delay_t=found.delay_t * delay // PARTS)

    @precondition(lambda self: len(self.fleet.versions) > 1)
    @rule(signer=workers, server=workers, clock=parts)
    def show_a_token(self, signer: int, server: int, clock: int) -> None:
        self.fleet.show(self._worker(signer), self._worker(server), offset_t=self.fleet.skew_t * clock // PARTS)

    def _worker(self, number: int) -> Worker:
        return self.fleet.workers[number % len(self.fleet.workers)]

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            self.fleet.live_out()


def whole_seconds(lifecycle: Lifecycle, per_s: int) -> int:
    """The longest delay, in ticks, that is sure to be below the spread however a clock cuts its seconds."""
    return max(lifecycle.spread_s * per_s - (per_s - 1), 0)


def _play(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            report_multiple_bugs=False,  # each would be made as short as it can be, one after the other
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.timeout(900)  # to find the shortest sequence takes longer than to find one
def test_whatever_is_done_to_the_keys_no_valid_token_is_refused_and_no_row_is_lost() -> None:
    _play(100, 30)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_in_many_more_sequences_no_valid_token_is_refused_and_no_row_is_lost() -> None:
    _play(3_000, 50)


# ---- each bound is the least: with less, something breaks ---------------------------------------


def shorter(lifecycle: Lifecycle, **cuts_s: int) -> Lifecycle:
    """The policy, with some of its sums cut by so many seconds."""

    def cut(name: str, cut_s: int) -> property:
        whole: Any = getattr(Lifecycle, name)
        return property(lambda self: whole.fget(self) - cut_s)

    kind = type("Shorter", (Lifecycle,), {name: cut(name, cut_s) for name, cut_s in cuts_s.items()})
    found: Lifecycle = kind(**asdict(lifecycle))
    return found


def shorter_lead(lifecycle: Lifecycle, cut_s: int) -> Lifecycle:
    found = replace(lifecycle)
    object.__setattr__(found, "lead_s", lifecycle.lead_s - cut_s)  # no policy can be made with this
    return found


def rotated(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return rotate(keyset, new, now=now)


def store_rotated(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return rotate_store(keyset, new, now=now)


def a_year_later(lifecycle: Lifecycle, *, per_s: int = 1, begins_t: int = 0, slowest_t: int | None = None) -> Fleet:
    """A fleet whose standby every verifier has known for long."""
    fleet = Fleet(lifecycle, per_s=per_s, begins_t=begins_t, slowest_t=slowest_t, is_parsed=False)
    fleet.advance(365 * 86_400 * per_s)
    return fleet


def with_a_young_standby(lifecycle: Lifecycle, **how: int) -> None:
    """The host whose clock is last publishes a standby; then the one whose clock is first signs with it."""
    fleet = a_year_later(lifecycle, **how)
    fleet.command(rotated, offset_t=0)
    fleet.command(rotated, offset_t=0)
    fleet.live_out()


def with_a_late_worker(lifecycle: Lifecycle, **how: int) -> None:
    """The host whose clock is last rotates; then the one whose clock is first learns of it last, and forgets first."""
    fleet = a_year_later(lifecycle, **how)
    fleet.command(rotated, offset_t=0)
    fleet.live_out()


def with_a_new_sealing_key(lifecycle: Lifecycle, **how: int) -> None:
    fleet = a_year_later(lifecycle, **how)
    fleet.command(store_rotated, offset_t=0)
    fleet.live_out()


every_tight_policy = pytest.mark.parametrize("policy", TIGHT.values(), ids=TIGHT.keys())
# Seconds that are cut are a difference of clocks, for which a policy without any skew has no room.
every_tight_policy_with_skew = pytest.mark.parametrize(
    "policy", [pytest.param(policy, id=name) for name, policy in TIGHT.items() if policy.skew_s]
)


@every_tight_policy
def test_with_the_least_lead_no_token_is_refused_and_with_a_second_less_one_is(policy: Lifecycle) -> None:
    with_a_young_standby(policy)
    with pytest.raises(TokenRefused):
        with_a_young_standby(shorter_lead(policy, 1))


@every_tight_policy_with_skew
def test_that_clocks_cut_their_seconds_takes_less_than_a_second_from_the_lead(policy: Lifecycle) -> None:
    # `publish_at` is up to a second before the standby was published. A worker looks once a second, and `reload` says
    # five: that covers it. One that really took every tick of `reload` and `replication` would be too late.
    with_a_young_standby(policy, per_s=4, begins_t=3, slowest_t=whole_seconds(policy, 4))
    with pytest.raises(TokenRefused):
        with_a_young_standby(policy, per_s=4, begins_t=3)


@every_tight_policy_with_skew
def test_a_key_kept_a_second_less_than_its_retention_is_missed_by_a_living_token(policy: Lifecycle) -> None:
    # In quarters of a second: what is signed within a second and ends within one makes it whole.
    with_a_late_worker(policy, per_s=4, begins_t=3)
    with pytest.raises(TokenRefused):
        with_a_late_worker(shorter(policy, signing_retention_s=1), per_s=4, begins_t=3)


@every_tight_policy
def test_a_private_part_outlives_its_last_signature_by_the_skew(policy: Lifecycle) -> None:
    # The retention needs the skew twice, for the clock of the signer and that of who forgets; the part needs it once.
    def cut(cut_s: int) -> Lifecycle:
        return shorter(policy, last_use_s=cut_s, signing_retention_s=-cut_s)

    with_a_late_worker(cut(policy.skew_s))
    with pytest.raises(PartMissed):
        with_a_late_worker(cut(policy.skew_s + 1))


@every_tight_policy
def test_with_the_sealing_lead_no_row_is_lost_and_with_a_second_less_one_is(policy: Lifecycle) -> None:
    with_a_new_sealing_key(policy)
    with pytest.raises(RowLost):
        with_a_new_sealing_key(shorter(policy, sealing_lead_s=1))


@every_tight_policy
def test_a_sealing_key_outlives_its_last_row_by_a_second(policy: Lifecycle) -> None:
    # No row is sealed in the very second of `retire_at`.
    with_a_new_sealing_key(shorter(policy, sealing_retention_s=1))
    with pytest.raises((RowLost, PartMissed)):
        with_a_new_sealing_key(shorter(policy, sealing_retention_s=2))


# ---- real tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ALGS)
def test_the_last_token_of_a_key_is_good_on_its_last_second_by_the_first_host_and_the_last_verifier(alg: str) -> None:
    fleet = Fleet(tight(), alg=alg)
    first = next(worker for worker in fleet.workers if worker.offset_t == fleet.skew_t and not worker.delay_t)
    late = next(worker for worker in fleet.workers if worker.offset_t == fleet.skew_t and worker.delay_t)
    fleet.advance(fleet.lifecycle.lead_s)
    old = fleet.newest.active(Kind.SIGNING, now=fleet.clock(fleet.now_t, 0))
    fleet.command(rotated, offset_t=0)
    fleet.advance(fleet.lifecycle.spread_s - 1)
    last = fleet.sign(late)
    assert (last.kid, fleet.sign(first).kid == last.kid) == (old.id, False)
    fleet.advance(fleet.lifecycle.ttl_max_s + fleet.lifecycle.skew_s - 1)
    now = fleet.clock(fleet.now_t, 0)
    assert open_token(last.token, fleet.jwks(first), POLICY, now=now).expires_at == last.expires_at
    with pytest.raises(TokenExpired):
        open_token(last.token, fleet.jwks(first), POLICY, now=now + 1)
    fleet.advance(1)
    assert fleet.jwks(first).find(last.kid, now=now) is not None
    fleet.advance(1)
    assert fleet.jwks(first).find(last.kid, now=now) is None


# ---- what the sequences found -------------------------------------------------------------------


def by_default() -> Fleet:
    fleet = Fleet(Lifecycle())
    fleet.advance(fleet.lifecycle.lead_s)
    return fleet


def revoke_one(fleet: Fleet, key_id: str, *, offset_t: int) -> None:
    fleet.command(
        lambda keyset, new, now: revoke(keyset, new, key_id, now=now, reason="stolen"),
        offset_t=offset_t,
        hurry=Hurry.IF_NEEDED,
    )


def advance_to(fleet: Fleet, now: int, *, offset_t: int) -> None:
    fleet.advance(max(now - fleet.clock(fleet.now_t, offset_t), 0))


both_kinds = pytest.mark.parametrize(("kind", "command"), [(Kind.SIGNING, rotated), (Kind.SEALING, store_rotated)])


def test_a_manifest_can_be_read_whoever_wrote_it_though_the_last_one_was_from_a_clock_ahead() -> None:
    fleet = by_default()
    standby = fleet.newest.standby(now=0)
    assert standby is not None
    revoke_one(fleet, standby.id, offset_t=fleet.skew_t)
    # The new standby is published in what is the future here.
    fleet.command(lambda keyset, new, now: rotate(keyset, new, now=now, early=True), offset_t=0, hurry=Hurry.YES)
    fleet.live_out()


@both_kinds
def test_revoking_a_key_that_has_just_retired_leaves_no_slower_host_without_one(kind: Kind, command: Command) -> None:
    fleet = by_default()
    old = next(fleet.newest.of(kind)).id
    fleet.command(command, offset_t=fleet.skew_t)
    retired = fleet.newest.key(old)
    assert retired is not None
    advance_to(fleet, retired.retire_at or 0, offset_t=fleet.skew_t)
    revoke_one(fleet, old, offset_t=fleet.skew_t)
    fleet.live_out()


@both_kinds
def test_a_longer_life_counts_for_a_key_that_a_slower_host_still_uses(kind: Kind, command: Command) -> None:
    fleet = by_default()
    old = next(fleet.newest.of(kind)).id
    fleet.command(command, offset_t=fleet.skew_t)
    retired = fleet.newest.key(old)
    assert retired is not None
    advance_to(fleet, (retired.retire_at or 0) + 1, offset_t=fleet.skew_t)
    fleet.command(
        lambda keyset, _, now: keyset.with_lifetimes(token_ttl_s=86_400, session_key_ttl_s=2_592_000, now=now),
        offset_t=fleet.skew_t,
    )
    fleet.live_out()


@pytest.mark.parametrize("before_s", [1, 60, 124, 125, 184, 185, 186])
@pytest.mark.parametrize("host", [0, 1])
def test_a_standby_that_was_passed_over_does_not_sign_once_a_host_may_have_dropped_it(before_s: int, host: int) -> None:
    fleet = by_default()
    offset_t = fleet.skew_t * host
    old = fleet.newest.active(Kind.SIGNING, now=fleet.clock(fleet.now_t, 0))
    fleet.command(lambda keyset, new, now: rotate(keyset, new, now=now, alg="ES256"), offset_t=offset_t)
    fleet.advance(fleet.lifecycle.lead_s - before_s)
    revoke_one(fleet, old.id, offset_t=offset_t)
    fleet.live_out()


def test_nor_does_it_when_the_key_that_was_to_follow_is_revoked_first() -> None:
    fleet = by_default()
    old = fleet.newest.active(Kind.SIGNING, now=fleet.clock(fleet.now_t, 0))
    fleet.command(lambda keyset, new, now: rotate(keyset, new, now=now, alg="ES256"), offset_t=0)
    fleet.advance(fleet.lifecycle.lead_s - fleet.lifecycle.spread_s)
    follows = fleet.newest.scheduled(Kind.SIGNING, now=fleet.clock(fleet.now_t, 0))
    assert follows is not None
    revoke_one(fleet, follows.id, offset_t=0)
    revoke_one(fleet, old.id, offset_t=0)
    fleet.live_out()


def test_a_revocation_during_a_change_of_algorithm_costs_no_token() -> None:
    fleet = by_default()
    old, known = fleet.newest.of(Kind.SIGNING)
    fleet.command(lambda keyset, new, now: rotate(keyset, new, now=now, alg="ES256"), offset_t=0)
    fleet.advance(fleet.lifecycle.lead_s // 2)
    revoke_one(fleet, old.id, offset_t=fleet.skew_t)
    assert fleet.newest.active(Kind.SIGNING, now=fleet.clock(fleet.now_t, 0)).id == known.id
    assert not fleet.early
    fleet.live_out()


def test_of_two_revocations_by_clocks_that_differ_one_key_is_left_to_sign_for_good() -> None:
    fleet = by_default()
    first, second = (key.id for key in fleet.newest.of(Kind.SIGNING))
    fleet.command(rotated, offset_t=fleet.skew_t)
    revoke_one(fleet, second, offset_t=fleet.skew_t)
    revoke_one(fleet, first, offset_t=0)
    fleet.live_out()
