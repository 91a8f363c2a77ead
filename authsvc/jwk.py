"""Public keys as JWK (RFC 7517, 7518, 8037) and their thumbprints (RFC 7638)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authsvc.encoding import NotCanonical, base64url_decode, base64url_encode, canonical_json

ALGORITHMS: Final = ("ES256", "EdDSA", "RS256")
"""JWS algorithms we sign with, RFC 7518 and 8037 names. One key has one of them, for life (RFC 8725, 3.1)."""

RSA_MIN_BITS: Final = 2048
RSA_EXPONENT: Final = 65_537
_RSA_MAX_BITS: Final = 8192  # a larger modulus makes each verification a denial of service

PublicKey: TypeAlias = EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey
PrivateKey: TypeAlias = EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey

_MEMBERS: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class BadJwk(ValueError):
    """Not a public key that we can verify with. The message never quotes a member."""


@dataclass(frozen=True, slots=True)
class PublicJwk:
    """One public signing key: its one algorithm, its thumbprint as `kid`, and the key itself."""

    alg: str
    kid: str
    members: tuple[tuple[str, str], ...]  # the required members of RFC 7638, sorted by name
    key: PublicKey

    def as_dict(self) -> dict[str, str]:
        """The JWK as it stands in a JWKS: public members, `use`, `alg`, `kid`."""
        return {**dict(self.members), "use": "sig", "alg": self.alg, "kid": self.kid}


def public_jwk(key: PublicKey) -> PublicJwk:
    """The JWK of a key object. Raises: BadJwk for a curve or a size that we do not use."""
    if isinstance(key, EllipticCurvePublicKey):
        if not isinstance(key.curve, SECP256R1):
            raise BadJwk("ES256 is P-256 only")
        numbers = key.public_numbers()
        # RFC 7518, 6.2.1.2: coordinates have the full width of the curve, leading zeros included.
        x, y = (base64url_encode(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
        alg, members = "ES256", {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    elif isinstance(key, Ed25519PublicKey):
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        alg, members = "EdDSA", {"kty": "OKP", "crv": "Ed25519", "x": base64url_encode(raw)}
    else:
        rsa = key.public_numbers()
        if not RSA_MIN_BITS <= key.key_size <= _RSA_MAX_BITS or rsa.n % 2 == 0 or rsa.e != RSA_EXPONENT:
            raise BadJwk(f"an RSA key has {RSA_MIN_BITS} to {_RSA_MAX_BITS} bits and the exponent {RSA_EXPONENT}")
        alg, members = "RS256", {"kty": "RSA", "n": _uint(rsa.n), "e": _uint(rsa.e)}
    return PublicJwk(alg=alg, kid=thumbprint(members), members=tuple(sorted(members.items())), key=key)


def parse_public_jwk(jwk: Mapping[str, Any]) -> PublicJwk:
    """A JWK from outside. Unknown members are ignored (RFC 7517, 4).

    Raises: BadJwk for a private key, a type, curve or size we do not use, a point that is not on the curve, an `alg`
    or `use` that does not fit, a member that is not canonical, or a `kid` that is not the thumbprint.
    """
    if not isinstance(jwk, Mapping):
        raise BadJwk("not a JSON object")
    if _PRIVATE_MEMBERS & jwk.keys():
        raise BadJwk("a private key does not belong here")
    kty = jwk.get("kty")
    names = _MEMBERS.get(kty) if isinstance(kty, str) else None
    if names is None:
        raise BadJwk("unknown key type")
    members = {name: jwk.get(name) for name in names}
    if not all(isinstance(value, str) for value in members.values()):
        raise BadJwk("a required member is missing")
    try:
        parsed = public_jwk(_public_key(members))
    except BadJwk:
        raise
    except ValueError:  # NotCanonical, and what cryptography says of a bad point or a bad number
        raise BadJwk("not a valid public key") from None
    if dict(parsed.members) != members:
        raise BadJwk("not the canonical form of the key")
    if jwk.get("alg", parsed.alg) != parsed.alg or jwk.get("use", "sig") != "sig":
        raise BadJwk("alg or use does not fit the key")
    if jwk.get("kid", parsed.kid) != parsed.kid:
        raise BadJwk("kid is not the thumbprint of the key")
    return parsed


def thumbprint(members: Mapping[str, str]) -> str:
    """SHA-256 over the required members, base64url (RFC 7638, 3; RFC 8037, 2)."""
    return base64url_encode(hashlib.sha256(canonical_json(dict(members))).digest())


def _public_key(members: Mapping[str, Any]) -> PublicKey:
    match members["kty"], members.get("crv"):
        case "EC", "P-256":
            x, y = base64url_decode(members["x"]), base64url_decode(members["y"])
            if len(x) != 32 or len(y) != 32:
                raise NotCanonical("coordinates have 32 bytes")
            point = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), SECP256R1())
            return point.public_key()
        case "OKP", "Ed25519":
            return Ed25519PublicKey.from_public_bytes(base64url_decode(members["x"]))
        case "RSA", None:
            n, e = base64url_decode(members["n"]), base64url_decode(members["e"])
            if len(n) * 8 > _RSA_MAX_BITS:
                raise BadJwk("the modulus is too large")
            return RSAPublicNumbers(int.from_bytes(e, "big"), int.from_bytes(n, "big")).public_key()
        case _:
            raise BadJwk("unknown curve")


def _uint(number: int) -> str:
    return base64url_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))
