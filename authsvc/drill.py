"""A rehearsal: a rotation and a revocation on a temporary copy of the key folder, in simulated time, with verifiers of
several caching habits. The copy has the times and the policy of the original and keys of its own, so that no private
part leaves its folder.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from authsvc.claims import Claims, Policy
from authsvc.errors import TokenError
from authsvc.keyfiles import KeyFolder
from authsvc.keyring import Keyring
from authsvc.keyset import Keyset, Kind
from authsvc.rotation import NewKeys, revoke, rotate
from authsvc.tokens import JwkSet, SigningKey, open_token, sign_token

_PHASES: Final = 8  # verifiers of each habit, which fetched at different times
_MOMENTS: Final = 2_000  # in which a token is shown, over the whole rehearsal
_LEAD_IN_S: Final = 600
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Habit:
    """How a verifier treats the JWKS. Seconds."""

    name: str
    keeps_s: int | None  # None: for good
    refetches: bool  # on an unknown kid
    cool_down_s: int = 0  # between two fetches for an unknown kid


HABITS: Final = (
    Habit("honours the JWKS's own max-age", 0, True, 30),
    Habit("PyJWT's PyJWKClient", 300, True, 30),
    Habit("jose, jwks-rsa (Node)", 600, True, 30),
    Habit("keyfunc (Go), hourly", 3_600, True, 300),
    Habit("go-oidc, fetches for an unknown kid alone", None, True),
    Habit("Envoy, every 10 min", 600, False),
    Habit("home-made, every 24 h", _DAY_S, False),
    Habit("reads the JWKS once", None, False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one habit, summed over its verifiers."""

    name: str
    within_policy: bool  # keeps keys no longer than the policy reckons with
    refused_by_rotation: int
    refused_by_revocation: int  # genuine tokens of the key that took over
    revoked_accepted_s: int | None  # how long the revoked key was accepted, at the worst; None: to the end


@dataclass(frozen=True, slots=True)
class Rehearsal:
    rotation_at: int  # when the standby signs
    tokens: int  # genuine ones shown to each verifier
    rows: tuple[Row, ...]

    @property
    def is_clean(self) -> bool:
        return not any(row.refused_by_rotation for row in self.rows if row.within_policy)


def rehearse(keyset: Keyset, *, now: int, seed: int, random_bytes: Callable[[int], bytes]) -> Rehearsal:
    """Play both from `now` on. The same seed gives the same verifiers. Raises: KeysError if no copy can be made."""
    with tempfile.TemporaryDirectory(prefix="authsvc-drill-") as place:
        folder = KeyFolder(Path(place) / "keys")
        lookalike = _copy(keyset, folder, now=now, random_bytes=random_bytes)
        before = folder.load(now=now)
        rotated = _changed(folder, lambda k, new: rotate(k, new, now=now), before, now=now, random_bytes=random_bytes)
        scheduled = rotated.keyset.scheduled(Kind.SIGNING, now=now)
        rotation_at = now if scheduled is None else scheduled.activate_at or now
        # The revocation is of the key that signs today, with the keys as they are today.
        folder = KeyFolder(Path(place) / "again")
        _copy(lookalike, folder, now=now, random_bytes=random_bytes)
        again = folder.load(now=now)
        dead = again.keyset.active(Kind.SIGNING, now=now).id
        revoked = _changed(
            folder,
            lambda k, new: revoke(k, new, dead, now=now, reason="rehearsed"),
            again,
            now=now,
            random_bytes=random_bytes,
        )
        rotation = _Scene(before, rotated, now=now, ends_at=rotation_at + _tail_s(keyset))
        revocation = _Scene(again, revoked, now=now, ends_at=now + _tail_s(keyset))
        rows = []
        for habit in HABITS:
            chance = random.Random(f"{seed} {habit.name}")  # noqa: S311 - when a verifier has fetched is no secret
            rows.append(_play(habit, rotation, revocation, dead, chance))
        return Rehearsal(rotation_at, len(rotation.moments) * _PHASES, tuple(rows))


def _copy(keyset: Keyset, folder: KeyFolder, *, now: int, random_bytes: Callable[[int], bytes]) -> Keyset:
    """A folder with fresh keys in the places of those of `keyset`, at the same times."""
    alg = keyset.active(Kind.SIGNING, now=now).alg
    folder.init(
        alg=alg, purpose=keyset.purpose, lifecycle=keyset.lifecycle, now=keyset.updated_at, random_bytes=random_bytes
    )

    def transition(_: Keyset, new: NewKeys) -> Keyset:
        keys = []
        for key in keyset.keys:
            if key.revoked_at is not None:
                continue  # nobody uses it, and it would need a key made for it
            if key.kind is Kind.SIGNING:
                jwk = new.signing(key.alg)
                keys.append(replace(key, id=jwk.kid, jwk=jwk, part=1))
            else:
                keys.append(replace(key, id=new.secret(key.kind), part=1))
        return replace(keyset, keys=tuple(keys))

    return folder.change(transition, now=now, random_bytes=random_bytes).after


def _changed(
    folder: KeyFolder,
    transition: Callable[[Keyset, NewKeys], Keyset],
    before: Keyring,
    *,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> Keyring:
    folder.change(transition, now=now, random_bytes=random_bytes)
    return folder.load(now=now, known=before)


def _tail_s(keyset: Keyset) -> int:
    """Long enough for every cache within the policy to end, and every token of before."""
    lifecycle = keyset.lifecycle
    return lifecycle.spread_s + lifecycle.jwks_reach_s + lifecycle.ttl_max_s


class _Scene:
    """A service of two workers: one sees a change at once, the other as late as the policy allows."""

    def __init__(self, before: Keyring, after: Keyring, *, now: int, ends_at: int) -> None:
        self.before = before
        self.changed_at = now
        self.lifecycle = before.keyset.lifecycle
        self._after = after
        # Nobody has fetched keys from before there were any, and the present one signs since it does.
        self._first_at = min(key.publish_at for key in before.keyset.published(now=now))
        signs_since = before.keyset.active(Kind.SIGNING, now=now).activate_at or now
        self.starts_at = max(now - _LEAD_IN_S, signs_since)
        step_s = max((ends_at - self.starts_at) // _MOMENTS, 1)
        self.moments = range(self.starts_at, ends_at, step_s)
        self._opened: dict[tuple[str, tuple[str, ...]], bool] = {}

    def _ring(self, at: int, *, late: bool) -> Keyring:
        seen_at = self.changed_at + (self.lifecycle.spread_s if late else 0)
        return self._after if at >= seen_at else self.before

    def signer(self, at: int, *, late: bool) -> tuple[str, Keyring]:
        ring = self._ring(at, late=late)
        return ring.keyset.active(Kind.SIGNING, now=at).id, ring

    def jwks(self, at: int) -> tuple[Keyring, int]:
        """What the late worker serves, by way of a cache that keeps it as long as it may: how old it is at worst."""
        kept_s = self.lifecycle.jwks_max_age_s + self.lifecycle.jwks_stale_while_revalidate_s
        served_at = max(at - kept_s, self._first_at)
        return self._ring(served_at, late=True), served_at

    def accepts(self, kid: str, ring: Keyring, copy: Sequence[str], document: dict[str, Any], at: int) -> bool:
        """Whether a verifier with this copy of the JWKS takes a token that `kid` signed: by signing and opening one."""
        known = (kid, tuple(copy))
        if known not in self._opened:
            self._opened[known] = _opens(kid, ring, document, at)
        return self._opened[known]


class _Verifier:
    def __init__(self, habit: Habit, scene: _Scene, *, fetched_at: int) -> None:
        self._habit = habit
        self._scene = scene
        self._refetched_at = fetched_at
        self._fetch(fetched_at)

    def accepts(self, kid: str, ring: Keyring, *, at: int) -> bool:
        keeps_s = self._habit.keeps_s
        if keeps_s is not None and at >= self._fetched_at + keeps_s:
            self._fetch(at)
        if kid not in self._kids and self._habit.refetches and at >= self._refetched_at + self._habit.cool_down_s:
            self._refetched_at = at
            self._fetch(at)
        return bool(self._kids) and self._scene.accepts(kid, ring, self._kids, self._document, at)

    def _fetch(self, at: int) -> None:
        ring, served_at = self._scene.jwks(at)
        self._document = ring.jwks(now=served_at)
        self._kids = [jwk["kid"] for jwk in self._document["keys"]]
        self._fetched_at = at


def _play(habit: Habit, rotation: _Scene, revocation: _Scene, dead: str, chance: random.Random) -> Row:
    policy = rotation.lifecycle
    refused = [0, 0]
    accepted_until: int | None = revocation.changed_at
    for _ in range(_PHASES):
        for number, scene in enumerate((rotation, revocation)):
            phase_s = chance.randrange(max(min(habit.keeps_s or 1, _DAY_S), 1))
            verifier = _Verifier(habit, scene, fetched_at=scene.starts_at - phase_s)
            last_accepted = None
            for moment, at in enumerate(scene.moments):
                kid, ring = scene.signer(at, late=moment % 2 == 1)
                if kid != dead or number == 0:
                    refused[number] += not verifier.accepts(kid, ring, at=at)
                if number == 1 and verifier.accepts(dead, scene.before, at=at):
                    last_accepted = at
            if number == 1 and accepted_until is not None and last_accepted is not None:
                is_end = last_accepted == scene.moments[-1]
                accepted_until = None if is_end else max(accepted_until, last_accepted)
    return Row(
        name=habit.name,
        within_policy=habit.keeps_s is not None and habit.keeps_s <= policy.verifier_cache_s,
        refused_by_rotation=refused[0],
        refused_by_revocation=refused[1],
        revoked_accepted_s=None if accepted_until is None else accepted_until - revocation.changed_at,
    )


def _opens(kid: str, ring: Keyring, document: dict[str, Any], at: int) -> bool:
    if kid not in ring.private_keys:
        return False
    record = ring.keyset.key(kid)
    assert record is not None
    token = sign_token(_claims(at), SigningKey(record.alg, kid, ring.private_keys[kid]), typ="at+jwt")
    try:
        open_token(token, JwkSet(document), _POLICY, now=at)
    except TokenError:
        return False
    return True


_POLICY: Final = Policy(issuer="https://drill.invalid", audience="drill")


def _claims(at: int) -> Claims:
    return Claims(_POLICY.issuer, "drill", "oDrill", "wxdrill", at, at + 60, at, "jti", "sid")
