"""A fleet in simulated time: hosts whose clocks differ, workers that see a manifest late, verifiers that keep the JWKS
for as long as they may.

Real time is counted in ticks, `per_s` to the second; whatever ends in `_t` is in ticks. No host has it: a host's clock
is real time and its offset, cut to whole seconds. All offsets lie between 0 and the skew.

The fleet does not draw moments by lot. Between two commands whatever a worker does is constant but for the moments at
which a manifest reaches it or its clock reaches a time in that, so the product is asked at both ends of every such
stretch, and stretches are compared whole:

    A verifier may use at T any copy that was served from T - reach to T. So a token that was signed at S is accepted by
    all of them until its end E if, and only if, every JWKS served from S - reach to E has its key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from authsvc.errors import KeysError, SealBroken, TokenError
from authsvc.jwk import PrivateKey, PublicJwk, public_jwk
from authsvc.keyfiles import KeyFolder
from authsvc.keyparts import generate_key
from authsvc.keyreport import changes, next_step, problems
from authsvc.keyring import Keyring
from authsvc.keyset import KeyRecord, Keyset, Kind, Lifecycle, Purpose, new_keyset
from authsvc.manifest import dump_manifest, parse_manifest
from authsvc.rotation import NewKeys, prune
from authsvc.tokens import JwkSet, VerificationKeys, open_token, sign_token
from tests.support.clock import NOW
from tests.support.keys import CLAIMS, POLICY

Command: TypeAlias = Callable[[Keyset, NewKeys, int], Keyset]
"""A transition; the last argument is the clock of the host that runs it."""

Stretch: TypeAlias = tuple[int, int]
"""From the first tick to the last, both in it."""


class Hurry(Enum):
    """Whether a command may let a key act that not everybody can know."""

    NO = auto()
    IF_NEEDED = auto()  # a revocation, if no key waits that everybody knows
    YES = auto()


class Violation(AssertionError):
    """What the fleet promises does not hold."""


class TokenRefused(Violation):
    """A genuine, living token, and a verifier within the policy that refuses it."""


class RowLost(Violation):
    """A living row of the side store, and a worker that cannot open it."""


class PartMissed(Violation):
    """A private part that a worker needs, and that another host may have destroyed."""


@dataclass(slots=True)
class Worker:
    """One process. Its clock is that of its host."""

    offset_t: int
    delay_t: int  # from a change of the manifest until it acts on it
    up_at_t: int = 0
    seen: int = 0  # the manifest it read when it was started


@dataclass(frozen=True, slots=True)
class Issued:
    token: str
    kid: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Version:
    """A manifest as it was written."""

    written_at_t: int
    ring: Keyring

    @property
    def keyset(self) -> Keyset:
        return self.ring.keyset


@dataclass(frozen=True, slots=True)
class Doing:
    """What a worker does at some second of its clock."""

    published: frozenset[str]
    signs: str
    seals: str
    opens: frozenset[str]


_Served: TypeAlias = tuple[int, int, int, frozenset[str]]
"""From the first tick to the last, of which manifest, these kids."""

_Opened: TypeAlias = tuple[int, int, Worker, int, frozenset[str]]
"""From the first tick to the last, by whom with which manifest, rows under these keys."""


@functools.cache
def _key(alg: str, number: int) -> tuple[PrivateKey, PublicJwk]:
    # Only kid and alg matter to the lifecycle: the keys of one example serve the next one again.
    while True:
        key = generate_key(alg)
        jwk = public_jwk(key.public_key())
        if not jwk.kid.startswith("-"):  # as the key folder does
            return key, jwk


class _PooledKeys:
    """Keys for the transitions of one fleet; none of them comes twice."""

    def __init__(self) -> None:
        self.private_keys: dict[str, PrivateKey] = {}
        self.secret_keys: dict[str, bytes] = {}

    def signing(self, alg: str) -> PublicJwk:
        key, jwk = _key(alg, len(self.private_keys))
        self.private_keys[jwk.kid] = key
        return jwk

    def secret(self, kind: Kind) -> str:
        key_id = f"{len(self.secret_keys):08x}"
        self.secret_keys[key_id] = bytes(32)
        return key_id


class Fleet:
    """Workers at every extreme of clock and delay, and whoever else is given; their verifiers' clocks are as far apart.

    The limits of what is promised: a token under a revoked key may be refused from the revocation on; one under a key
    that was to sign before its lead, until that is over; a row under a key that took a revoked one's place cannot be
    opened where the revocation is not known yet.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        *,
        alg: str = "EdDSA",
        per_s: int = 1,
        begins_t: int = 0,
        offset_t: int = 0,
        slowest_t: int | None = None,
        more: Iterable[Worker] = (),
        is_parsed: bool = True,
    ) -> None:
        """`offset_t` is that of the host which makes the first keys. `is_parsed`: read every manifest back, as workers
        do; not for policies that would be refused then."""
        self.lifecycle = lifecycle
        self.per_s = per_s
        self.skew_t = lifecycle.skew_s * per_s
        # Not the product's own sums: a term that is forgotten there must not be forgotten here.
        cached_s = lifecycle.jwks_max_age_s + lifecycle.jwks_stale_while_revalidate_s + lifecycle.verifier_cache_s
        self.reach_t = cached_s * per_s
        spread_t = (lifecycle.reload_s + lifecycle.replication_s) * per_s
        self.slowest_t = spread_t if slowest_t is None else slowest_t
        self.now_t = NOW * per_s + begins_t
        self.new = _PooledKeys()
        self._is_parsed = is_parsed
        first = new_keyset(
            purpose=Purpose.PRODUCTION,
            lifecycle=lifecycle,
            active=self.new.signing(alg),
            standby=self.new.signing(alg),
            sealing_id=self.new.secret(Kind.SEALING),
            index_id=self.new.secret(Kind.INDEX),
            now=self.clock(self.now_t, offset_t),
        )
        self.versions: list[Version] = []
        self.early: set[str] = set()  # keys that were to act before everybody could know them
        self.revoked: set[str] = set()
        self.first_written_t: dict[str, int] = {}
        self._ids: set[str] = set()
        # Of what is alive: where a JWKS without the key, or a worker without it, would be a loss.
        self._tokens: dict[str, list[Stretch]] = {}
        self._rows: dict[str, list[Stretch]] = {}  # to the last tick by the clock that is last
        self._write(first)
        extremes = (Worker(o, d) for o in {0, self.skew_t} for d in {0, self.slowest_t})
        self.workers = [*extremes, *more]
        for worker in self.workers:
            # It does not start before there is a manifest, and a key that is active by its clock.
            active_at_t = first.updated_at * per_s - worker.offset_t
            worker.up_at_t = max(self.now_t + worker.delay_t, active_at_t)
        self._served: list[_Served] = []
        self._destroyed_at_t: dict[str, int] = {}
        self._doing: dict[tuple[int, int], Doing] = {}

    # ---- what happens ----

    def clock(self, at_t: int, offset_t: int) -> int:
        """Unix seconds, as `authsvc.clock` gives them: cut, not rounded."""
        return (at_t + offset_t) // self.per_s

    @property
    def newest(self) -> Keyset:
        return self.versions[-1].keyset

    def command(self, transition: Command, *, offset_t: int, hurry: Hurry = Hurry.NO) -> bool:
        """Run it on a host with this clock. False if there was nothing to do."""
        before, now = self.newest, self.clock(self.now_t, offset_t)
        KeyFolder(Path("keys"))._check_clock(before, now=now)
        after = transition(before, self.new, now)
        self._check_change(before, after, now)
        if after is before:
            return False
        self._note_early(before, after, hurry)
        self._write(after)
        return True

    def restart(self, worker: Worker, *, delay_t: int) -> None:
        """The worker reads whatever has reached its host, where changes take `delay_t`."""
        found = [number for number, v in enumerate(self.versions) if v.written_at_t + delay_t <= self.now_t]
        worker.seen = max([worker.seen, *found])

    def advance(self, ticks: int) -> None:
        """Let time pass, and check whatever every worker does in it against everything that is alive.

        Raises: Violation.
        """
        start_t, end_t = self.now_t, self.now_t + ticks
        if not ticks:
            return
        self.now_t = end_t
        self._destroy(start_t, end_t)
        # Whatever ended before can neither be served nor shown any more.
        self._served = [s for s in self._served if s[1] >= start_t - self.reach_t]
        tokens = {kid: alive for kid, needs in self._tokens.items() if (alive := [n for n in needs if n[1] >= start_t])}
        rows = {i: alive for i, needs in self._rows.items() if (alive := [n for n in needs if n[1] >= start_t])}
        new_tokens: dict[str, list[Stretch]] = {}
        served: list[_Served] = []
        opened: list[_Opened] = []
        for worker in self.workers:
            for a, b, version in self._stretches(worker, start_t, end_t):
                doing = self._constant(worker, a, b, version)
                served.append((a, b, version, doing.published))
                opened.append((a, b, worker, version, doing.opens))
                lifecycle = self.versions[version].keyset.lifecycle
                self._check_parts(doing, a, b)
                token = self._token(doing.signs, a, b, self.clock(b, worker.offset_t) + lifecycle.ttl_max_s)
                if token is not None:
                    _join(new_tokens.setdefault(doing.signs, []), token)
                if doing.seals not in self.revoked:
                    expires_at = self.clock(b, worker.offset_t) + lifecycle.session_key_ttl_max_s
                    _join(rows.setdefault(doing.seals, []), (a, expires_at * self.per_s - 1))
        for kid, needs in new_tokens.items():
            self._check_served(kid, needs, self._served)
            for need in needs:
                _join(tokens.setdefault(kid, []), need)
        for kid, needs in tokens.items():
            self._check_served(kid, needs, served)
        for key_id, row_needs in rows.items():
            self._check_opened(key_id, row_needs, opened)
        self._served += served
        self._tokens, self._rows = tokens, rows

    def is_up(self, worker: Worker) -> bool:
        return worker.up_at_t <= self.now_t

    def ring(self, worker: Worker) -> Keyring:
        """The keys that are in force in this worker now."""
        return self.versions[self._version_at(worker, self.now_t)].ring

    def jwks(self, worker: Worker) -> JwkSet:
        """The JWKS that this worker serves now, as a verifier reads it."""
        return JwkSet(self.ring(worker).jwks(now=self.clock(self.now_t, worker.offset_t)))

    def sign(self, worker: Worker) -> Issued:
        """A real token that this worker issues now."""
        ring, now = self.ring(worker), self.clock(self.now_t, worker.offset_t)
        key, expires_at = ring.signing_key(now=now), now + ring.keyset.lifecycle.ttl_max_s
        claims = replace(CLAIMS, issued_at=now, expires_at=expires_at, auth_time=now)
        return Issued(sign_token(claims, key, typ="at+jwt"), key.kid, expires_at)

    def show(self, signer: Worker, server: Worker, *, offset_t: int) -> None:
        """A real token, shown to a verifier with this clock and a fresh JWKS, and to the service itself.

        Raises: Violation.
        """
        if not (self.is_up(signer) and self.is_up(server)):
            return
        issued, ring = self.sign(signer), self.ring(server)
        clocks = [self.clock(self.now_t, offset) for offset in (offset_t, server.offset_t)]
        doors: tuple[VerificationKeys, ...] = (self.jwks(server), ring)
        found = [_outcome(issued.token, door, now=now) for door, now in zip(doors, clocks, strict=True)]
        known = ring.keyset.key(issued.kid)
        if known is not None and known.revoked_at is not None:
            expected = ["invalid", "revoked"]
        elif issued.kid in self.revoked or self._is_early(issued.kid):
            return
        else:
            # With a life below the skew it may have ended already by a clock that is ahead.
            expected = ["" if now < issued.expires_at else "expired" for now in clocks]
        if found != expected:
            raise TokenRefused(f"tokens under {issued.kid} became {found}, not {expected}; {self._story()}")

    def _is_early(self, kid: str) -> bool:
        return kid in self.early and self.now_t < self.first_written_t[kid] + self.lifecycle.lead_s * self.per_s

    def live_out(self) -> None:
        """Until all that is set in motion has happened, and every token and row from before that has ended; with the
        fastest host clearing away whatever it may."""
        lifecycle = self.newest.lifecycle
        times = [time for key in self.newest.keys for time in self._times(key)]
        longest_s = max(lifecycle.ttl_max_s, lifecycle.session_key_ttl_max_s)
        last_t = max(self.now_t, max(times) * self.per_s) + longest_s * self.per_s + self.skew_t
        while self.now_t <= last_t:
            ends = [key.remove_at * self.per_s - self.skew_t for key in self.newest.keys if key.remove_at is not None]
            self.advance(min([last_t + 1, *(end for end in ends if end > self.now_t)]) - self.now_t)
            self.command(lambda keyset, _, now: prune(keyset, now=now), offset_t=self.skew_t)

    # ---- moments ----

    def moments_t(self) -> list[int]:
        """When something is going to change on the host whose clock is first."""
        times = {t * self.per_s - self.skew_t for key in self.newest.keys for t in self._times(key)}
        return sorted(t for t in times if t > self.now_t)

    def _times(self, key: KeyRecord) -> Iterator[int]:
        times = (key.publish_at, key.activate_at, key.retire_at, key.remove_at, key.part_ends_at(self.lifecycle))
        return (time for time in times if time is not None)

    def _stretches(self, worker: Worker, start_t: int, end_t: int) -> Iterator[tuple[int, int, int]]:
        """First tick, last tick and manifest of each stretch in which the worker does the same all the time."""
        start_t = max(start_t, worker.up_at_t)
        cuts = {start_t, end_t}
        reached = [v.written_at_t + worker.delay_t for v in self.versions]
        cuts.update(reached)
        seen = {self._version_at(worker, t) for t in (start_t, *reached) if t < end_t}
        for version in seen:
            keyset = self.versions[version].keyset
            cuts.update(t * self.per_s - worker.offset_t for key in keyset.keys for t in self._times(key))
        inside = sorted(t for t in cuts if start_t <= t <= end_t)
        for a, b in pairwise(inside):
            yield a, b - 1, self._version_at(worker, a)

    def _version_at(self, worker: Worker, at_t: int) -> int:
        reached = (v.written_at_t + worker.delay_t <= at_t for v in self.versions)
        return max([worker.seen, *(number for number, has in enumerate(reached) if has)])

    # ---- what a worker does ----

    def _constant(self, worker: Worker, a: int, b: int, version: int) -> Doing:
        first, last = (self._at(version, self.clock(t, worker.offset_t)) for t in (a, b))
        if first != last:
            raise Violation(f"what a worker does changes between the times of its manifest: {first} to {last}")
        return first

    def _at(self, version: int, now: int) -> Doing:
        if (version, now) not in self._doing:
            self._doing[version, now] = self._look(self.versions[version].ring, now)
        return self._doing[version, now]

    def _look(self, ring: Keyring, now: int) -> Doing:
        keyset = ring.keyset
        try:
            KeyFolder(Path("keys"))._check_clock(keyset, now=now)
            signs, seals = ring.signing_key(now=now), ring.sealing_key(now=now)
        except KeysError as error:
            raise Violation(f"a worker within the skew has no keys: {error}") from error
        for key_id in (signs.kid, seals.id):
            record = keyset.key(key_id)
            if record is None or record.revoked_at is not None:
                raise Violation(f"{key_id} is in use, and revoked by the very manifest")
        published = {key.id: key.alg for key in keyset.published(now=now)}
        if published.get(signs.kid) != signs.alg:
            raise Violation(f"{signs.kid} signs and is not in the JWKS that is served beside it")
        if set(published) != {jwk["kid"] for jwk in ring.jwks(now=now)["keys"]}:
            raise Violation("the JWKS is not what is published")
        for key in keyset.of(Kind.SIGNING):
            found = ring.find(key.id, now=now)
            if (found is not None and not found.revoked) != (key.id in published):
                raise Violation(f"{key.id} is accepted here, and not what the JWKS says")
            if key.revoked_at is not None and key.id in published:
                raise Violation(f"{key.id} is revoked and stands in the JWKS")
        opens = []
        for key in keyset.of(Kind.SEALING):
            try:
                opens.append(ring.opening_key(key.id, now=now).id)
            except SealBroken:
                continue
        return Doing(frozenset(published), signs.kid, seals.id, frozenset(opens))

    # ---- what must hold ----

    def _token(self, kid: str, a: int, b: int, expires_at: int) -> Stretch | None:
        """Where every JWKS needs this key, for tokens that are signed under it from `a` to `b`."""
        if kid in self.revoked:
            return None
        if kid in self.early:
            # It may be refused as long as somebody may have a JWKS from before it was there.
            a = max(a, self.first_written_t[kid] + self.lifecycle.lead_s * self.per_s)
        # Dead on `exp`, by the verifier whose clock is last.
        until_t = expires_at * self.per_s - 1
        return (a - self.reach_t, until_t) if a <= until_t else None

    def _check_served(self, kid: str, needs: list[Stretch], served: list[_Served]) -> None:
        for a, b, version, published in served:
            if kid not in published:
                for since_t, until_t in needs:
                    if a <= until_t and since_t <= b:
                        when = self._span(max(a, since_t), min(b, until_t))
                        raise TokenRefused(
                            f"a living token under {kid} is refused by who has the JWKS that was served {when} from "
                            f"manifest {version}; {self._story()}"
                        )

    def _check_opened(self, key_id: str, needs: list[Stretch], opened: list[_Opened]) -> None:
        for since_t, until_t in needs:
            if key_id in self.early:
                # Made because another one was revoked: rows under it cannot be opened where that is not known yet.
                since_t = max(since_t, self.first_written_t[key_id] + self.slowest_t)
            if self._destroyed_at_t.get(key_id, until_t + 1) <= until_t:
                when = self._span(self._destroyed_at_t[key_id])
                raise PartMissed(f"{key_id} may be destroyed {when}, before its last row has ended; {self._story()}")
            for a, b, worker, version, opens in opened:
                if key_id not in opens and a <= until_t - worker.offset_t and since_t <= b:
                    when = self._span(max(a, since_t), min(b, until_t - worker.offset_t))
                    raise RowLost(
                        f"a living row under {key_id} cannot be opened {when} by a worker with manifest {version}; "
                        f"{self._story()}"
                    )

    def _check_parts(self, doing: Doing, a: int, b: int) -> None:
        """What the worker uses it may have to read again at any moment, if it is started anew."""
        for key_id in {doing.signs, doing.seals} - self.revoked:
            if self._destroyed_at_t.get(key_id, b + 1) <= b:
                raise PartMissed(
                    f"a worker uses {key_id} {self._span(a, b)}, whose private part another host may have destroyed "
                    f"{self._span(self._destroyed_at_t[key_id])}; {self._story()}"
                )

    def _destroy(self, start_t: int, end_t: int) -> None:
        """The host whose clock is first destroys, with any manifest that some host may still have."""
        for number, version in enumerate(self.versions):
            is_newest = number + 1 == len(self.versions)
            gone_t = end_t if is_newest else min(end_t, self.versions[number + 1].written_at_t + self.slowest_t)
            if gone_t <= start_t:
                continue
            for key in version.keyset.keys:
                ends_at = key.part_ends_at(version.keyset.lifecycle)
                if ends_at is None or key.id in self._destroyed_at_t:
                    continue
                at_t = max(start_t, ends_at * self.per_s - self.skew_t)
                now = self.clock(at_t, self.skew_t)
                if at_t < gone_t and not key.has_part(version.keyset.lifecycle, now=now):
                    self._destroyed_at_t[key.id] = at_t

    def _note_early(self, before: Keyset, after: Keyset, hurry: Hurry) -> None:
        # By the clock that was furthest when this was decided: a key that is to be active "since a moment ago" is not
        # used before.
        now = after.updated_at
        for key in after.keys:
            old = before.key(key.id)
            if key.activate_at is None or key.id in self.early or (old and old.activate_at == key.activate_at):
                continue
            signs = key.kind is Kind.SIGNING
            lead_s = self.lifecycle.lead_s if signs else self.lifecycle.sealing_lead_s
            if max(now, key.activate_at) >= key.created_at + lead_s:
                continue
            known = [k.id for k in before.pending(Kind.SIGNING, now=now) if self._is_known(k, after, now)]
            if hurry is Hurry.NO or (hurry is Hurry.IF_NEEDED and signs and known):
                raise Violation(f"{key.id} is to act before its lead, and {known} have waited for it; {self._story()}")
            self.early.add(key.id)

    def _is_known(self, key: KeyRecord, after: Keyset, now: int) -> bool:
        """Whether every verifier knows this key and will, though some worker has yet to hear of what is done now."""
        still = after.key(key.id)
        stays_s = self.lifecycle.reload_s + self.lifecycle.replication_s + self.lifecycle.skew_s
        return (
            still is not None
            and still.revoked_at is None
            and now >= key.created_at + self.lifecycle.lead_s
            and (key.remove_at is None or now + stays_s < key.remove_at)
        )

    def _check_change(self, before: Keyset, after: Keyset, now: int) -> None:
        if after is before:
            return
        if after.generation != before.generation + 1 or after.updated_at < before.updated_at:
            raise Violation(f"generation {before.generation} became {after.generation}; {self._story()}")
        changes(before, after, now=now)
        problems(after, now=now, rotate_every_s=1)
        for key in after.keys:
            next_step(key, after, now=now, rotate_every_s=1)
        if after.standby(now=now) is None:
            raise Violation(f"there is no standby; {self._story()}")
        for kind in (Kind.SIGNING, Kind.SEALING):
            # What is in use at any second from now on is a chain in which each hands over to the next.
            last = [k for k in after.of(kind) if k.activate_at is not None and k.retire_at is None and not k.revoked_at]
            if len(last) != 1:
                raise Violation(f"{len(last)} {kind} keys are to be in use for good; {self._story()}")

    def _write(self, keyset: Keyset) -> None:
        if self._is_parsed:
            try:
                parsed = parse_manifest(dump_manifest(keyset))
            except KeysError as error:
                raise Violation(f"a command wrote a manifest that nobody can read: {error}; {self._story()}") from error
            if parsed != keyset:
                raise Violation("a manifest read back is another one")
        ids = {key.id for key in keyset.keys}
        revoked = {key.id for key in keyset.keys if key.revoked_at is not None}
        made = ids - ({key.id for key in self.newest.keys} if self.versions else set())
        if made & self._ids:
            raise Violation("an id is used again")
        if not self.revoked <= revoked:
            raise Violation("a revocation is forgotten")
        self._ids |= made
        self.first_written_t.update(dict.fromkeys(made, self.now_t))
        self.revoked = revoked
        for key_id in revoked:
            # From here on nobody has to accept what is under it.
            self._tokens.pop(key_id, None)
            self._rows.pop(key_id, None)
        self.versions.append(Version(self.now_t, Keyring(keyset, self.new.private_keys, self.new.secret_keys)))

    # ---- words ----

    def _span(self, *ticks: int) -> str:
        return " to ".join(f"{t / self.per_s - NOW:+g} s" for t in ticks)

    def _story(self) -> str:
        return ", ".join(f"manifest {n} at {self._span(v.written_at_t)}" for n, v in enumerate(self.versions))


def _outcome(token: str, keys: VerificationKeys, *, now: int) -> str:
    """Why it is refused; "" if it is not."""
    try:
        open_token(token, keys, POLICY, now=now)
    except TokenError as error:
        return error.code
    return ""


def _join(stretches: list[Stretch], new: Stretch) -> None:
    """Add it, as one with those that it touches: there are few that way, however long the life."""
    a, b = new
    apart = []
    for start, end in stretches:
        if end < a - 1 or start > b + 1:
            apart.append((start, end))
        else:
            a, b = min(a, start), max(b, end)
    stretches[:] = [*apart, (a, b)]
