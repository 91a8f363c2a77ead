"""What holds for every token and every text."""

from __future__ import annotations

import string
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from authsvc.claims import Claims, claims_of, parse_payload, payload_of
from authsvc.encoding import NotCanonical, base64url_decode, base64url_encode
from authsvc.errors import TokenError, TokenInvalid
from authsvc.jwk import ALGORITHMS
from authsvc.tokens import open_token, sign_token
from tests.support.clock import NOW
from tests.support.keys import CLAIMS, POLICY, keyring, payload

TOKENS = {alg: sign_token(CLAIMS, keyring(alg).signing_key(now=NOW), typ="at+jwt") for alg in ALGORITHMS}
ALPHABET = string.ascii_letters + string.digits + "-_."

base64url_texts = st.text(string.ascii_letters + string.digits + "-_", max_size=60)
jws_like = st.builds(".".join, st.lists(base64url_texts, min_size=2, max_size=4))
ids = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=128)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
seconds = st.integers(0, 2**53 - 1)


def _opens(token: str, alg: str = "ES256", *, now: int = NOW) -> bool:
    try:
        open_token(token, keyring(alg), POLICY, now=now)
    except TokenError:
        return False
    return True


@given(st.one_of(st.text(), jws_like, st.text(ALPHABET)))
@example("." * 8192)
@example("\ud800")
@example("A" * 100_000)
@settings(max_examples=500)
def test_any_text_given_as_a_token_is_claims_or_a_token_error(text: str) -> None:
    assert not _opens(text)


@given(st.sampled_from(ALGORITHMS), st.data())
@settings(max_examples=500, deadline=None)
def test_no_one_character_edit_of_a_token_verifies(alg: str, data: st.DataObject) -> None:
    token = TOKENS[alg]
    at = data.draw(st.integers(0, len(token) - 1))
    replacement = data.draw(st.one_of(st.sampled_from(ALPHABET), st.characters()))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    if kind == "replace":
        edited = token[:at] + replacement + token[at + 1 :]
    elif kind == "insert":
        edited = token[:at] + replacement + token[at:]
    else:
        edited = token[:at] + token[at + 1 :]
    assert edited == token or not _opens(edited, alg)


@given(st.binary(max_size=200))
def test_base64url_goes_there_and_back(data: bytes) -> None:
    assert not data or base64url_decode(base64url_encode(data)) == data


@given(st.text(string.ascii_letters + string.digits + "-_+/=\n ", max_size=24))
def test_base64url_has_one_spelling(text: str) -> None:
    try:
        data = base64url_decode(text)
    except NotCanonical:
        return
    assert base64url_encode(data) == text


@given(
    st.builds(
        Claims,
        issuer=texts,
        audience=texts,
        openid=ids,
        appid=texts,
        issued_at=seconds,
        expires_at=seconds,
        auth_time=seconds,
        jti=texts,
        sid=texts,
        unionid=st.none() | texts,
    )
)
def test_claims_go_there_and_back(claims: Claims) -> None:
    assert claims_of(parse_payload(payload_of(claims))) == claims


@given(st.sampled_from(["iat", "exp", "auth_time"]), st.one_of(st.booleans(), st.floats(), st.text(), st.none()))
def test_bools_and_floats_and_texts_are_no_times(name: str, value: object) -> None:
    try:
        claims_of(payload() | {name: value})
    except TokenInvalid:
        return
    raise AssertionError(f"{name} was taken to be {value!r}")


@given(st.integers(NOW + 3, NOW + 100_000), st.integers(-3, 3))
def test_the_second_of_exp_is_dead_and_the_one_before_alive(expires_at: int, offset: int) -> None:
    token = sign_token(
        replace(CLAIMS, issued_at=NOW - 100, expires_at=expires_at), keyring().signing_key(now=NOW), typ="at+jwt"
    )
    assert _opens(token, now=expires_at + offset) is (offset < 0)
