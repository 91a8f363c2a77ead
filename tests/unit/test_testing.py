"""What users test their own services with."""

from __future__ import annotations

import pytest

from authsvc import Policy, TokenError, Verifier
from authsvc.jwk import ALGORITHMS
from authsvc.testing import APPID, AUDIENCE, OPENID, FakeIssuer
from tests.support.clock import NOW, FakeClock

pytest_plugins = ["authsvc.testing.fixtures"]


def _reason(verifier: Verifier, token: str) -> str:
    try:
        verifier.verify(token)
    except TokenError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_token_of_the_fake_issuer_is_good_for_its_verifier_and_for_nobody_elses(alg: str) -> None:
    issuer = FakeIssuer(alg=alg)
    claims = issuer.verifier().verify(issuer.token())
    assert (claims.openid, claims.appid, claims.audience) == (OPENID, APPID, AUDIENCE)
    assert claims.expires_at - claims.issued_at == 7_200
    assert _reason(FakeIssuer(alg=alg).verifier(), issuer.token()) == "invalid"


def test_its_tokens_say_what_the_test_wants_them_to() -> None:
    issuer = FakeIssuer("https://a.example", audience="shop", clock=FakeClock())
    token = issuer.token("oAlice", appid="wx1", unionid="u1", expires_in_s=5, issued_ago_s=7, sid="s")
    claims = issuer.verifier().verify(token)
    assert (claims.issuer, claims.openid, claims.appid, claims.unionid) == ("https://a.example", "oAlice", "wx1", "u1")
    assert (claims.issued_at, claims.expires_at, claims.auth_time, claims.sid) == (NOW - 7, NOW + 5, NOW - 7, "s")
    assert issuer.verifier(appids=("wx1",), leeway_s=30, remember=0).verify(token) == claims
    assert _reason(issuer.verifier(appids=("wx2",)), token) == "invalid"


def test_it_makes_what_has_to_be_refused() -> None:
    issuer = FakeIssuer()
    verifier = issuer.verifier()
    assert _reason(verifier, issuer.expired_token()) == "expired"
    assert _reason(verifier, issuer.forged_token()) == "invalid"
    assert _reason(verifier, issuer.token(audience="other")) == "invalid"
    assert issuer.authorization("oBob")["Authorization"].startswith("Bearer eyJ")


def test_its_verifiers_follow_rotations_and_revocations() -> None:
    issuer = FakeIssuer()
    verifier = issuer.verifier()
    old = issuer.token()
    assert _reason(verifier, old) == "ok"
    issuer.rotate()
    assert [_reason(verifier, token) for token in (old, issuer.token())] == ["ok", "ok"]
    issuer.revoke()
    assert [_reason(verifier, token) for token in (old, issuer.token())] == ["revoked", "ok"]


def test_it_can_be_fetched_from_like_a_real_one() -> None:
    issuer = FakeIssuer()
    with issuer.served() as url, Verifier(url, audience=AUDIENCE) as verifier:
        assert verifier.verify(issuer.token("oAlice")).openid == "oAlice"
    assert issuer.url != url


def test_the_fixture_is_an_issuer_of_its_own(authsvc_issuer: FakeIssuer) -> None:
    assert isinstance(authsvc_issuer.policy, Policy)
    assert _reason(authsvc_issuer.verifier(), authsvc_issuer.token()) == "ok"
