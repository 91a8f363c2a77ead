"""What may be done to keys, as pure transitions: a keyset and the time in, the next keyset out.

Each returns the very keyset it was given if there is nothing to do, so each may be run again. What changed is the
difference of the two; `keyreport` puts it into words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from authsvc.errors import KeysError
from authsvc.jwk import PublicJwk
from authsvc.keyset import KeyRecord, Keyset, Kind, State, retired, secret_record, signing_record


class NewKeys(Protocol):
    """Makes keys. Their private parts are not the transition's business."""

    def signing(self, alg: str) -> PublicJwk:
        """A key for one of jwk.ALGORITHMS."""

    def secret(self, kind: Kind) -> str:
        """The id of a new sealing or index key."""


def rotate(keyset: Keyset, new: NewKeys, *, now: int, alg: str | None = None, early: bool = False) -> Keyset:
    """Let the standby take over as soon as every verifier knows it, and publish the next standby.

    The standby signs from `max(now, publish_at + lead)`, which is now once it is as old as the lead. A standby of
    another algorithm than `alg` is replaced, and the new one's lead is waited out. While a rotation is under way
    nothing changes. `early` activates at once, though verifiers may not know the key yet.
    """
    now = _not_before(keyset, now)
    active = keyset.active(Kind.SIGNING, now=now)
    scheduled = keyset.scheduled(Kind.SIGNING, now=now)
    if scheduled is not None and not early:
        return keyset
    successor = scheduled or keyset.standby(now=now)
    wanted_alg = alg or (successor or active).alg
    if successor is None or (successor.alg != wanted_alg and scheduled is None):
        successor = signing_record(new.signing(wanted_alg), now=now)
    activate_at = now if early else max(now, successor.publish_at + keyset.lifecycle.lead_s)
    # Whoever else waits has been passed over. It stays until then: should the active key have to be revoked in the
    # meantime, it is the one that verifiers know.
    passed_over = [
        replace(key, publish_at=min(key.publish_at, activate_at), remove_at=activate_at)
        for key in keyset.pending(Kind.SIGNING, now=now)
        if key.id != successor.id
        and (key.alg != wanted_alg or key.is_discarded)
        and not _is_going(key, keyset, now=now)
    ]
    # Published by a host whose clock is ahead, and activated early by one whose clock is not: it is published by then.
    published_at = min(successor.publish_at, activate_at)
    changes = [*passed_over, replace(successor, publish_at=published_at, activate_at=activate_at, remove_at=None)]
    changes.append(retired(active, at=activate_at, lifecycle=keyset.lifecycle))
    after = _with_standby(_with(keyset, changes), new, now=now, alg=wanted_alg)
    return keyset.changed(now=now, keys=after.keys)


def rotate_store(keyset: Keyset, new: NewKeys, *, now: int) -> Keyset:
    """Make the next sealing key. It seals once every worker has it, so that none meets a row it cannot open.

    While such a change is under way nothing changes. Nothing is ever sealed anew: the old key goes with its last row.
    """
    now = _not_before(keyset, now)
    if keyset.scheduled(Kind.SEALING, now=now) is not None:
        return keyset
    activate_at = now + keyset.lifecycle.sealing_lead_s
    active = retired(keyset.active(Kind.SEALING, now=now), at=activate_at, lifecycle=keyset.lifecycle)
    fresh = secret_record(Kind.SEALING, new.secret(Kind.SEALING), now=now, activate_at=activate_at)
    return keyset.changed(now=now, keys=_with(keyset, [active, fresh]).keys)


def revoke(keyset: Keyset, new: NewKeys, key_id: str, *, now: int, alg: str | None = None, reason: str) -> Keyset:
    """Put one key out of use at once; if it was in use, another one takes over at the same moment.

    For a signing key that is the key which verifiers have known for longest. A rotation that had named the revoked key
    goes on with the next standby. Raises: KeysError for an id that is not there, and for the index key.
    """
    key = keyset.key(key_id)
    if key is None:
        raise KeysError(f"there is no key {key_id}; make keys-status shows the ids in full")
    if key.kind is Kind.INDEX:
        raise KeysError(
            "the index key cannot be revoked: it opens nothing, and hashes made under it have to stay found"
        )
    if key.revoked_at is not None:
        return keyset
    now = _not_before(keyset, now)
    was = key.state(now=now)
    after = _with(keyset, [replace(key, revoked_at=now, reason=reason)])
    if was is State.ACTIVE:
        after = _taken_over(after, new, key, now=now, alg=alg)
    elif was is State.PENDING and key.activate_at is not None:
        after = _with(after, [replace(after.active(key.kind, now=now), retire_at=None, remove_at=None)])
        signs = key.kind is Kind.SIGNING
        after = rotate(after, new, now=now, alg=alg) if signs else rotate_store(after, new, now=now)
    elif was is State.RETIRING:
        # On a host whose clock is behind it may be the active one still.
        active, at_once = after.active(key.kind, now=now), _at_once(keyset, now=now)
        if (active.activate_at or 0) > at_once:
            publish_at = min(active.publish_at, at_once)
            after = _with(after, [replace(active, publish_at=publish_at, activate_at=at_once)])
    after = _with_standby(after, new, now=now, alg=alg)
    return keyset.changed(now=now, keys=after.keys)


def revoke_all(keyset: Keyset, new: NewKeys, *, now: int, alg: str | None = None, reason: str) -> Keyset:
    """The folder was stolen: every key that signs, seals, verifies or waits is revoked, fresh ones work at once.

    Verifiers refuse the fresh key's tokens until they fetch the JWKS anew. The index key stays.
    """
    now = _not_before(keyset, now)
    # Not the active key's: there may be none, by a clock that was set back.
    wanted_alg = alg or max(keyset.of(Kind.SIGNING), key=lambda key: key.publish_at).alg
    burnt = [
        replace(key, revoked_at=now, reason=reason)
        for key in keyset.keys
        if key.kind is not Kind.INDEX and key.state(now=now) not in (State.REMOVED, State.REVOKED)
    ]
    at_once = _at_once(keyset, now=now)
    fresh = [
        signing_record(new.signing(wanted_alg), now=now, activate_at=at_once),
        secret_record(Kind.SEALING, new.secret(Kind.SEALING), now=now, activate_at=at_once),
    ]
    after = _with_standby(_with(keyset, [*burnt, *fresh]), new, now=now, alg=wanted_alg)
    return keyset.changed(now=now, keys=after.keys)


def tick(keyset: Keyset, new: NewKeys, *, now: int, rotate_every_s: int, alg: str | None = None) -> Keyset:
    """Whatever is due: rotations (`rotate_every_s` seconds after the last; 0: none), a missing standby, clearing away.

    Idempotent: of many workers and hosts that tick in turn, the first one finds something to do.
    """
    now = _not_before(keyset, now)
    after = keyset
    if is_due(after, Kind.SIGNING, now=now, rotate_every_s=rotate_every_s):
        after = rotate(after, new, now=now, alg=alg)
    if is_due(after, Kind.SEALING, now=now, rotate_every_s=rotate_every_s):
        after = rotate_store(after, new, now=now)
    after = prune(_with_standby(after, new, now=now, alg=alg), now=now)
    return keyset.changed(now=now, keys=after.keys)


def needs_tick(keyset: Keyset, *, now: int, since: int, rotate_every_s: int) -> bool:
    """Whether a `tick` at `now` has something to do that one at `since` had not; without making any key."""
    return (
        any(is_due(keyset, kind, now=now, rotate_every_s=rotate_every_s) for kind in (Kind.SIGNING, Kind.SEALING))
        or keyset.standby(now=now) is None
        or any(key.state(now=now) is State.REMOVED for key in keyset.keys)
        or has_ended_part(keyset, now=now, since=since)
    )


def has_ended_part(keyset: Keyset, *, now: int, since: int) -> bool:
    """Whether the time of a private part was over at some moment after `since`, until `now`."""
    ends = (key.part_ends_at(keyset.lifecycle) for key in keyset.keys)
    return any(ends_at is not None and since < ends_at <= now for ends_at in ends)


def is_due(keyset: Keyset, kind: Kind, *, now: int, rotate_every_s: int) -> bool:
    """Whether the active key of this kind has been in use for `rotate_every_s` seconds and none is named to follow."""
    active = keyset.active(kind, now=now)
    return rotate_every_s > 0 and active.retire_at is None and now >= (active.activate_at or 0) + rotate_every_s


def prune(keyset: Keyset, *, now: int) -> Keyset:
    """Forget the keys that are removed. Revoked ones stay: a genuine token under one is told so, and no backup may
    bring it back."""
    kept = tuple(key for key in keyset.keys if key.state(now=now) is not State.REMOVED)
    return keyset.changed(now=now, keys=kept)


def renewed_parts(keyset: Keyset, *, now: int) -> Keyset:
    """Every private part is to be written anew, into a file of another name: under another passphrase."""
    keys = tuple(
        replace(key, part=key.part + 1) if key.has_part(keyset.lifecycle, now=now) else key for key in keyset.keys
    )
    return keyset.changed(now=now, keys=keys)


# ---- steps that several transitions take --------------------------------------------------------


def _with(keyset: Keyset, changes: Iterable[KeyRecord]) -> Keyset:
    """The keyset with these records in the place of those of the same id, new ones at the end; the same generation."""
    by_id = {key.id: key for key in keyset.keys} | {key.id: key for key in changes}
    return replace(keyset, keys=tuple(by_id.values()))


def _with_standby(keyset: Keyset, new: NewKeys, *, now: int, alg: str | None) -> Keyset:
    """With a key in the JWKS that waits for the next rotation, wanted or not: there is always one."""
    if keyset.standby(now=now) is not None:
        return keyset
    last = keyset.scheduled(Kind.SIGNING, now=now) or keyset.active(Kind.SIGNING, now=now)
    return _with(keyset, [signing_record(new.signing(alg or last.alg), now=now)])


def _not_before(keyset: Keyset, now: int) -> int:
    """A command's clock, never behind that of the last one: it would see keys wait that another host has in use."""
    return max(now, keyset.updated_at)


def _is_going(key: KeyRecord, keyset: Keyset, *, now: int) -> bool:
    """Whether a host that does not know of a change at `now` may drop this key from its JWKS before it does."""
    return key.is_discarded and now >= (key.remove_at or 0) - keyset.lifecycle.sealing_lead_s


def _at_once(keyset: Keyset, *, now: int) -> int:
    # A host whose clock is behind would otherwise be without an active key for as long.
    return now - keyset.lifecycle.skew_s


def _taken_over(keyset: Keyset, new: NewKeys, revoked: KeyRecord, *, now: int, alg: str | None) -> Keyset:
    """The keyset in which another key has been active since a moment ago."""
    waiting = [key for key in keyset.pending(revoked.kind, now=now) if not _is_going(key, keyset, now=now)]
    at_once = _at_once(keyset, now=now)
    if waiting:
        first = waiting[0]
        successor = replace(first, publish_at=min(first.publish_at, at_once), activate_at=at_once, remove_at=None)
    elif revoked.kind is Kind.SIGNING:
        successor = signing_record(new.signing(alg or revoked.alg), now=now, activate_at=at_once)
    else:
        successor = secret_record(revoked.kind, new.secret(revoked.kind), now=now, activate_at=at_once)
    following = next((key.activate_at for key in waiting[1:] if key.activate_at is not None), None)
    if following is not None:
        successor = retired(successor, at=following, lifecycle=keyset.lifecycle)
    return _with(keyset, [successor])
