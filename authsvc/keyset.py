"""The life of keys, pure: a key's state is a function of its times and the clock, so that every worker and every
host flips at the same instant without talking. `rotation` changes the times, `manifest` writes them down.

    pending ──activate_at──▶ active ──retire_at──▶ retiring ──remove_at──▶ removed        revoked: out at once
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Self

from authsvc.errors import KeysError
from authsvc.jwk import PublicJwk

SEALING_ALG: Final = "A256GCM"
INDEX_ALG: Final = "HS256"

TOKEN_TTL_LIMIT_S: Final = 86_400
"""The longest life of a token; a retired key has to stay published for as long."""

JWKS_STALE_IF_ERROR_S: Final = 3_600
"""How long a cache that cannot reach us may go on with the JWKS it has (RFC 5861, 4)."""

VERIFIER_LEAST_FRESH_S: Final = 30
"""For so long our own verifier goes on with a JWKS, however old the cache says it is that it came from."""


class Kind(StrEnum):
    SIGNING = "signing"  # signs tokens; its public half is in the JWKS
    SEALING = "sealing"  # seals session keys in the side store
    INDEX = "index"  # keyed hashes of openids; not rotated


class Purpose(StrEnum):
    """Neither service starts on the other's keys: whoever can mint sandbox codes can be anyone."""

    PRODUCTION = "production"
    SANDBOX = "sandbox"


class State(StrEnum):
    PENDING = "pending"  # published (the standby), does not sign yet
    ACTIVE = "active"  # signs or seals
    RETIRING = "retiring"  # verifies or opens what it made before
    REMOVED = "removed"  # forgotten; its kid is never used again
    REVOKED = "revoked"  # out at once; genuine tokens under it are refused as revoked


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The policy that the times of keys are computed from. Seconds. keys/README.md derives the sums below."""

    lead_s: int = 1_800  # from publishing a key to its first signature
    reload_s: int = 5  # until every worker of a host has seen a new manifest
    replication_s: int = 120  # until every host has it (a Kubernetes Secret takes that long)
    jwks_max_age_s: int = 300
    jwks_stale_while_revalidate_s: int = 60
    verifier_cache_s: int = 600  # what JOSE libraries add to the JWKS's own max-age
    skew_s: int = 60  # how far apart two clocks may be
    ttl_max_s: int = 7_200  # the longest token lifetime that was in force
    session_key_ttl_max_s: int = 259_200  # the longest life of a side-store row that was in force

    def __post_init__(self) -> None:
        if self.lead_s < self.minimum_lead_s:
            raise KeysError(f"a lead of {self.lead_s} s is below {self.minimum_lead_s} s, the least this policy allows")

    @property
    def spread_s(self) -> int:
        """From a change of the manifest until the last worker of the last host acts on it."""
        return self.reload_s + self.replication_s

    @property
    def jwks_reach_s(self) -> int:
        """How long after it was served a JWKS may still be in use, at a verifier that keeps it as long as it may."""
        return self.jwks_max_age_s + self.jwks_stale_while_revalidate_s + self.verifier_cache_s

    @property
    def minimum_lead_s(self) -> int:
        """With less, a verifier that keeps its JWKS as long as it may meets a kid that it cannot know yet."""
        return self.spread_s + self.jwks_reach_s + self.skew_s

    @property
    def last_use_s(self) -> int:
        """From a key's retirement until no worker signs with it, whenever that one learns of it, by any clock."""
        return self.spread_s + 2 * self.skew_s

    @property
    def signing_retention_s(self) -> int:
        """From a signing key's retirement until its last token has ended everywhere, with the slack of the lead."""
        return self.ttl_max_s + self.last_use_s + (self.lead_s - self.minimum_lead_s)

    @property
    def sealing_lead_s(self) -> int:
        """From making a sealing key to its first row: by then every worker can open it."""
        return self.spread_s + self.skew_s

    @property
    def sealing_retention_s(self) -> int:
        """From a sealing key's retirement until its last row has ended."""
        return self.session_key_ttl_max_s + self.skew_s


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key in the manifest. Times are Unix seconds; None: not decided yet."""

    kind: Kind
    id: str  # signing: the RFC 7638 thumbprint; others: eight hex digits
    alg: str
    created_at: int
    publish_at: int
    activate_at: int | None = None
    retire_at: int | None = None
    remove_at: int | None = None  # of a key that is never to become active: when it goes without having been used
    revoked_at: int | None = None
    reason: str | None = None  # why it was revoked
    jwk: PublicJwk | None = field(default=None, repr=False)  # signing keys only
    part: int = 1  # rises when the private part is written anew under another passphrase

    @property
    def file(self) -> str:
        """The name of the private part, in the same flat folder: a Kubernetes Secret knows no sub-folders."""
        start, end = {
            Kind.SIGNING: ("sign", "pem"),
            Kind.SEALING: ("seal", "key"),
            Kind.INDEX: ("index", "key"),
        }[self.kind]
        number = f".{self.part}" if self.part > 1 else ""
        return f"{start}-{self.id}{number}.{end}"

    def state(self, *, now: int) -> State:
        # Not `now >= revoked_at`: a host whose clock is behind must not go on with a stolen key for as long.
        if self.revoked_at is not None:
            return State.REVOKED
        if self.remove_at is not None and now >= self.remove_at:
            return State.REMOVED
        if self.activate_at is None or now < self.activate_at:
            return State.PENDING
        if self.retire_at is None or now < self.retire_at:
            return State.ACTIVE
        return State.RETIRING

    @property
    def is_discarded(self) -> bool:
        """A standby that another one has replaced; it goes without ever having been used."""
        return self.activate_at is None and self.remove_at is not None

    def part_ends_at(self, lifecycle: Lifecycle) -> int | None:
        """When the private part is to be destroyed (Unix seconds); None while that is not decided."""
        if self.revoked_at is not None:
            return self.revoked_at
        if self.kind is Kind.SIGNING and self.retire_at is not None:
            return self.retire_at + lifecycle.last_use_s
        if self.kind is Kind.SEALING and self.remove_at is not None:
            # A host whose clock is behind takes the key for one that opens rows, and does not start without it.
            return self.remove_at + lifecycle.skew_s
        return self.remove_at

    def has_part(self, lifecycle: Lifecycle, *, now: int) -> bool:
        """Whether the private part is to exist at `now`."""
        ends_at = self.part_ends_at(lifecycle)
        return self.revoked_at is None and (ends_at is None or now < ends_at)

    def needs_part(self, *, now: int) -> bool:
        """Whether the key is of no use without its private part: a retiring signing key only verifies."""
        used = (State.PENDING, State.ACTIVE, *((State.RETIRING,) if self.kind is not Kind.SIGNING else ()))
        return self.state(now=now) in used and not self.is_discarded


@dataclass(frozen=True, slots=True)
class Keyset:
    """What the manifest says. `generation` rises by one with every change."""

    generation: int
    purpose: Purpose
    updated_at: int
    lifecycle: Lifecycle
    keys: tuple[KeyRecord, ...]

    def of(self, kind: Kind) -> Iterator[KeyRecord]:
        return (key for key in self.keys if key.kind is kind)

    def key(self, key_id: str) -> KeyRecord | None:
        return next((key for key in self.keys if key.id == key_id), None)

    def active(self, kind: Kind, *, now: int) -> KeyRecord:
        """The key of this kind that signs or seals at `now`.

        Raises: KeysError if there is none; checked at start, so later only with a clock that was set back.
        """
        candidates = [key for key in self.of(kind) if key.state(now=now) is State.ACTIVE]
        if not candidates:
            raise KeysError(f"no {kind} key is active: check this machine's clock")
        # Should there be two, all workers choose the same.
        return max(candidates, key=lambda key: (key.activate_at or 0, key.id))

    def pending(self, kind: Kind, *, now: int) -> tuple[KeyRecord, ...]:
        """Keys that are not used yet, the one that was published first first."""
        found = (key for key in self.of(kind) if key.state(now=now) is State.PENDING)
        return tuple(sorted(found, key=lambda key: (key.publish_at, key.id)))

    def scheduled(self, kind: Kind, *, now: int) -> KeyRecord | None:
        """The key that a rotation under way has named, and whose time has not come yet."""
        return next((key for key in self.pending(kind, now=now) if key.activate_at is not None), None)

    def standby(self, *, now: int) -> KeyRecord | None:
        """The signing key that waits, published, for the next rotation."""
        waiting = (key for key in self.pending(Kind.SIGNING, now=now) if key.activate_at is None)
        return next((key for key in waiting if not key.is_discarded), None)

    def in_use(self, *, now: int) -> frozenset[tuple[str, int | None]]:
        """The keys that are in use or wait, with the times from which they are used: what rotations change, and what
        clearing away does not."""
        kept = (State.PENDING, State.ACTIVE)
        return frozenset((key.id, key.activate_at) for key in self.keys if key.state(now=now) in kept)

    def published(self, *, now: int) -> tuple[KeyRecord, ...]:
        """The signing keys that stand in the JWKS at `now`: the standby long before its first signature."""
        shown = (State.PENDING, State.ACTIVE, State.RETIRING)
        return tuple(k for k in self.of(Kind.SIGNING) if now >= k.publish_at and k.state(now=now) in shown)

    def revoked_lately(self, *, now: int) -> bool:
        """Whether a JWKS from before a revocation may still be around."""
        reach_s = self.lifecycle.spread_s + self.lifecycle.jwks_reach_s
        times = (key.revoked_at for key in self.of(Kind.SIGNING))
        return any(revoked_at is not None and now < revoked_at + reach_s for revoked_at in times)

    def changed(self, *, now: int, **members: Any) -> Self:
        """The next generation, with these members changed; itself if nothing is."""
        if all(getattr(self, name) == value for name, value in members.items()):
            return self
        # Two hosts' clocks may differ by the skew: the time of the last change never goes back.
        return replace(self, generation=self.generation + 1, updated_at=max(self.updated_at, now), **members)

    def with_lifetimes(self, *, token_ttl_s: int, session_key_ttl_s: int, now: int) -> Keyset:
        """The keyset that knows these lifetimes to be in force; itself if it already does.

        A key must outlive whatever it signed or sealed, so the largest lifetime that was ever in force counts, also
        for a key that a rotation has retired already and that some worker may still sign with.
        """
        lifecycle = replace(
            self.lifecycle,
            ttl_max_s=max(self.lifecycle.ttl_max_s, token_ttl_s),
            session_key_ttl_max_s=max(self.lifecycle.session_key_ttl_max_s, session_key_ttl_s),
        )
        if lifecycle == self.lifecycle:
            return self
        keys = tuple(_outliving(key, lifecycle) if _may_be_in_use(key, lifecycle, now) else key for key in self.keys)
        return self.changed(now=now, lifecycle=lifecycle, keys=keys)


def retired(key: KeyRecord, *, at: int, lifecycle: Lifecycle) -> KeyRecord:
    """The key, in use until `at` and kept for as long as what it made lives."""
    return _outliving(replace(key, retire_at=at, remove_at=None), lifecycle)


def _may_be_in_use(key: KeyRecord, lifecycle: Lifecycle, now: int) -> bool:
    return key.retire_at is not None and now <= key.retire_at + lifecycle.last_use_s


def _outliving(key: KeyRecord, lifecycle: Lifecycle) -> KeyRecord:
    if key.retire_at is None:
        return key
    kept_s = lifecycle.signing_retention_s if key.kind is Kind.SIGNING else lifecycle.sealing_retention_s
    return replace(key, remove_at=max(key.remove_at or 0, key.retire_at + kept_s))


def new_keyset(
    *,
    purpose: Purpose,
    lifecycle: Lifecycle,
    active: PublicJwk,
    standby: PublicJwk,
    sealing_id: str,
    index_id: str,
    now: int,
) -> Keyset:
    """The first generation: one signing key that signs at once, its standby, a sealing key, the index key."""
    return Keyset(
        generation=1,
        purpose=purpose,
        updated_at=now,
        lifecycle=lifecycle,
        keys=(
            signing_record(active, now=now, activate_at=now),
            signing_record(standby, now=now),
            secret_record(Kind.SEALING, sealing_id, now=now, activate_at=now),
            secret_record(Kind.INDEX, index_id, now=now, activate_at=now),
        ),
    )


def signing_record(jwk: PublicJwk, *, now: int, activate_at: int | None = None) -> KeyRecord:
    """A signing key made at `now`: published at once, or with its first signature if that comes before."""
    publish_at = now if activate_at is None else min(now, activate_at)
    return KeyRecord(Kind.SIGNING, jwk.kid, jwk.alg, now, publish_at, activate_at, jwk=jwk)


def secret_record(kind: Kind, key_id: str, *, now: int, activate_at: int) -> KeyRecord:
    """A sealing or index key made at `now`."""
    alg = SEALING_ALG if kind is Kind.SEALING else INDEX_ALG
    return KeyRecord(kind, key_id, alg, now, min(now, activate_at), activate_at)
