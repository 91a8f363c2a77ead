"""Throw-away keys and tokens, made anew in every run."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

from authsvc.claims import Claims, Policy
from authsvc.encoding import base64url_encode
from authsvc.errors import KeysUnavailable
from authsvc.jwk import PrivateKey, PublicJwk, public_jwk
from authsvc.keyfiles import KeyFolder
from authsvc.keyparts import generate_key
from authsvc.keyring import Keyring
from authsvc.keyset import Keyset, Kind, Lifecycle, Purpose, new_keyset
from authsvc.tokens import _ALGORITHMS
from tests.support.clock import NOW

ISSUER = "https://auth.example.com"
AUDIENCE = "api"
POLICY = Policy(issuer=ISSUER, audience=AUDIENCE)
CLAIMS = Claims(
    issuer=ISSUER,
    audience=AUDIENCE,
    openid="oABC-def_123",
    appid="wx1234567890abcdef",
    issued_at=NOW,
    expires_at=NOW + 7200,
    auth_time=NOW,
    jti="jti-1",
    sid="sid-1",
)


def key_folder(path: Path) -> KeyFolder:
    """A new one, on the disk."""
    folder = KeyFolder(path)
    folder.init(alg="ES256", purpose=Purpose.PRODUCTION, lifecycle=Lifecycle(), now=NOW, random_bytes=os.urandom)
    return folder


def keyring(alg: str = "ES256", *, made_at: int = NOW) -> Keyring:
    """A first generation, in memory; the same one for the same arguments."""
    return _keyring(alg, made_at)


@functools.cache
def _keyring(alg: str, made_at: int) -> Keyring:
    keys: dict[str, PrivateKey] = {}
    while len(keys) < 2:
        key = generate_key(alg)
        kid = public_jwk(key.public_key()).kid
        if not kid.startswith("-"):  # as the key folder does
            keys[kid] = key
    active, standby = (public_jwk(key.public_key()) for key in keys.values())
    secrets = {"5ea15ea1": b"s" * 32, "1dec1dec": b"i" * 32}
    keyset = new_keyset(
        purpose=Purpose.PRODUCTION,
        lifecycle=Lifecycle(),
        active=active,
        standby=standby,
        sealing_id="5ea15ea1",
        index_id="1dec1dec",
        now=made_at,
    )
    return Keyring(keyset, keys, secrets)


def header(ring: Keyring, **changes: Any) -> dict[str, Any]:
    key = ring.signing_key(now=NOW)
    return {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"} | changes


def payload(**changes: Any) -> dict[str, Any]:
    """The payload of CLAIMS, with some claims changed; None takes one away."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": CLAIMS.openid,
        "openid": CLAIMS.openid,
        "client_id": CLAIMS.appid,
        "iat": NOW,
        "exp": NOW + 7200,
        "auth_time": NOW,
        "jti": "jti-1",
        "sid": "sid-1",
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def signed(header_bytes: bytes | dict[str, Any], payload_bytes: bytes | dict[str, Any], key: PrivateKey) -> str:
    """A token with exactly these bytes, and a good signature over them."""
    parts = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in (header_bytes, payload_bytes)]
    signing_input = ".".join(map(base64url_encode, parts))
    alg = public_jwk(key.public_key()).alg
    return f"{signing_input}.{base64url_encode(_ALGORITHMS[alg].sign(signing_input.encode(), key))}"


def hmac_signed(header_value: dict[str, Any], payload_value: dict[str, Any], secret: bytes) -> str:
    signing_input = ".".join(base64url_encode(json.dumps(p).encode()) for p in (header_value, payload_value))
    return f"{signing_input}.{base64url_encode(hmac.new(secret, signing_input.encode(), hashlib.sha256).digest())}"


class NewTestKeys:
    """Keys for the transitions, without private parts: sealing keys are numbered, Ed25519 keys are quick to make."""

    def __init__(self) -> None:
        self._count = 0

    def signing(self, alg: str) -> PublicJwk:
        while True:
            jwk = public_jwk(generate_key(alg).public_key())
            if not jwk.kid.startswith("-"):
                return jwk

    def secret(self, kind: Kind) -> str:
        self._count += 1
        return f"{self._count:08x}"


def first_keyset(new: NewTestKeys, *, now: int, alg: str = "ES256", lifecycle: Lifecycle | None = None) -> Keyset:
    return new_keyset(
        purpose=Purpose.PRODUCTION,
        lifecycle=lifecycle or Lifecycle(),
        active=new.signing(alg),
        standby=new.signing(alg),
        sealing_id=new.secret(Kind.SEALING),
        index_id=new.secret(Kind.INDEX),
        now=now,
    )


class Down:
    """A source of keys that has none."""

    epoch = None

    def find(self, unverified_kid: str, *, now: int) -> None:
        return None

    def ask(self, *, issued_at: int) -> None:
        raise KeysUnavailable("the issuer is down", retry_after_s=7)
