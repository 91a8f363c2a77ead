"""`GET /checklogin`: always 200, from the token alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from authsvc.store import Store
from authsvc.tokens import sign_token
from tests.support.app import FakeService
from tests.support.clock import NOW
from tests.support.keys import CLAIMS, header, keyring, payload, signed

TOKEN = sign_token(CLAIMS, keyring().signing_key(now=NOW), typ="at+jwt")
OTHER = sign_token(CLAIMS, keyring().signing_key(now=NOW), typ="at+jwt")


def _answer(path: str, headers: list[tuple[str, str]] | None = None, *, now: int = NOW) -> dict[str, Any]:
    service = FakeService()
    service.clock.at = now
    reply = service.client().get(path, headers=headers)
    assert reply.status_code == 200
    assert reply.headers["Cache-Control"] == "no-store"
    answer: dict[str, Any] = reply.get_json()
    assert answer.keys() == ({"is_login", "expires_in"} if answer["is_login"] else {"is_login", "reason"})
    return answer


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
