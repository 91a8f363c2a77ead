"""What anyone may read: the keys, where they are, how the service is; and how it says no."""

from __future__ import annotations

from dataclasses import replace

import pytest

from authsvc.errors import StoreUnavailable
from authsvc.jwk import ALGORITHMS
from authsvc.keyset import Kind
from authsvc.store.memory import MemoryStore
from authsvc.tokens import JwkSet
from tests.support.app import FakeService
from tests.support.clock import NOW
from tests.support.keys import ISSUER, keyring

JWKS = "/.well-known/jwks.json"
METADATA = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_the_jwks_has_active_and_standby_with_public_members_alone(alg: str) -> None:
    reply = FakeService(ring=keyring(alg)).client().get(JWKS)
    assert reply.status_code == 200
    assert reply.content_type == "application/json"
    keys = reply.get_json()["keys"]
    members = {"ES256": {"crv", "x", "y"}, "EdDSA": {"crv", "x"}, "RS256": {"n", "e"}}[alg]
    assert [key.keys() for key in keys] == [members | {"kty", "use", "alg", "kid"}] * 2
    assert {key["alg"] for key in keys} == {alg}
    JwkSet(reply.get_json())


def test_the_jwks_may_be_cached_for_as_long_as_a_rotation_counts_on() -> None:
    reply = FakeService().client().get(JWKS)
    assert reply.headers["Cache-Control"] == "public, max-age=300, stale-while-revalidate=60, stale-if-error=3600"


def test_after_a_revocation_the_jwks_is_fetched_anew_soon_until_no_older_one_can_be_around() -> None:
    service = FakeService()
    active, standby = service.ring.keyset.of(Kind.SIGNING)
    keys = (replace(active, revoked_at=NOW), replace(standby, activate_at=NOW), *list(service.ring.keyset.keys)[2:])
    service.ring = replace(service.ring, keyset=replace(service.ring.keyset, keys=keys))
    client = service.client()
    for after_s, said in ((0, "public, max-age=30, must-revalidate"), (1_084, "public, max-age=30, must-revalidate")):
        service.clock.at = NOW + after_s
        reply = client.get(JWKS)
        assert reply.headers["Cache-Control"] == said
        assert [key["kid"] for key in reply.get_json()["keys"]] == [standby.id]
    service.clock.at = NOW + 1_085
    assert "max-age=300" in client.get(JWKS).headers["Cache-Control"]


def test_a_verifier_that_has_the_jwks_is_told_so_and_only_then() -> None:
    client = FakeService().client()
    etag = client.get(JWKS).headers["ETag"]
    assert etag.startswith('"')
    again = client.get(JWKS, headers={"If-None-Match": etag})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", etag)
    assert client.get(JWKS, headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get(JWKS, headers={"If-None-Match": "*"}).status_code == 304
    assert client.get(JWKS, headers={"If-Match": '"other"'}).status_code == 200
    assert FakeService(ring=keyring(made_at=NOW - 7)).client().get(JWKS).headers["ETag"] != etag


@pytest.mark.parametrize("path", METADATA)
def test_the_metadata_leads_to_the_jwks(path: str) -> None:
    reply = FakeService().client().get(path, headers={"Host": "evil.internal", "X-Forwarded-Host": "evil.example"})
    found = reply.get_json()
    assert found["issuer"] == ISSUER
    assert found["jwks_uri"] == ISSUER + JWKS
    assert found["id_token_signing_alg_values_supported"] == ["ES256"]
    assert "evil" not in reply.text


def test_the_metadata_names_every_alg_in_the_set() -> None:
    both = keyring()
    other = keyring("EdDSA").keyset.keys[1]
    mixed = replace(both, keyset=replace(both.keyset, keys=(*both.keyset.keys, other)))
    found = FakeService(ring=mixed).client().get(METADATA[0]).get_json()
    assert found["id_token_signing_alg_values_supported"] == ["ES256", "EdDSA"]


def test_healthz_answers_without_looking_at_anything() -> None:
    service = FakeService(store=_NoStore())
    service.clock.at = 0
    assert service.client().get("/healthz").get_json() == {"status": "ok"}


class _NoStore(MemoryStore):
    def ping(self) -> None:
        raise StoreUnavailable("gone")


def test_readyz_says_how_the_store_and_wechat_are_and_is_ready_without_them() -> None:
    good, bad = FakeService(), FakeService(store=_NoStore())
    bad.wechat.health = "wechat_timeout"
    for service, store, wechat in ((good, "ok", "untried"), (bad, "unavailable", "wechat_timeout")):
        reply = service.client().get("/readyz")
        found = reply.get_json()
        assert reply.status_code == 200
        assert (found["keys"], found["store"], found["wechat"]) == ("ok", store, wechat)
        assert found["kid"] == service.ring.signing_key(now=NOW).kid


def test_readyz_tells_the_generation_and_whether_it_is_the_folders() -> None:
    service = FakeService()
    found = service.client().get("/readyz").get_json()
    assert (found["generation"], found["keys"]) == (1, "ok")
    service.keys_are_current = False
    reply = service.client().get("/readyz")
    assert (reply.status_code, reply.get_json()["keys"]) == (200, "not reloaded")


def test_readyz_fails_when_no_key_is_active() -> None:
    service = FakeService()
    service.clock.at = NOW - 10
    reply = service.client().get("/readyz")
    assert (reply.status_code, reply.get_json(force=True)["code"]) == (503, "keys_unusable")
    assert "Retry-After" in reply.headers


def test_readyz_fails_when_what_is_signed_does_not_verify() -> None:
    ring = keyring()
    active, standby = list(ring.private_keys)
    swapped = {active: ring.private_keys[standby], standby: ring.private_keys[active]}
    reply = FakeService(ring=replace(ring, private_keys=swapped)).client().get("/readyz")
    assert (reply.status_code, reply.get_json(force=True)["code"]) == (503, "keys_unusable")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/logout", "/metric", "/session", "/session/", "/session/other", "/login/", "/LOGIN", "/\0"),
        *("/.well-known//jwks.json", "//.well-known/jwks.json", "//login", "///login", "//checklogin", "//metrics"),
        *("//session/check", "//healthz", "/./login", "/session/../login", "/login;x", "/login\\", "login", "*"),
        "http://auth.example.com/login",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_is_not_there_is_a_problem_404_and_never_a_redirect(method: str, path: str) -> None:
    # As the server hands it over: the test client would tidy the path up.
    reply = FakeService().client().open("/", method=method, environ_overrides={"PATH_INFO": path})
    assert (reply.status_code, reply.content_type) == (404, "application/problem+json")
    assert reply.get_json(force=True)["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/login", {"POST", "OPTIONS"}),
        ("PUT", "/login", {"POST", "OPTIONS"}),
        ("POST", "/checklogin", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", JWKS, {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_another_method_is_a_problem_405_with_allow(method: str, path: str, allowed: set[str]) -> None:
    reply = FakeService().client().open(path, method=method)
    assert (reply.status_code, reply.content_type) == (405, "application/problem+json")
    assert reply.get_json(force=True)["code"] == "method_not_allowed"
    assert set(reply.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("a" * 64, True), ("a" * 65, False), ("a b", False)])
def test_a_plain_request_id_is_kept_and_another_replaced(given: str, kept: bool) -> None:
    reply = FakeService().client().get("/healthz", headers={"X-Request-ID": given})
    assert (reply.headers["X-Request-ID"] == given) is kept
    assert reply.headers["X-Request-ID"]
