"""What /metrics tells, and whom."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from prometheus_client import Counter, Histogram

from authsvc.errors import CodeInvalid, StoreUnavailable, WeChatError
from authsvc.http.metrics import Metrics
from authsvc.keyring import Keyring
from authsvc.rotation import rotate
from authsvc.store.memory import MemoryStore
from tests.support.app import OPS_TOKEN, FakeService
from tests.support.clock import NOW
from tests.support.keys import NewTestKeys, keyring


@pytest.fixture
def it() -> FakeService:
    return FakeService()


def scraped(client: FlaskClient) -> dict[str, float]:
    reply = client.get("/metrics", headers={"Authorization": f"Bearer {OPS_TOKEN}"})
    assert reply.status_code == 200
    lines = (line.rpartition(" ") for line in reply.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


# ---- who is told --------------------------------------------------------------------------------


def test_without_a_token_of_operators_there_is_no_such_route() -> None:
    assert FakeService(with_metrics=False).client().get("/metrics").status_code == 404


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer x", f"Basic {OPS_TOKEN}", f"Bearer {OPS_TOKEN}x"])
def test_nobody_but_operators_is_told(it: FakeService, header: str | None) -> None:
    reply = it.client().get("/metrics", headers={} if header is None else {"Authorization": header})
    assert (reply.status_code, reply.get_json()["code"]) == (401, "ops_token_invalid")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert "authsvc_" not in reply.text


def test_it_is_the_text_format_of_prometheus_and_not_kept(it: FakeService) -> None:
    reply = it.client().get("/metrics", headers={"Authorization": f"bearer {OPS_TOKEN}"})
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    assert reply.headers["Cache-Control"] == "no-store"


# ---- what is told -------------------------------------------------------------------------------


def test_requests_are_counted_by_route_and_status_and_by_nothing_that_a_client_can_make_up(it: FakeService) -> None:
    client = it.client()
    client.get("/healthz")
    client.get("/healthz")
    client.get("/nothing/MARKER", query_string={"token": "MARKER"})
    client.open("/healthz", method="BREW-MARKER")
    found = scraped(client)
    assert found['authsvc_http_requests_total{method="GET",route="/healthz",status="200"}'] == 2
    assert found['authsvc_http_requests_total{method="GET",route="(no such route)",status="404"}'] == 1
    assert found['authsvc_http_requests_total{method="(other)",route="(no such route)",status="405"}'] == 1
    assert "MARKER" not in str(found)


def test_logins_are_counted_by_what_became_of_them(it: FakeService) -> None:
    client = it.client()
    assert client.post("/login", json={"code": "a"}).status_code == 200
    it.wechat.answer = CodeInvalid("no", errcode=40029)
    client.post("/login", json={"code": "b"})
    it.wechat.answer = WeChatError("no", errcode=123456)
    client.post("/login", json={"code": "c"})
    client.post("/login", json={})
    found = scraped(client)
    assert {name: value for name, value in found.items() if name.startswith("authsvc_logins_total")} == {
        'authsvc_logins_total{code="ok",wechat_errcode=""}': 1,
        'authsvc_logins_total{code="code_invalid",wechat_errcode="40029"}': 1,
        'authsvc_logins_total{code="wechat_error",wechat_errcode="(other)"}': 1,
        'authsvc_logins_total{code="bad_request",wechat_errcode=""}': 1,
    }
    assert found["authsvc_tokens_issued_total"] == 1


def test_tokens_are_counted_by_why_they_were_refused(it: FakeService) -> None:
    client = it.client()
    token = client.post("/login", json={"code": "a"}).get_json()["token"]
    client.get("/checklogin", query_string={"token": token})
    client.post("/session/check", headers={"Authorization": f"Bearer {token}"})
    client.get("/checklogin")
    client.get("/checklogin", query_string={"token": "x"})
    client.post("/session/decrypt", headers={"Authorization": "Bearer x"})
    it.clock.at += 7_200
    client.get("/checklogin", query_string={"token": token})
    found = scraped(client)
    assert found["authsvc_tokens_accepted_total"] == 2
    assert {name: value for name, value in found.items() if name.startswith("authsvc_tokens_refused_total")} == {
        'authsvc_tokens_refused_total{reason="missing"}': 1,
        'authsvc_tokens_refused_total{reason="malformed"}': 2,
        'authsvc_tokens_refused_total{reason="expired"}': 1,
    }


def test_what_the_store_took_is_told_by_operation_also_when_it_failed(
    it: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert it.metrics is not None
    it.store = it.metrics.timed(it.store)
    client = it.client()
    client.post("/login", json={"code": "a"})

    def gone(_self: MemoryStore, *_args: object, **_kwargs: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(MemoryStore, "ping", gone)
    assert client.get("/readyz").get_json()["store"] == "unavailable"
    found = scraped(client)
    assert found['authsvc_store_seconds_count{operation="put_login"}'] == 1
    assert found['authsvc_store_seconds_count{operation="ping"}'] == 1


def test_what_wechat_took_is_told_and_whether_it_is_taken_for_down(it: FakeService) -> None:
    assert it.metrics is not None
    it.metrics.note_wechat("jscode2session", 0.3, False)
    it.metrics.note_wechat("jscode2session", None, True)
    found = scraped(it.client())
    assert found['authsvc_wechat_call_seconds_count{call="jscode2session"}'] == 1
    assert found['authsvc_wechat_call_seconds_bucket{call="jscode2session",le="0.2"}'] == 0
    assert found['authsvc_wechat_call_seconds_bucket{call="jscode2session",le="0.4"}'] == 1
    assert found['authsvc_wechat_down{call="jscode2session"}'] == 1


def test_the_age_of_the_signing_key_and_the_next_rotation_are_told(it: FakeService) -> None:
    it.ring = keyring(made_at=NOW)
    it.clock.at += 1_100
    found = scraped(it.client())
    assert found["authsvc_signing_key_age_seconds"] == 1_100
    assert found["authsvc_next_rotation_seconds"] == -100
    assert found["authsvc_keys_generation"] == it.ring.keyset.generation


@pytest.mark.parametrize("rotate_every_s", [0, 1_000, 2_592_000])
def test_a_rotation_under_way_is_the_next_one_whatever_the_timer_says(it: FakeService, rotate_every_s: int) -> None:
    ring = keyring(made_at=NOW)
    it.clock.at += 1_100
    keyset = rotate(ring.keyset, NewTestKeys(), now=it.clock.at)
    it.ring = Keyring(keyset, ring.private_keys, ring.secret_keys)
    it.metrics = Metrics(None, keys=lambda: it.ring, rotate_every_s=rotate_every_s, clock=it.clock)
    assert scraped(it.client())["authsvc_next_rotation_seconds"] == keyset.lifecycle.lead_s - 1_100


def test_without_a_timer_no_rotation_is_told(it: FakeService) -> None:
    it.metrics = Metrics(None, keys=lambda: it.ring, rotate_every_s=0, clock=it.clock)
    assert "authsvc_next_rotation_seconds" not in scraped(it.client())


def test_nobody_is_refused_because_a_figure_cannot_be_kept(it: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert it.metrics is not None
    it.store = it.metrics.timed(it.store)
    client = it.client()

    def broken(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    for kind in (Counter, Histogram):
        monkeypatch.setattr(kind, "labels", broken)
    for name in ("_request_of", "_refused_for"):
        monkeypatch.setattr(it.metrics, name, broken)
    assert client.post("/login", json={"code": "a"}).status_code == 200
    assert client.get("/checklogin").get_json()["reason"] == "missing"
    it.metrics.note_wechat("jscode2session", 0.1, False)
