"""What browsers are told, and whom the service answers: headers, other origins, other hosts."""

from __future__ import annotations

import pytest
from werkzeug.test import TestResponse

from tests.support.app import FakeService
from tests.support.keys import ISSUER

ORIGIN = "https://www.example.com"
PATHS = ("/healthz", "/checklogin", "/.well-known/jwks.json", "/docs", "/openapi.json", "/nowhere")


# ---- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_every_reply_is_taken_for_what_it_says_it_is_and_shown_nowhere_else(path: str) -> None:
    headers = FakeService().client().get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert len(headers.getlist("Content-Security-Policy")) == 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/healthz", "no-store"),
        ("/readyz", "no-store"),
        ("/checklogin", "no-store"),
        ("/nowhere", "no-store"),
        ("/.well-known/jwks.json", "public, max-age=300, stale-while-revalidate=60, stale-if-error=3600"),
        ("/.well-known/openid-configuration", "public, max-age=300, stale-while-revalidate=60, stale-if-error=3600"),
        ("/docs", "public, max-age=300"),
        ("/openapi.json", "public, max-age=300"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_caches_are_told_of_each_route_what_they_may_keep(path: str, expected: str, method: str) -> None:
    assert FakeService().client().open(path, method=method).headers["Cache-Control"] == expected


@pytest.mark.parametrize("path", ["/login", "/checklogin", "/session/decrypt", "/session/sign", "/healthz"])
def test_options_names_the_methods_and_wants_no_token(path: str) -> None:
    reply = FakeService().client().options(path)
    assert (reply.status_code, reply.data) == (200, b"")
    allowed = {"GET", "HEAD", "OPTIONS"} if path in ("/checklogin", "/healthz") else {"POST", "OPTIONS"}
    assert set(reply.headers["Allow"].split(", ")) == allowed
    assert reply.headers["Cache-Control"] == "no-store"


# ---- other origins ------------------------------------------------------------------------------


def asked_from(
    origin: str, *, origins: tuple[str, ...], method: str = "GET", path: str = "/checklogin"
) -> TestResponse:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {"Origin": origin}
    return FakeService(cors_origins=origins).client().open("/checklogin", method=method, headers=headers)


def test_without_a_named_origin_no_page_of_another_one_may_read_anything() -> None:
    for method in ("GET", "OPTIONS"):
        reply = asked_from(ORIGIN, origins=(), method=method)
        assert [name for name, _ in reply.headers if name.startswith("Access-Control")] == []


def test_a_named_origin_may_read_and_send_a_token() -> None:
    reply = asked_from(ORIGIN, origins=(ORIGIN,))
    assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Origin" in reply.headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in reply.headers
    client = FakeService(cors_origins=(ORIGIN,)).client()
    preflight = client.options(
        "/session/decrypt",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Access-Control-Allow-Headers"].lower() == "authorization, content-type"


@pytest.mark.parametrize(
    "origin", ["https://www.example.com.evil.example", "https://wwwXexample.com", "http://www.example.com", "null"]
)
def test_an_origin_that_only_looks_like_a_named_one_is_none(origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        assert "Access-Control-Allow-Origin" not in asked_from(origin, origins=(ORIGIN,), method=method).headers


# ---- other hosts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        ISSUER.removeprefix("https://"),
        f"{ISSUER.removeprefix('https://').upper()}:443",
        f"{ISSUER.removeprefix('https://')}.",
        *("localhost:3000", "127.0.0.1", "10.1.2.3:3000", "[2001:db8::1]:3000", "authsvc", "authsvc:3000"),
        *("authsvc.prod.svc.cluster.local", "authsvc.prod.svc", "auth.corp.internal", "login.local"),
        *("auth.lan", "auth.home.arpa", "authsvc.service.consul"),
    ],
)
def test_the_issuers_name_an_address_and_a_private_name_are_this_service(host: str) -> None:
    for path in ("/checklogin", "/.well-known/jwks.json"):
        assert FakeService().client().get(path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", f"{ISSUER.removeprefix('https://')}.evil.example", "127.0.0.1.nip.io", "evil.example:443"),
        *("xlocal.evil", "1.2.3.4.5", "[::1", "local.evil.example"),
        *("[::1]evil.example", "[::1].evil.example", f"evil.example@{ISSUER.removeprefix('https://')}"),
        *("evil.example\\x.local", "evil.example;x.local", "evil.example'.local", "evil.example/x.local", "127.1"),
    ],
)
def test_another_public_name_is_refused_but_to_probes_and_verifiers(host: str) -> None:
    client = FakeService().client()
    for path in ("/checklogin", "/docs", "/nowhere"):
        reply = client.get(path, headers={"Host": host})
        assert (reply.status_code, reply.get_json()["code"]) == (421, "misdirected_request")
        assert host not in reply.text
    for path in ("/healthz", "/readyz", "/.well-known/jwks.json", "/.well-known/openid-configuration"):
        assert client.get(path, headers={"Host": host}).status_code == 200


def test_a_name_that_operators_name_is_this_service_too() -> None:
    client = FakeService(hosts=("api.example.net",)).client()
    assert client.get("/checklogin", headers={"Host": "api.example.net:443"}).status_code == 200
    assert client.get("/checklogin", headers={"Host": "api.example.org"}).status_code == 421
