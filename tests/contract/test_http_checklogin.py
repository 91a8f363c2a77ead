"""`GET /checklogin`: always 200, from the token alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import pytest
from werkzeug.test import Client, TestResponse

from authsvc.http.fastlane import FastLane
from authsvc.store import Store
from authsvc.tokens import sign_token
from tests.support.app import FakeService
from tests.support.clock import NOW
from tests.support.keys import CLAIMS, header, keyring, payload, signed

TOKEN = sign_token(CLAIMS, keyring().signing_key(now=NOW), typ="at+jwt")
OTHER = sign_token(CLAIMS, keyring().signing_key(now=NOW), typ="at+jwt")


def _answer(path: str, headers: list[tuple[str, str]] | None = None, *, now: int = NOW) -> dict[str, Any]:
    """Of Flask, and the same of the fast lane."""
    plain, fast = (_reply(path, headers, now=now, fast_lane=fast_lane) for fast_lane in (False, True))
    assert (fast.status_code, fast.data) == (plain.status_code, plain.data)
    assert _told(fast) == _told(plain)
    assert plain.status_code == 200
    assert plain.headers["Cache-Control"] == "no-store"
    answer: dict[str, Any] = plain.get_json()
    assert answer.keys() == ({"is_login", "expires_in"} if answer["is_login"] else {"is_login", "reason"})
    return answer


def _reply(path: str, headers: list[tuple[str, str]] | None, *, now: int, fast_lane: bool) -> TestResponse:
    service = FakeService(fast_lane=fast_lane, access_log="login")
    service.clock.at = now
    return service.client().get(path, headers=headers)


def _told(reply: TestResponse) -> dict[str, str]:
    assert re.fullmatch(r"[0-9A-Za-z._-]{1,64}", reply.headers["X-Request-ID"])
    return {name.lower(): value for name, value in reply.headers if name != "X-Request-ID"}


def _reason(path: str, headers: list[tuple[str, str]] | None = None, *, now: int = NOW) -> str:
    return str(_answer(path, headers, now=now).get("reason", "ok"))


def test_a_good_token_is_logged_in_for_the_time_it_has_left() -> None:
    assert _answer(f"/checklogin?token={TOKEN}", now=NOW + 200) == {"is_login": True, "expires_in": 7000}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_header_is_as_good_as_the_query_in_any_case(scheme: str) -> None:
    assert _reason("/checklogin", [("Authorization", f"{scheme} {TOKEN}")]) == "ok"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/checklogin", []),
        ("/checklogin?token=", []),
        ("/checklogin?other=1", []),
        ("/checklogin", [("Authorization", "Bearer")]),
        ("/checklogin", [("Authorization", "Bearer ")]),
        ("/checklogin", [("Authorization", "Basic dXNlcjpwYXNz")]),
        ("/checklogin", [("Authorization", "")]),
        ("/checklogin", [("Authorization", TOKEN)]),
        ("/checklogin", [("Authorization", 'Digest username="a", realm="b"')]),
    ],
)
def test_no_token_is_missing(path: str, headers: list[tuple[str, str]]) -> None:
    assert _reason(path, headers) == "missing"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"/checklogin?token={TOKEN}&token={TOKEN}", []),
        (f"/checklogin?token=&token={TOKEN}", []),
        (f"/checklogin?token={TOKEN}", [("Authorization", f"Bearer {TOKEN[:-1]}")]),
        (f"/checklogin?token={TOKEN}", [("Authorization", f"Bearer {OTHER}x")]),
        ("/checklogin", [("Authorization", f"Bearer {TOKEN},Bearer {TOKEN}")]),
        ("/checklogin", [("Authorization", f"Bearer {TOKEN}, {TOKEN}")]),
        ("/checklogin", [("Authorization", f"Basic dXNlcg==,Bearer {TOKEN}")]),
        ("/checklogin", [("Authorization", f"Bearer {TOKEN},Basic dXNlcg==")]),
        ("/checklogin", [("Authorization", f"Bearer {TOKEN} {TOKEN}")]),
        *((f"/checklogin?token={text}", []) for text in ("constructor", "__proto__", "toString", "undefined", "null")),
        (f"/checklogin?token={TOKEN}%20", []),
        (f"/checklogin?token={TOKEN}%3D%3D", []),
        (f"/checklogin?token={TOKEN}%00", []),
        (f"/checklogin?token={TOKEN}%ff", []),
        (f"/checklogin?token=+{TOKEN}", []),
        ("/checklogin?token=" + "A" * 8193, []),
    ],
)
def test_more_than_one_token_or_none_that_could_be_one_is_malformed(path: str, headers: list[tuple[str, str]]) -> None:
    assert _reason(path, headers) == "malformed"


def test_the_same_token_in_query_and_header_is_one_token() -> None:
    assert _reason(f"/checklogin?token={TOKEN}", [("Authorization", f"Bearer {TOKEN}")]) == "ok"
    assert _reason("/checklogin?token=", [("Authorization", f"Bearer {TOKEN}")]) == "ok"


def test_a_forged_token_is_invalid_and_a_late_one_expired() -> None:
    stranger = keyring(made_at=NOW - 1)
    forged = signed(header(keyring()), payload(), stranger.private_keys[stranger.signing_key(now=NOW).kid])
    assert _reason(f"/checklogin?token={forged}") == "invalid"
    assert _reason(f"/checklogin?token={TOKEN}", now=NOW + 7199) == "ok"
    assert _reason(f"/checklogin?token={TOKEN}", now=NOW + 7200) == "expired"


def test_a_genuine_token_under_a_revoked_key_is_told_so_and_the_key_is_in_no_jwks() -> None:
    ring = keyring()
    active, standby, *others = ring.keyset.keys
    revoked = replace(active, revoked_at=NOW, reason="compromised")
    keyset = replace(ring.keyset, keys=(revoked, replace(standby, activate_at=NOW), *others))
    client = FakeService(ring=replace(ring, keyset=keyset)).client()
    assert client.get(f"/checklogin?token={TOKEN}").get_json() == {"is_login": False, "reason": "revoked"}
    forged = TOKEN[:-8] + "AAAAAAA" + TOKEN[-1]
    assert client.get(f"/checklogin?token={forged}").get_json() == {"is_login": False, "reason": "invalid"}
    published = [key["kid"] for key in client.get("/.well-known/jwks.json").get_json()["keys"]]
    assert published == [standby.id]


class _NoStore:
    """Every touch is a failure of the test."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"checklogin touched the store: {name}")


def test_checklogin_touches_neither_store_nor_wechat() -> None:
    service = FakeService(store=cast(Store, _NoStore()))
    assert service.client().get(f"/checklogin?token={TOKEN}").get_json()["is_login"] is True
    assert service.wechat.asked == []


def test_head_is_answered_without_a_body() -> None:
    reply = FakeService().client().head(f"/checklogin?token={TOKEN}")
    assert (reply.status_code, reply.data) == (200, b"")


# ---- the fast lane ------------------------------------------------------------------------------


class _Behind:
    """What the lane leaves to somebody else."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.asked.append(environ["PATH_INFO"])
        start_response("204 No Content", [])
        return []


def _through_lane(service: FakeService, path: str, method: str, headers: dict[str, str]) -> tuple[TestResponse, bool]:
    """The reply, and whether the lane gave it."""
    services = service.client().application.extensions["authsvc"]
    reply = Client(FastLane(behind := _Behind(), services)).open(path, method=method, headers=headers)
    return reply, not behind.asked


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"/checklogin?token={TOKEN}", {}),
        ("/checklogin", {"Authorization": f"Bearer {TOKEN}"}),
        (f"/checklogin?token={TOKEN}", {"Authorization": "Basic dXNlcjpwYXNz"}),
        ("/checklogin?token=nonsense", {}),
        ("/checklogin", {}),
    ],
)
def test_what_is_asked_all_the_time_does_not_go_through_flask(path: str, headers: dict[str, str]) -> None:
    _, is_fast = _through_lane(FakeService(access_log="login"), path, "GET", headers)
    assert is_fast


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        (f"/checklogin?token={TOKEN}", "HEAD", {}),
        (f"/checklogin?token={TOKEN}", "OPTIONS", {}),
        (f"/checklogin?token={TOKEN}", "POST", {}),
        (f"/checklogin/?token={TOKEN}", "GET", {}),
        (f"/checklogin?token={TOKEN}&token={TOKEN}", "GET", {}),
        (f"/checklogin?token={TOKEN}&x=1", "GET", {}),
        (f"/checklogin?x=1&token={TOKEN}", "GET", {}),
        (f"/checklogin?token=%65{TOKEN[1:]}", "GET", {}),
        (f"/checklogin?token={TOKEN}+", "GET", {}),
        (f"/checklogin?tokens={TOKEN}", "GET", {}),
        (f"/checklogin?token={TOKEN}", "GET", {"Host": "evil.example"}),
        ("/healthz", "GET", {}),
    ],
)
def test_what_the_lane_does_not_know_at_a_glance_is_left_to_flask(
    path: str, method: str, headers: dict[str, str]
) -> None:
    _, is_fast = _through_lane(FakeService(access_log="login"), path, method, headers)
    assert not is_fast


@pytest.mark.parametrize(
    "service", [FakeService(), FakeService(access_log="none", cors_origins=("https://a.example",))]
)
def test_with_a_line_for_each_request_or_other_origins_everything_goes_through_flask(service: FakeService) -> None:
    assert _through_lane(service, f"/checklogin?token={TOKEN}", "GET", {})[1] is False


def test_the_lane_repeats_a_plain_request_id_and_no_other() -> None:
    service = FakeService(access_log="login")
    found = [
        _through_lane(service, "/checklogin", "GET", {"X-Request-ID": given})[0].headers["X-Request-ID"]
        for given in ("abc-1", "MARKER ;", "x" * 65)
    ]
    assert found[0] == "abc-1"
    assert "MARKER" not in found[1]
    assert len(set(found)) == 3
    assert all(len(made) == 16 for made in found[1:])


def test_requests_are_counted_in_both_lanes() -> None:
    counted = []
    for fast_lane in (False, True):
        service = FakeService(fast_lane=fast_lane, access_log="login")
        client = service.client()
        for path in (f"/checklogin?token={TOKEN}", "/checklogin", "/checklogin?token=x"):
            client.get(path)
        assert service.metrics is not None
        counted.append([line for line in service.metrics.text().decode().splitlines() if "_total" in line])
    assert counted[0] == counted[1]
    assert 'authsvc_http_requests_total{method="GET",route="/checklogin",status="200"} 3.0' in counted[0]
