"""What there is to say of a keyset, pure: what a change did, what comes next and when, what needs the operator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from authsvc.keyset import (
    JWKS_STALE_IF_ERROR_S,
    VERIFIER_LEAST_FRESH_S,
    KeyRecord,
    Keyset,
    Kind,
    Lifecycle,
    State,
)
from authsvc.rotation import is_due


class What(StrEnum):
    """What happens to a key. The names stand in `--json` and do not change."""

    PUBLISHED = "published"  # in the JWKS from here on: the new standby
    TAKES_OVER = "takes_over"  # signs or seals from here on
    GOES_ON = "goes_on"  # was to retire, and does not
    RETIRES = "retires"  # signs or seals no more; what it made stays good
    PART_DESTROYED = "part_destroyed"  # its private part is gone for good
    REMOVED = "removed"  # no longer in the JWKS; nothing it made is alive
    PASSED_OVER = "passed_over"  # a standby that goes without having been used
    REVOKED = "revoked"  # out at once
    FORGOTTEN = "forgotten"  # its record has left the manifest
    REWRITTEN = "rewritten"  # its private part is under another passphrase


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens to a key, at a time (Unix seconds; None: when somebody decides it)."""

    key: KeyRecord
    what: What
    at: int | None


@dataclass(frozen=True, slots=True)
class Exposure:
    """Who still accepts a key that was revoked, and for how long (seconds; None: without an end of its own)."""

    who: str
    seconds: int | None
    note: str = ""


def changes(before: Keyset | None, after: Keyset, *, now: int) -> tuple[Step, ...]:
    """What a change of the manifest did, and what it set in motion, in the order in which it happens."""
    known = {key.id: key for key in before.keys} if before else {}
    steps = [step for key in after.keys for step in _steps(known.get(key.id), key, after.lifecycle)]
    kept = {key.id for key in after.keys}
    steps += [Step(key, What.FORGOTTEN, now) for key_id, key in known.items() if key_id not in kept]
    # With one time, in the order above: a key retires before its part is destroyed.
    return tuple(sorted(steps, key=lambda step: step.at or now))


def next_step(key: KeyRecord, keyset: Keyset, *, now: int, rotate_every_s: int) -> Step | None:
    """What happens to the key next, if nobody interferes; None if nothing does."""
    match key.state(now=now):
        case State.PENDING if key.is_discarded:
            return Step(key, What.PASSED_OVER, key.remove_at)
        case State.PENDING if key.activate_at is not None:
            return Step(key, What.TAKES_OVER, key.activate_at)
        case State.PENDING:
            return Step(key, What.TAKES_OVER, _standby_takes_over_at(key, keyset, now, rotate_every_s))
        case State.ACTIVE if key.kind is not Kind.INDEX:
            due_at = (key.activate_at or 0) + rotate_every_s if rotate_every_s else None
            return Step(key, What.RETIRES, key.retire_at or due_at)
        case State.RETIRING:
            part_ends_at = key.part_ends_at(keyset.lifecycle)
            if part_ends_at is not None and now < part_ends_at and part_ends_at != key.remove_at:
                return Step(key, What.PART_DESTROYED, part_ends_at)
            return Step(key, What.REMOVED, key.remove_at)
        case State.REMOVED:
            return Step(key, What.FORGOTTEN, None)
        case _:
            return None


def problems(keyset: Keyset, *, now: int, rotate_every_s: int) -> tuple[str, ...]:
    """What of the times and states needs the operator, each with its mend."""
    found = []
    behind_s = keyset.updated_at - now
    if behind_s > keyset.lifecycle.skew_s:
        found.append(f"the clock is {behind_s} s behind the last change of the manifest; mend: set the clock")
    for kind in (Kind.SIGNING, Kind.SEALING):
        if not any(key.state(now=now) is State.ACTIVE for key in keyset.of(kind)):
            found.append(f"no {kind} key is active; mend: check the clock, else restore the folder from its backup")
        elif is_due(keyset, kind, now=now, rotate_every_s=rotate_every_s):
            active = keyset.active(kind, now=now)
            command = "make rotate" if kind is Kind.SIGNING else "make rotate-store"
            days = (now - (active.activate_at or 0)) / 86_400
            found.append(
                f"the active {kind} key {active.id} has been in use for {days:.1f} days, longer than "
                f"AUTHSVC_ROTATE_EVERY; mend: {command}, or let the service run, which does it"
            )
    if keyset.standby(now=now) is None:
        found.append(
            "there is no standby, so neither a rotation nor a revocation could take effect at once; "
            "mend: authsvc keys tick (make keys-tick)"
        )
    return tuple(found)


def exposure(lifecycle: Lifecycle) -> tuple[Exposure, ...]:
    """Who accepts a revoked signing key for how long after the revocation, at the worst."""
    to_verifiers_s = lifecycle.spread_s + lifecycle.jwks_max_age_s + lifecycle.jwks_stale_while_revalidate_s
    past_outage_s = lifecycle.spread_s + lifecycle.jwks_max_age_s + JWKS_STALE_IF_ERROR_S + lifecycle.verifier_cache_s
    return (
        Exposure("this service, this host", lifecycle.reload_s, "each worker looks once a second"),
        Exposure("this service, other hosts", lifecycle.spread_s, "when the folder has reached them"),
        Exposure("authsvc's Verifier", to_verifiers_s + VERIFIER_LEAST_FRESH_S, "with its next refresh of the JWKS"),
        Exposure("JOSE libraries that cache", to_verifiers_s + lifecycle.verifier_cache_s, "JWKS and their own cache"),
        Exposure("caches that cannot reach the issuer", past_outage_s, "stale-if-error; purge them if they are yours"),
        Exposure("verifiers cut off from the issuer", None, "until their limit for a stale JWKS (max_stale)"),
        Exposure("verifiers that never fetch again", None, "until they are restarted, or given a new file"),
    )


def _standby_takes_over_at(key: KeyRecord, keyset: Keyset, now: int, rotate_every_s: int) -> int | None:
    actives = [k for k in keyset.of(Kind.SIGNING) if k.state(now=now) is State.ACTIVE]
    if not rotate_every_s or not actives or keyset.scheduled(Kind.SIGNING, now=now):
        return None
    due_at = max(k.activate_at or 0 for k in actives) + rotate_every_s
    return max(due_at, key.publish_at + keyset.lifecycle.lead_s)


_MOMENTS: Final = (
    ("activate_at", What.TAKES_OVER),
    ("retire_at", What.RETIRES),
)


def _steps(old: KeyRecord | None, new: KeyRecord, lifecycle: Lifecycle) -> list[Step]:
    if new.revoked_at is not None:
        return [] if old is not None and old.revoked_at is not None else [Step(new, What.REVOKED, new.revoked_at)]
    steps = []
    if old is None and new.kind is Kind.SIGNING and new.activate_at is None:
        steps.append(Step(new, What.PUBLISHED, new.publish_at))
    for name, what in _MOMENTS:
        at = getattr(new, name)
        if at is not None and (old is None or getattr(old, name) != at):
            steps.append(Step(new, what, at))
    if old is not None and old.retire_at is not None and new.retire_at is None:
        steps.append(Step(new, What.GOES_ON, None))
    if new.remove_at is not None and (old is None or old.remove_at != new.remove_at):
        if new.is_discarded:
            steps.append(Step(new, What.PASSED_OVER, new.remove_at))
        else:
            steps.append(Step(new, What.PART_DESTROYED, new.part_ends_at(lifecycle)))
            steps.append(Step(new, What.REMOVED, new.remove_at))
    if old is not None and old.part != new.part:
        steps.append(Step(new, What.REWRITTEN, None))
    return steps
