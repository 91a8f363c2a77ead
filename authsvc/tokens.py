"""Sign a token and open one: compact JWS (RFC 7515, 3.1) with one key, one algorithm, one spelling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from authsvc.claims import Claims, Header, Policy, check_claims, claims_of, parse_header, parse_payload, payload_of
from authsvc.encoding import NotCanonical, base64url_encode, base64url_part, canonical_json, split_base64url
from authsvc.errors import TokenError, TokenInvalid, TokenMalformed, TokenMissing, TokenRevoked
from authsvc.jwk import BadJwk, PrivateKey, PublicKey, parse_public_jwk, public_jwk

MAX_TOKEN_CHARS: Final = 8192
"""A longer token is not looked at: no proxy would carry it, and every check costs time in its length."""

_KID: Final = re.compile(r"[A-Za-z0-9_-]{43}")  # RFC 7638

_P256_BYTES: Final = 32
_SHA256: Final = SHA256()
_ECDSA_SHA256: Final = ECDSA(_SHA256)
_PKCS1: Final = PKCS1v15()

# PyJWT's algorithm objects, each pinned to its hash and curve; the key chooses among them, never the token.
_ALGORITHMS: Final[Mapping[str, Any]] = {
    "ES256": ECAlgorithm(ECAlgorithm.SHA256, SECP256R1),
    "EdDSA": OKPAlgorithm(),
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its one algorithm and its thumbprint."""

    alg: str
    kid: str
    key: PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key with its one algorithm. Under a revoked one a genuine token is refused by its own reason."""

    alg: str
    kid: str
    key: PublicKey = field(repr=False)
    revoked: bool = False


class UnknownKey(TokenInvalid):
    """No key with this kid is at hand.

    With `unverified_claims` everything that can be said without the key speaks for the token, so that it is worth a
    look whether there is such a key by now. A foreign or dead token, or one that no issuer of ours writes, has None.
    """

    def __init__(self, unverified_kid: str, *, unverified_claims: Claims | None, besides: str = "") -> None:
        """`besides`: what else is against the token."""
        super().__init__(f"no key with this kid ({besides})" if besides else "no key with this kid")
        self.unverified_kid = unverified_kid
        self.unverified_claims = unverified_claims


class VerificationKeys(Protocol):
    """Where the public keys come from."""

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        """The key that is trusted, or known as revoked, at `now` (Unix seconds); None if there is no such key."""


class JwkSet:
    """The keys of one JWKS document (RFC 7517, 5), as they stand in it; nothing in it is revoked."""

    def __init__(self, jwks: Mapping[str, Any]) -> None:
        """Keys of types that we do not know are passed over (RFC 7517, 5), and whatever else is no public key of ours;
        `passed_over` says why.

        Raises: BadJwk if nothing is left, or if two keys have one kid.
        """
        members = jwks.get("keys") if isinstance(jwks, Mapping) else None
        found: dict[str, VerificationKey] = {}
        passed_over: list[str] = []
        for jwk in members if isinstance(members, list) else []:
            try:
                parsed = parse_public_jwk(jwk)
            except BadJwk as error:
                passed_over.append(str(error))
                continue
            if parsed.kid in found:
                raise BadJwk("two keys have one kid")
            found[parsed.kid] = VerificationKey(alg=parsed.alg, kid=parsed.kid, key=parsed.key)
        if not found:
            raise BadJwk("no key in the set can be used")
        self._keys = found
        self.passed_over = tuple(passed_over)

    @classmethod
    def from_pem(cls, *pems: str | bytes) -> Self:
        """Keys from PEM texts, each one public key (SubjectPublicKeyInfo), as `authsvc keys export` writes them.

        Raises: BadJwk for anything else, a private key above all.
        """
        jwks = []
        for pem in pems:
            try:
                key = load_pem_public_key(pem.encode("ascii") if isinstance(pem, str) else pem)
            except (ValueError, UnsupportedAlgorithm):  # UnicodeEncodeError is a ValueError
                raise BadJwk("not a public key in PEM") from None
            if not isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey):
                raise BadJwk("a key of another type")
            jwks.append(public_jwk(key).as_dict())
        return cls({"keys": jwks})

    @property
    def epoch(self) -> object:
        return self

    def ask(self, *, issued_at: int) -> None:
        """There is nobody to ask for more keys (see verifier.sources.KeySource)."""

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:  # noqa: ARG002 - a set knows no time
        return self._keys.get(unverified_kid)


def sign_token(claims: Claims, key: SigningKey, *, typ: str) -> str:
    """The token that says these claims, signed with the key's own algorithm (RFC 7515, 5.1)."""
    header = canonical_json({"alg": key.alg, "kid": key.kid, "typ": typ})
    signing_input = f"{base64url_encode(header)}.{base64url_encode(payload_of(claims))}"
    signature = _ALGORITHMS[key.alg].sign(signing_input.encode("ascii"), key.key)
    return f"{signing_input}.{base64url_encode(signature)}"


def open_token(token: str, keys: VerificationKeys, policy: Policy, *, now: int) -> Claims:
    """The claims of a token that is genuine, for us, and alive at `now` (Unix seconds).

    Raises, first match: TokenMissing (empty), TokenMalformed (size, form, JSON, header members, duplicates),
    UnknownKey, TokenRevoked (good signature under a revoked key), TokenInvalid (alg, signature, typ, claims),
    TokenExpired.
    """
    if not isinstance(token, str):
        raise TokenMalformed("not a text")
    if not token:
        raise TokenMissing("no token")
    if len(token) > MAX_TOKEN_CHARS or token.count(".") != 2:
        raise TokenMalformed("not a compact JWS of at most 8 KiB")
    try:
        header_part, payload_part, signature_part = split_base64url(token)
        signature = base64url_part(signature_part)
        unverified_header = _unverified_header(header_part)
        unverified_payload = parse_payload(base64url_part(payload_part))
    except NotCanonical as error:
        raise TokenMalformed(str(error)) from None
    key = keys.find(unverified_header.kid, now=now)
    if key is None:
        raise _unknown_key(unverified_header, unverified_payload, policy, now=now)
    # RFC 8725, 3.1: the algorithm belongs to the key; the header may only agree.
    if unverified_header.alg != key.alg or key.alg not in policy.algorithms:
        raise TokenInvalid("alg is not the key's own, or not one of the policy's")
    if not verifies(key, header_part + b"." + payload_part, signature):
        raise TokenInvalid("the signature is not good")
    if key.revoked:
        raise TokenRevoked("the key of this token was revoked")
    return _accepted(unverified_header, unverified_payload, policy, now=now)


def verifies(key: VerificationKey, data: bytes, signature: bytes) -> bool:
    """Whether the signature is the key's, by the key's own algorithm (RFC 7518, 3; RFC 8037, 3.1).

    By way of cryptography itself: PyJWT's objects cost 5 % of a verification more, which is all that is done here.
    """
    public: Any = key.key  # of the type that goes with the algorithm: parse_public_jwk sees to it
    try:
        if key.alg == "ES256":
            # RFC 7518, 3.4: r and s at full width; anything else has more than one spelling.
            if len(signature) != 2 * _P256_BYTES:
                return False
            r, s = int.from_bytes(signature[:_P256_BYTES]), int.from_bytes(signature[_P256_BYTES:])
            public.verify(encode_dss_signature(r, s), data, _ECDSA_SHA256)
        elif key.alg == "EdDSA":
            public.verify(signature, data)
        else:
            public.verify(signature, data, _PKCS1, _SHA256)
    except InvalidSignature:
        return False
    return True


def proves(key: SigningKey, published: VerificationKey) -> bool:
    """Whether what `key` signs verifies under `published`."""
    probe = b"authsvc: the halves of this key fit"  # no ".": it can never be the signing input of a token
    signature = _ALGORITHMS[key.alg].sign(probe, key.key)
    return key.alg == published.alg and verifies(published, probe, signature)


# All tokens under one key have one header, to the byte.
@lru_cache(maxsize=64)
def _unverified_header(part: bytes) -> Header:
    return parse_header(base64url_part(part))


def _accepted(header: Header, payload: dict[str, Any], policy: Policy, *, now: int) -> Claims:
    if header.typ not in policy.typ:
        # RFC 8725, 3.11: without this, any other kind of JWT under our keys would pass as an access token.
        raise TokenInvalid("not an access token")
    claims = claims_of(payload)
    check_claims(claims, policy, now=now)
    return claims


def _unknown_key(header: Header, payload: dict[str, Any], policy: Policy, *, now: int) -> UnknownKey:
    if not _KID.fullmatch(header.kid) or header.alg not in policy.algorithms:
        return UnknownKey(header.kid, unverified_claims=None)
    try:
        claims = _accepted(header, payload, policy, now=now)
    except TokenError as error:
        # Mostly the whole reason: of another issuer nobody has the keys.
        return UnknownKey(header.kid, unverified_claims=None, besides=str(error))
    return UnknownKey(header.kid, unverified_claims=claims)
