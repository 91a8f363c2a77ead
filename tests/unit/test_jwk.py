"""Public keys as JWK."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key

from authsvc.encoding import base64url_encode
from authsvc.jwk import ALGORITHMS, BadJwk, parse_public_jwk, public_jwk
from authsvc.keyparts import generate_key

RFC_7638_N = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMst"
    "n64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajr"
    "n1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
)


def test_the_kid_is_the_thumbprint_of_rfc_7638_and_rfc_8037() -> None:
    rsa = parse_public_jwk({"kty": "RSA", "n": RFC_7638_N, "e": "AQAB", "alg": "RS256"})
    assert rsa.kid == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    okp = parse_public_jwk({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    assert okp.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_read_back_from_its_jwk_is_the_same_key(alg: str) -> None:
    jwk = public_jwk(generate_key(alg).public_key())
    again = parse_public_jwk(jwk.as_dict())
    assert (again.alg, again.kid, again.members) == (alg, jwk.kid, jwk.members)
    assert again.as_dict() == jwk.as_dict()


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_jwk_shows_public_members_alone(alg: str) -> None:
    shown = public_jwk(generate_key(alg).public_key()).as_dict()
    assert shown.keys() <= {"kty", "crv", "x", "y", "n", "e", "use", "alg", "kid"}
    assert shown["use"] == "sig"


def _ec(**changes: object) -> dict[str, object]:
    return public_jwk(generate_key("ES256").public_key()).as_dict() | changes


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "AAAA"},
        {"kty": ["EC"]},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        _ec(d="AAAA"),
        _ec(x=None),
        _ec(x=1),
        _ec(x="AA"),
        _ec(x=base64url_encode(b"\x01" * 32)),
        _ec(alg="HS256"),
        _ec(alg="RS256"),
        _ec(use="enc"),
        _ec(kid="somebody-else"),
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": base64url_encode(b"\x09" + bytes(31))},
        {"kty": "RSA", "n": base64url_encode(b"\xff" * 128), "e": "AQAB"},
        {"kty": "RSA", "n": base64url_encode(b"\xff" * 2048), "e": "AQAB"},
        {"kty": "RSA", "n": RFC_7638_N, "e": "AAEAAQ"},
        {"kty": "RSA", "n": RFC_7638_N + "=", "e": "AQAB"},
        {"kty": "RSA", "n": RFC_7638_N, "e": "AA"},
        {"kty": "RSA", "n": RFC_7638_N, "e": "Aw"},
        {"kty": "RSA", "n": base64url_encode(b"\x80" + bytes(255)), "e": "AQAB"},
    ],
)
def test_what_is_not_a_public_key_of_ours_is_refused(jwk: dict[str, object]) -> None:
    with pytest.raises(BadJwk):
        parse_public_jwk(jwk)


@pytest.mark.parametrize("jwk", [None, [], "text", 1])
def test_what_is_no_object_is_no_key(jwk: Any) -> None:
    with pytest.raises(BadJwk):
        parse_public_jwk(jwk)


def test_other_curves_and_sizes_have_no_jwk() -> None:
    for curve in (SECP384R1(), SECP256K1()):
        with pytest.raises(BadJwk):
            public_jwk(generate_private_key(curve).public_key())
    with pytest.raises(BadJwk):
        public_jwk(generate_rsa_key(65537, 1024).public_key())
