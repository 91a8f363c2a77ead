"""The keys of one generation, loaded and ready: what signs, verifies, seals and opens at a given second."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from authsvc.errors import KeysError, SealBroken
from authsvc.jwk import PrivateKey
from authsvc.keyset import KeyRecord, Keyset, Kind, State
from authsvc.sealing import SealingKey
from authsvc.tokens import SigningKey, VerificationKey, proves


@dataclass(frozen=True, slots=True)
class Keyring:
    """A manifest with the private parts that its states need. Immutable: a new generation is a new keyring."""

    keyset: Keyset
    private_keys: Mapping[str, PrivateKey] = field(repr=False)  # by kid
    secret_keys: Mapping[str, bytes] = field(repr=False)  # sealing and index keys, by id
    _signing_records: Mapping[str, KeyRecord] = field(init=False, repr=False, compare=False)
    _sealing_keys: Mapping[str, SealingKey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_signing_records", {key.id: key for key in self.keyset.of(Kind.SIGNING)})
        records = [key for key in self.keyset.of(Kind.SEALING) if key.id in self.secret_keys]
        object.__setattr__(
            self, "_sealing_keys", {key.id: SealingKey(key.id, self.secret_keys[key.id]) for key in records}
        )

    @property
    def epoch(self) -> object:
        return self

    def ask(self, *, issued_at: int) -> None:
        """There is nobody who would know more keys (see verifier.sources.KeySource)."""

    def signing_key(self, *, now: int) -> SigningKey:
        """Raises: KeysError if no key is active."""
        record = self.keyset.active(Kind.SIGNING, now=now)
        if record.id not in self.private_keys:
            # Loaded when it was retiring, and active again: by a clock that was set back.
            raise KeysError(f"the private part of {record.id} is gone: check this machine's clock")
        return SigningKey(alg=record.alg, kid=record.id, key=self.private_keys[record.id])

    def prove_signing(self, *, now: int) -> str:
        """Sign something with the active key and check it with its published half. Returns the kid.

        Raises: KeysError if there is no active key or the halves do not fit.
        """
        key = self.signing_key(now=now)
        published = self.find(key.kid, now=now)
        if published is None or not proves(key, published):
            raise KeysError(f"signing key {key.kid} does not sign")
        return key.kid

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        """A published key, or a revoked one: a genuine token under that is told so."""
        record = self._signing_records.get(unverified_kid)
        if record is None or record.jwk is None:
            return None
        state = record.state(now=now)
        # Revoked is revoked whatever our clock says, also where another host's, ahead of ours, had published the key.
        if state is not State.REVOKED and (state is State.REMOVED or now < record.publish_at):
            return None
        return VerificationKey(record.alg, record.id, record.jwk.key, revoked=state is State.REVOKED)

    def jwks(self, *, now: int) -> dict[str, Any]:
        """The JWKS document at `now`: public members alone (RFC 7517, 5). Never empty: the active key is in it."""
        return {"keys": [record.jwk.as_dict() for record in self.keyset.published(now=now) if record.jwk]}

    def published_algorithms(self, *, now: int) -> tuple[str, ...]:
        return tuple(sorted({record.alg for record in self.keyset.published(now=now)}))

    def sealing_key(self, *, now: int) -> SealingKey:
        """Raises: KeysError if no key is active."""
        record = self.keyset.active(Kind.SEALING, now=now)
        if record.id not in self.secret_keys:
            raise KeysError(f"the private part of {record.id} is gone: check this machine's clock")
        return self._sealing_keys[record.id]

    def opening_key(self, key_id: str, *, now: int) -> SealingKey:
        """The key that an existing row was sealed under. Raises: SealBroken if it is gone or revoked."""
        for record in self.keyset.of(Kind.SEALING):
            if record.id != key_id or record.id not in self.secret_keys:
                continue
            if record.state(now=now) in (State.PENDING, State.ACTIVE, State.RETIRING):
                return self._sealing_keys[record.id]
        raise SealBroken("sealed under a key that is gone")

    def pseudonym(self, appid: str, openid: str) -> str:
        """Sixteen hex digits that stand for a user in logs: the same for the same user, and no way back without
        the index key."""
        return self._keyed_hash("log", appid, openid)[:16]

    def user_digest(self, appid: str, openid: str) -> str:
        """32 hex digits (128 bits) that stand for a user in the side store."""
        return self._keyed_hash("store", appid, openid)[:32]

    def index_proof(self) -> str:
        """Sixteen hex digits by which a store knows the index key that its hashes were made under."""
        return self._keyed_hash("index key", "", "")[:16]

    def _keyed_hash(self, use: str, appid: str, openid: str) -> str:
        record = next(iter(self.keyset.of(Kind.INDEX)))
        message = f"{use} {len(appid)} {appid} {openid}".encode()
        return hmac.new(self.secret_keys[record.id], message, hashlib.sha256).hexdigest()
