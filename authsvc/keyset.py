"""The life of keys, pure: a key's state is a function of its times and the clock, so that every worker and every
host flips at the same instant without talking. Also the manifest, `keyset.json`, which says those times.

    pending ──activate_at──▶ active ──retire_at──▶ retiring ──remove_at──▶ removed        revoked: out at once
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, NoReturn

from authsvc.encoding import NotCanonical, canonical_json, parse_json_object
from authsvc.errors import KeysError
from authsvc.jwk import BadJwk, PublicJwk, parse_public_jwk

FORMAT: Final = "authsvc-keyset/1"

SEALING_ALG: Final = "A256GCM"
INDEX_ALG: Final = "HS256"

TOKEN_TTL_LIMIT_S: Final = 86_400
"""The longest life of a token; a retired key has to stay published for as long."""


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
    """The policy that the times of keys are computed from. Seconds."""

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
    def minimum_lead_s(self) -> int:
        """With less, a verifier that keeps its JWKS as long as it may meets a kid that it cannot know yet."""
        return (
            self.reload_s
            + self.replication_s
            + self.jwks_max_age_s
            + self.jwks_stale_while_revalidate_s
            + self.verifier_cache_s
            + self.skew_s
        )


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
    remove_at: int | None = None
    revoked_at: int | None = None
    reason: str | None = None  # why it was revoked
    jwk: PublicJwk | None = field(default=None, repr=False)  # signing keys only

    @property
    def file(self) -> str:
        """The name of the private part, in the same flat folder: a Kubernetes Secret knows no sub-folders."""
        match self.kind:
            case Kind.SIGNING:
                return f"sign-{self.id}.pem"
            case Kind.SEALING:
                return f"seal-{self.id}.key"
            case Kind.INDEX:
                return f"index-{self.id}.key"

    def state(self, *, now: int) -> State:
        if self.revoked_at is not None and now >= self.revoked_at:
            return State.REVOKED
        if self.activate_at is None or now < self.activate_at:
            return State.PENDING
        if self.retire_at is None or now < self.retire_at:
            return State.ACTIVE
        if self.remove_at is None or now < self.remove_at:
            return State.RETIRING
        return State.REMOVED


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

    def active(self, kind: Kind, *, now: int) -> KeyRecord:
        """The key of this kind that signs or seals at `now`.

        Raises: KeysError if there is none; checked at start, so later only with a clock that was set back.
        """
        candidates = [key for key in self.of(kind) if key.state(now=now) is State.ACTIVE]
        if not candidates:
            raise KeysError(f"no {kind} key is active: check this machine's clock")
        # Two only between the activation of a key and a repair of the manifest; all workers choose the same.
        return max(candidates, key=lambda key: (key.activate_at or 0, key.id))

    def published(self, *, now: int) -> tuple[KeyRecord, ...]:
        """The signing keys that stand in the JWKS at `now`: the standby long before its first signature."""
        shown = (State.PENDING, State.ACTIVE, State.RETIRING)
        return tuple(k for k in self.of(Kind.SIGNING) if now >= k.publish_at and k.state(now=now) in shown)

    def with_lifetimes(self, *, token_ttl_s: int, session_key_ttl_s: int, now: int) -> Keyset:
        """The keyset that knows these lifetimes to be in force; itself if it already does.

        A key must outlive whatever it signed or sealed, so the largest lifetime that was ever in force counts.
        """
        lifecycle = replace(
            self.lifecycle,
            ttl_max_s=max(self.lifecycle.ttl_max_s, token_ttl_s),
            session_key_ttl_max_s=max(self.lifecycle.session_key_ttl_max_s, session_key_ttl_s),
        )
        if lifecycle == self.lifecycle:
            return self
        return replace(self, lifecycle=lifecycle, generation=self.generation + 1, updated_at=now)


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

    def born(kind: Kind, key_id: str, alg: str, activate_at: int | None, jwk: PublicJwk | None = None) -> KeyRecord:
        return KeyRecord(kind, key_id, alg, created_at=now, publish_at=now, activate_at=activate_at, jwk=jwk)

    return Keyset(
        generation=1,
        purpose=purpose,
        updated_at=now,
        lifecycle=lifecycle,
        keys=(
            born(Kind.SIGNING, active.kid, active.alg, now, active),
            born(Kind.SIGNING, standby.kid, standby.alg, None, standby),
            born(Kind.SEALING, sealing_id, SEALING_ALG, now),
            born(Kind.INDEX, index_id, INDEX_ALG, now),
        ),
    )


def dump_manifest(keyset: Keyset) -> bytes:
    """The manifest's text: for people to read, with a checksum over its canonical form."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "generation": keyset.generation,
        "purpose": keyset.purpose.value,
        "updated_at": keyset.updated_at,
        "policy": {name.removesuffix("_s"): value for name, value in asdict(keyset.lifecycle).items()},
        "keys": [_dump_key(key) for key in keyset.keys],
    }
    document["sha256"] = _checksum(document)
    return json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"


def parse_manifest(data: bytes) -> Keyset:
    """Raises: KeysError, saying what is wrong, unless the manifest is whole and makes sense."""
    try:
        document = parse_json_object(data)
    except NotCanonical as error:
        raise KeysError(f"it is {error}") from None
    if document.get("format") != FORMAT:
        raise KeysError(f"its format is not {FORMAT}: another version of authsvc wrote it")
    claimed = document.pop("sha256", None)
    if claimed != _checksum(document):
        raise KeysError("its checksum does not fit: it was cut short or edited by hand")
    reader = _Reader(document)
    keyset = Keyset(
        generation=reader.count("generation"),
        purpose=Purpose(reader.choice("purpose", Purpose)),
        updated_at=reader.count("updated_at"),
        lifecycle=_parse_lifecycle(reader.members("policy")),
        keys=tuple(_parse_key(_Reader(key)) for key in reader.objects("keys")),
    )
    reader.end("format")
    _check_keyset(keyset)
    return keyset


# ---- the manifest's parts -----------------------------------------------------------------------

_KEY_ID: Final = re.compile(r"[0-9a-f]{8}")
# A leading "-" would be taken for an option by shells and proxies; such a key is thrown away when it is made.
_KID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{42}")

_TIMES: Final = ("activate_at", "retire_at", "remove_at", "revoked_at")


def _dump_key(key: KeyRecord) -> dict[str, Any]:
    return {
        "kind": key.kind.value,
        "id": key.id,
        "alg": key.alg,
        "file": key.file,
        "created_at": key.created_at,
        "publish_at": key.publish_at,
        **{name: getattr(key, name) for name in _TIMES},
        "reason": key.reason,
        **({"jwk": key.jwk.as_dict()} if key.jwk else {}),
    }


def _parse_lifecycle(members: dict[str, Any]) -> Lifecycle:
    reader = _Reader(members)
    values = {f.name: reader.count(f.name.removesuffix("_s")) for f in fields(Lifecycle)}
    reader.end()
    return Lifecycle(**values)


def _parse_key(reader: _Reader) -> KeyRecord:
    kind = Kind(reader.choice("kind", Kind))
    jwk = None
    if kind is Kind.SIGNING:
        try:
            jwk = parse_public_jwk(reader.members("jwk"))
        except BadJwk as error:
            raise KeysError(f"a jwk in it is unusable: {error}") from None
    key = KeyRecord(
        kind=kind,
        id=reader.text("id"),
        alg=reader.text("alg"),
        created_at=reader.count("created_at"),
        publish_at=reader.count("publish_at"),
        **{name: reader.optional_count(name) for name in _TIMES},
        reason=reader.optional_text("reason"),
        jwk=jwk,
    )
    expected_alg = jwk.alg if jwk else SEALING_ALG if kind is Kind.SEALING else INDEX_ALG
    if not (_KID if jwk else _KEY_ID).fullmatch(key.id) or (jwk and jwk.kid != key.id) or key.alg != expected_alg:
        raise KeysError("the id or alg of a key in it does not fit the key")
    if reader.text("file") != key.file:
        raise KeysError("the file of a key in it is not named after the key")
    reader.end()
    return key


def _check_keyset(keyset: Keyset) -> None:
    ids = [key.id for key in keyset.keys]
    if len(set(ids)) != len(ids):
        raise KeysError("two keys in it have one id")
    for kind in Kind:
        if not any(keyset.of(kind)):
            raise KeysError(f"it has no {kind} key")
    for key in keyset.keys:
        steps = [key.publish_at, key.activate_at, key.retire_at, key.remove_at]
        known = [step for step in steps if step is not None]
        in_order = all(earlier <= later for earlier, later in pairwise(known))
        # The steps that are decided come first: a key cannot retire that was never to become active.
        if not in_order or steps[: len(known)] != known or (key.retire_at is None) != (key.remove_at is None):
            raise KeysError(f"the times of key {key.id} are out of order")


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()


class _Reader:
    """Takes the members of an object one by one, each with its exact type, and knows what is left."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._left = dict(members)

    def text(self, name: str) -> str:
        value: str = self._take(name, _is_text, "a text")
        return value

    def optional_text(self, name: str) -> str | None:
        value: str | None = self._take(name, lambda v: v is None or _is_text(v), "a text")
        return value

    def count(self, name: str) -> int:
        value: int = self._take(name, _is_count, "a whole number")
        return value

    def optional_count(self, name: str) -> int | None:
        value: int | None = self._take(name, lambda v: v is None or _is_count(v), "a whole number")
        return value

    def choice(self, name: str, choices: type[StrEnum]) -> str:
        value: str = self._take(name, lambda v: _is_text(v) and v in set(choices), " or ".join(choices))
        return value

    def members(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = self._take(name, _is_object, "an object")
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = self._take(
            name, lambda v: type(v) is list and all(map(_is_object, v)), "a list of objects"
        )
        return value

    def end(self, *known: str) -> None:
        if self._left.keys() - set(known):
            # A member that we would drop at the next write may be one that somebody's safety hangs on.
            self._fail("it has members that this version of authsvc does not know")

    def _take(self, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self._left.pop(name, _MISSING)
        if value is _MISSING or not fits(value):
            self._fail(f"{name} in it is not {expected}")
        return value

    @staticmethod
    def _fail(message: str) -> NoReturn:
        raise KeysError(message)


_MISSING: Final = object()


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_object(value: object) -> bool:
    return type(value) is dict


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
