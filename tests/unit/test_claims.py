"""What a token says and whether it is accepted, with the time passed in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from authsvc.claims import Policy, check_claims, claims_of, parse_header, parse_payload, payload_of
from authsvc.errors import TokenError, TokenExpired, TokenInvalid, TokenMalformed
from tests.support.clock import NOW
from tests.support.keys import AUDIENCE, CLAIMS, ISSUER, POLICY, payload

REQUIRED = ("iss", "sub", "openid", "aud", "client_id", "iat", "exp", "jti", "sid", "auth_time")
TIMES = ("iat", "exp", "auth_time")


def test_claims_read_back_are_the_claims_written() -> None:
    assert claims_of(parse_payload(payload_of(CLAIMS))) == CLAIMS


def test_the_payload_has_exactly_the_claims_of_the_contract() -> None:
    assert json.loads(payload_of(CLAIMS)) == payload()


def test_an_unknown_claim_is_ignored() -> None:
    assert claims_of(payload(scope="all", nbf="never")) == CLAIMS


@pytest.mark.parametrize("name", REQUIRED)
def test_every_claim_is_required(name: str) -> None:
    with pytest.raises(TokenInvalid):
        claims_of(payload(**{name: None}))


@pytest.mark.parametrize("name", sorted(set(REQUIRED) - set(TIMES)))
@pytest.mark.parametrize("value", ["", 1, True, ["api"], {"a": "b"}, 1.5])
def test_a_text_claim_is_a_text_and_not_empty(name: str, value: object) -> None:
    with pytest.raises(TokenInvalid):
        claims_of(payload(**{name: value}))


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize(
    "value", [True, False, 1.0, float(NOW), str(NOW), f" {NOW} ", "9_999", "٣", [NOW], -1, 2**53, 10**30, 1e300, ""]
)
def test_a_time_is_a_whole_number_and_nothing_else(name: str, value: object) -> None:
    with pytest.raises(TokenInvalid):
        claims_of(payload(**{name: value}))


@pytest.mark.parametrize("openid", ["", "a/b", "o" * 129, "o\n", "ö"])
def test_an_openid_is_1_to_128_plain_characters(openid: str) -> None:
    with pytest.raises(TokenInvalid):
        claims_of(payload(sub=openid, openid=openid))


def test_sub_and_openid_name_one_user() -> None:
    with pytest.raises(TokenInvalid):
        claims_of(payload(sub="somebody-else"))


@pytest.mark.parametrize("value", ["", 1, None])
def test_a_unionid_that_is_there_is_a_text(value: object) -> None:
    with pytest.raises(TokenInvalid):
        claims_of(payload() | {"unionid": value})


@pytest.mark.parametrize(("now", "dead"), [(NOW, False), (NOW + 7199, False), (NOW + 7200, True), (NOW + 7201, True)])
def test_a_token_is_dead_on_its_expiry_second(now: int, dead: bool) -> None:
    if dead:
        with pytest.raises(TokenExpired):
            check_claims(CLAIMS, POLICY, now=now)
    else:
        check_claims(CLAIMS, POLICY, now=now)


def test_an_iat_up_to_60_seconds_ahead_is_taken_for_another_hosts_clock() -> None:
    check_claims(CLAIMS, POLICY, now=NOW - 60)
    with pytest.raises(TokenInvalid):
        check_claims(CLAIMS, POLICY, now=NOW - 61)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(ISSUER + "/", AUDIENCE),
        Policy(ISSUER.upper(), AUDIENCE),
        Policy(ISSUER[:-1], AUDIENCE),
        Policy(ISSUER, "ap"),
        Policy(ISSUER, "API"),
        Policy(ISSUER, "other"),
    ],
)
def test_another_issuer_or_audience_is_refused_even_by_a_letter(policy: Policy) -> None:
    with pytest.raises(TokenInvalid):
        check_claims(CLAIMS, policy, now=NOW)


def test_what_else_is_wrong_comes_before_expiry() -> None:
    with pytest.raises(TokenError) as refused:
        check_claims(CLAIMS, Policy(ISSUER, "other"), now=NOW + 10_000)
    assert refused.value.code == "invalid"


HEADER = {"alg": "ES256", "kid": "k", "typ": "at+jwt"}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"alg": "ES256", "kid": "k"},
        {"alg": "ES256", "typ": "at+jwt"},
        {"kid": "k", "typ": "at+jwt"},
        HEADER | {"alg": None},
        HEADER | {"kid": 1},
        HEADER | {"typ": ["at+jwt"]},
        *(HEADER | {name: "x"} for name in ("jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "cty", "x5t")),
    ],
)
def test_a_header_has_exactly_alg_kid_and_typ(members: dict[str, Any]) -> None:
    with pytest.raises(TokenMalformed):
        parse_header(json.dumps(members).encode())
