"""Signing a token and opening one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authsvc.claims import Policy
from authsvc.encoding import base64url_decode, base64url_encode
from authsvc.errors import TokenError
from authsvc.jwk import ALGORITHMS, BadJwk
from authsvc.keyring import Keyring
from authsvc.tokens import MAX_TOKEN_CHARS, JwkSet, SigningKey, VerificationKey, open_token, sign_token
from tests.support.clock import NOW
from tests.support.keys import CLAIMS, ISSUER, POLICY, header, hmac_signed, keyring, payload, signed


def _token(alg: str = "ES256", typ: str = "at+jwt") -> str:
    return sign_token(CLAIMS, keyring(alg).signing_key(now=NOW), typ=typ)


def _reason(token: str, *, ring: Keyring | None = None, policy: Policy = POLICY, now: int = NOW) -> str:
    try:
        open_token(token, ring or keyring(), policy, now=now)
    except TokenError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_token_opens_to_the_claims_it_was_signed_for(alg: str) -> None:
    assert open_token(_token(alg), keyring(alg), POLICY, now=NOW) == CLAIMS


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_the_header_has_alg_kid_and_typ_and_nothing_else(alg: str) -> None:
    unverified = json.loads(base64url_decode(_token(alg).split(".")[0]))
    assert unverified == {"alg": alg, "kid": keyring(alg).signing_key(now=NOW).kid, "typ": "at+jwt"}


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_the_published_set_alone_verifies(alg: str) -> None:
    jwks = json.loads(json.dumps(keyring(alg).jwks(now=NOW)))
    assert open_token(_token(alg), JwkSet(jwks), POLICY, now=NOW) == CLAIMS


@pytest.mark.parametrize(
    "token",
    ["constructor", "__proto__", "toString", "undefined", "null", "a.b", "a.b.c", "a.b.c.d", "..", "...", " ", "é.é.é"],
)
def test_a_text_that_is_no_jws_is_malformed(token: str) -> None:
    assert _reason(token) == "malformed"


@pytest.mark.parametrize("token", [None, 1, b"a.b.c", ["a.b.c"], {}])
def test_what_is_no_text_is_malformed(token: Any) -> None:
    assert _reason(token) == "malformed"


def test_a_policy_without_an_issuer_an_audience_or_a_tuple_of_types_is_none() -> None:
    for arguments in (("", "api"), (ISSUER, ""), (ISSUER, "api", "at+jwt")):
        with pytest.raises(TypeError):
            Policy(*arguments)


def test_an_empty_token_is_missing() -> None:
    assert _reason("") == "missing"


def _spellings(token: str) -> dict[str, str]:
    head, body, signature = token.split(".")
    return {
        "padding at the end": token + "==",
        "padding inside": f"{head}.{body}=.{signature}",
        "white space": token + " ",
        "newline": token + "\n",
        "leading space": " " + token,
        "four parts": token + ".x",
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "standard base64": f"{head}.{body}.{'+' + signature[1:]}",
        "too long": token + "A" * MAX_TOKEN_CHARS,
        "header is no JSON": f"{base64url_encode(b'alg')}.{body}.{signature}",
        "payload is no JSON": f"{head}.{base64url_encode(b'[]')}.{signature}",
        "with its type before it": "Bearer " + token,
    }


@pytest.mark.parametrize("name", _spellings("a.b.c"))
def test_a_token_has_one_spelling(name: str) -> None:
    assert _reason(_spellings(_token())[name]) == "malformed"


def test_a_token_of_8_kib_is_looked_at_and_a_longer_one_is_not() -> None:
    ring = keyring()
    key = ring.private_keys[ring.signing_key(now=NOW).kid]
    by_length = {
        len(token): token for token in (signed(header(ring), payload(x="a" * pad), key) for pad in range(5_700, 5_800))
    }
    fits = max(length for length in by_length if length <= MAX_TOKEN_CHARS)
    too_long = min(length for length in by_length if length > MAX_TOKEN_CHARS)
    assert _reason(by_length[fits]) == "ok"
    assert _reason(by_length[too_long]) == "malformed"


def _with_bytes(header_bytes: bytes | None = None, payload_bytes: bytes | None = None) -> str:
    ring = keyring()
    key = ring.private_keys[ring.signing_key(now=NOW).kid]
    return signed(header_bytes or header(ring), payload_bytes or payload(), key)


BODY = json.dumps(payload())


@pytest.mark.parametrize(
    "payload_bytes",
    [
        BODY.encode("utf-16"),
        b"\xef\xbb\xbf" + BODY.encode(),
        BODY.replace("{", '{"exp": 9999999999, ', 1).encode(),
        BODY.replace("{", '{"openid": "other", ', 1).encode(),
        BODY.replace("{", '{"x": {"a": 1, "a": 2}, ', 1).encode(),
        BODY.replace("{", '{"x": NaN, ', 1).encode(),
        BODY.replace("{", '{"x": "\\ud800", ', 1).encode(),
        BODY.replace("{", '{"x": "\xff", ', 1).encode("latin-1"),
        BODY.encode() + b"{}",
        b"null",
        b"[" + BODY.encode() + b"]",
    ],
)
def test_a_signed_payload_with_two_readings_is_malformed(payload_bytes: bytes) -> None:
    assert _reason(_with_bytes(payload_bytes=payload_bytes)) == "malformed"


def test_a_signed_header_with_a_duplicate_member_is_malformed() -> None:
    twice = json.dumps(header(keyring())).replace("{", '{"alg": "none", ', 1)
    assert _reason(_with_bytes(header_bytes=twice.encode())) == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        *({"alg": alg} for alg in ("none", "es256", "RS256", "HS256")),
        *({"kid": kid} for kid in ("unknown", "", "../../etc/passwd")),
        *({"typ": typ} for typ in ("JWT", "AT+JWT", "application/at+jwt", "")),
    ],
)
def test_a_signed_header_that_is_not_ours_is_invalid(changes: dict[str, Any]) -> None:
    assert _reason(_with_bytes(header_bytes=json.dumps(header(keyring(), **changes)).encode())) == "invalid"


@pytest.mark.parametrize("jwk_member", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_that_the_token_brings_along_is_never_read(jwk_member: str) -> None:
    other = keyring("EdDSA")
    key = other.private_keys[other.signing_key(now=NOW).kid]
    value = other.jwks(now=NOW)["keys"][0] if jwk_member == "jwk" else "https://evil.example/jwks"
    assert _reason(signed(header(other, **{jwk_member: value}), payload(), key)) == "malformed"


def test_the_public_key_as_an_hmac_secret_opens_nothing() -> None:
    ring = keyring("RS256")
    published = ring.find(ring.signing_key(now=NOW).kid, now=NOW)
    assert published is not None
    pem = published.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for alg in ("HS256", "RS256"):
        assert _reason(hmac_signed(header(ring, alg=alg), payload(), pem), ring=ring) == "invalid"


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_token_of_another_key_is_invalid_whatever_kid_it_names(alg: str) -> None:
    stranger = keyring(alg, made_at=NOW - 1)
    key = stranger.private_keys[stranger.signing_key(now=NOW).kid]
    assert _reason(signed(header(stranger), payload(), key), ring=keyring(alg)) == "invalid"
    assert _reason(signed(header(keyring(alg)), payload(), key), ring=keyring(alg)) == "invalid"


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 32, 63, 65, 128, 512])
def test_a_signature_of_another_length_is_invalid(alg: str, size: int) -> None:
    signing_input = _token(alg).rpartition(".")[0]
    for byte in (b"\x00", b"\x01", b"\xff"):
        assert _reason(f"{signing_input}.{base64url_encode(byte * size)}", ring=keyring(alg)) == "invalid"


def test_typ_jwt_is_good_only_where_the_policy_says_so() -> None:
    both = replace(POLICY, typ=("at+jwt", "JWT"))
    assert _reason(_token(typ="JWT")) == "invalid"
    assert _reason(_token(typ="JWT"), policy=both) == "ok"
    assert _reason(_token(), policy=both) == "ok"


def test_the_reasons_come_in_their_order() -> None:
    late = NOW + 10_000
    assert _reason(_token(), now=late) == "expired"
    assert _reason(_token(), now=late, policy=replace(POLICY, issuer=ISSUER + "x")) == "invalid"
    assert _reason(_token() + "=", now=late) == "malformed"


class _RevokedKeys:
    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        found = keyring().find(unverified_kid, now=now)
        return replace(found, revoked=True) if found else None


@pytest.mark.parametrize("now", [NOW, NOW + 10_000])
def test_a_genuine_token_under_a_revoked_key_is_revoked_and_a_forged_one_invalid(now: int) -> None:
    def reason(token: str) -> str:
        with pytest.raises(TokenError) as refused:
            open_token(token, _RevokedKeys(), replace(POLICY, audience="other"), now=now)
        return refused.value.code

    token = _token()
    assert reason(token) == "revoked"
    assert reason(token[:-10] + ("A" * 9) + token[-1]) == "invalid"


def test_a_key_has_no_repr_of_its_private_part() -> None:
    key = keyring().signing_key(now=NOW)
    assert isinstance(key, SigningKey)
    assert "PrivateKey" not in repr(key)
    assert "PrivateKey" not in repr(keyring())


def test_a_set_passes_over_keys_that_it_does_not_know() -> None:
    jwks = keyring().jwks(now=NOW)
    strange = [{"kty": "oct", "k": "AAAA", "kid": "x"}, {"kty": "AKP", "kid": "y"}, "text", None, 7]
    assert open_token(_token(), JwkSet({"keys": [*strange, *jwks["keys"]]}), POLICY, now=NOW) == CLAIMS


@pytest.mark.parametrize(
    "jwks", [None, [], "text", 1, {}, {"keys": []}, {"keys": None}, {"keys": {}}, {"keys": [{"kty": "oct"}]}]
)
def test_a_set_without_a_usable_key_is_refused(jwks: Any) -> None:
    with pytest.raises(BadJwk):
        JwkSet(jwks)


def test_a_set_with_one_key_twice_is_refused() -> None:
    keys = keyring().jwks(now=NOW)["keys"]
    with pytest.raises(BadJwk):
        JwkSet({"keys": [*keys, keys[0]]})
