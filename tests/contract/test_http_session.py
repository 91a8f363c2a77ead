"""`/session/…`, as the contract has it: bound to the token's own user, and the key never leaves."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from flask.testing import FlaskClient

from authsvc import errors
from authsvc.sessionkeys import kept_session_key, sealed_login
from authsvc.store import LoginRow, UserId, UserRow
from authsvc.store.memory import MemoryStore
from authsvc.tokens import sign_token
from tests.support.app import APPID, SERVICE_TOKEN, SESSION_KEY, FakeService
from tests.support.clock import NOW
from tests.support.keys import CLAIMS
from tests.support.users import ban

OPENID = CLAIMS.openid
OLD_KEY = base64.b64encode(b"the older key 16").decode()
OLDEST_KEY = base64.b64encode(b"oldest key of 16").decode()
RAW_DATA = '{"nickName":"小明🎉","gender":1}'

ROUTES = ["decrypt", "verify", "phone", "sign", "check", "reset"]
FOR_SERVICES = ["sign", "check", "reset"]
USUAL = "(as usual)"


def open_data(key: str = SESSION_KEY, **members: Any) -> dict[str, str]:
    """What a mini-program gets from WeChat and posts."""
    text = json.dumps({"watermark": {"appid": APPID, "timestamp": NOW}} | members).encode()
    count = 16 - len(text) % 16
    encryptor = Cipher(AES(base64.b64decode(key)), CBC(bytes(16))).encryptor()
    sealed = encryptor.update(text + bytes([count]) * count) + encryptor.finalize()
    return {"encryptedData": base64.b64encode(sealed).decode(), "iv": base64.b64encode(bytes(16)).decode()}


def signed(key: str = SESSION_KEY) -> dict[str, str]:
    return {"rawData": RAW_DATA, "signature": hashlib.sha1((RAW_DATA + key).encode()).hexdigest()}


BODIES: dict[str, dict[str, str] | None] = {
    "decrypt": open_data(),
    "verify": signed(),
    "phone": {"code": "e31968a7f94cc5ee25fafc2aef2773f0"},
    "sign": {"body": '{"foo":"bar"}'},
    "check": None,
    "reset": None,
}


def put_login(
    service: FakeService,
    sid: str = "sid-1",
    key: str = SESSION_KEY,
    *,
    appid: str = APPID,
    openid: str = OPENID,
    at: int = NOW,
) -> LoginRow:
    row = sealed_login(
        key,
        service.ring,
        user=service.user(openid, appid=appid),
        sid=sid,
        started_at_us=at * 1_000_000,
        created_at=at,
        expires_at=at + 259_200,
        now=NOW,
        random_bytes=lambda length: bytes(length),
    )
    service.store.put_login(row, unionid=None)
    return row


def service_with_logins() -> FakeService:
    """The user's token is of the oldest of three logins."""
    service = FakeService()
    put_login(service, "sid-1", OLDEST_KEY, at=NOW - 20)
    put_login(service, "sid-2", OLD_KEY, at=NOW - 10)
    put_login(service, "sid-3", SESSION_KEY, at=NOW)
    return service


def token(service: FakeService, **changes: Any) -> str:
    return sign_token(replace(CLAIMS, **changes), service.ring.signing_key(now=NOW), typ="at+jwt")


def ask(
    service: FakeService,
    route: str,
    body: object = USUAL,
    *,
    bearer: str | None = USUAL,
    service_token: str | None = SERVICE_TOKEN,
    client: FlaskClient | None = None,
) -> Any:
    headers = {}
    bearer = token(service) if bearer == USUAL else bearer
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    if service_token is not None:
        headers["X-Service-Token"] = service_token
    body = BODIES[route] if body == USUAL else body
    return (client or service.client()).post(f"/session/{route}", json=body, headers=headers)


def is_problem(reply: Any, status: int, code: str) -> None:
    assert (reply.status_code, reply.content_type) == (status, "application/problem+json")
    assert reply.get_json(force=True)["code"] == code
    assert reply.headers["Cache-Control"] == "no-store"


# ---- who may ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_a_good_request_is_answered_and_never_cached(route: str) -> None:
    reply = ask(service_with_logins(), route)
    assert reply.status_code == 200
    assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("bearer", "code", "challenge"),
    [
        (None, "missing", "Bearer"),
        ("abc", "malformed", 'Bearer error="invalid_token", error_description="malformed"'),
    ],
)
def test_without_a_token_it_is_401_with_a_challenge(route: str, bearer: str | None, code: str, challenge: str) -> None:
    reply = ask(service_with_logins(), route, bearer=bearer)
    is_problem(reply, 401, code)
    assert reply.headers["WWW-Authenticate"] == challenge


@pytest.mark.parametrize("route", ROUTES)
def test_an_expired_token_is_401(route: str) -> None:
    service = service_with_logins()
    is_problem(ask(service, route, bearer=token(service, expires_at=NOW)), 401, "expired")


def test_a_token_in_the_query_opens_nothing() -> None:
    service = service_with_logins()
    reply = service.client().post(f"/session/decrypt?token={token(service)}", json=BODIES["decrypt"])
    is_problem(reply, 401, "missing")


@pytest.mark.parametrize("route", FOR_SERVICES)
@pytest.mark.parametrize("given", [None, "", "another-service-token-1", SERVICE_TOKEN + "x", SERVICE_TOKEN[:-1], "é"])
def test_sign_check_and_reset_want_a_service_token(route: str, given: str | None) -> None:
    service = service_with_logins()
    is_problem(ask(service, route, service_token=given), 403, "service_token_invalid")
    assert service.wechat.asked_with == []


@pytest.mark.parametrize("route", FOR_SERVICES)
def test_each_of_several_service_tokens_is_taken(route: str) -> None:
    service = service_with_logins()
    service.service_tokens = ("first-service-token-0", SERVICE_TOKEN)
    for given in service.service_tokens:
        assert ask(service, route, service_token=given).status_code == 200


@pytest.mark.parametrize("route", FOR_SERVICES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_sign_check_and_reset_are_not_there_while_no_service_token_is_configured(route: str, method: str) -> None:
    service = service_with_logins()
    service.service_tokens = ()
    reply = service.client().open(
        f"/session/{route}", method=method, headers={"Authorization": f"Bearer {token(service)}", "X-Service-Token": ""}
    )
    is_problem(reply, 404, "not_found")


@pytest.mark.parametrize("route", ["decrypt", "verify", "phone"])
def test_what_the_client_itself_may_do_wants_no_service_token(route: str) -> None:
    assert ask(service_with_logins(), route, service_token=None).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_a_banned_user_is_403_on_every_route(route: str) -> None:
    service = service_with_logins()
    ban(service.store, service.user(OPENID))
    is_problem(ask(service, route), 403, "user_banned")
    assert service.wechat.asked_with == []


@pytest.mark.parametrize("route", ROUTES)
def test_a_user_who_is_not_known_here_has_to_log_in_again(route: str) -> None:
    is_problem(ask(FakeService(), route), 409, "session_key_gone")


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_kept_session_key_only_the_phone_number_can_be_had(route: str) -> None:
    service = FakeService()
    put_login(service, at=NOW - 259_200)
    if route == "phone":
        assert ask(service, route).status_code == 200
    else:
        is_problem(ask(service, route), 409, "session_key_gone")


@pytest.mark.parametrize("route", ROUTES)
def test_a_user_of_one_app_has_nothing_in_another(route: str) -> None:
    service = FakeService(appids=(APPID, "wx2222222222222222"))
    put_login(service, appid="wx2222222222222222")
    is_problem(ask(service, route), 409, "session_key_gone")
    put_login(service, openid="oSomebodyElse")
    is_problem(ask(service, route), 409, "session_key_gone")


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_works_where_the_store_has_no_openid(route: str) -> None:
    service = FakeService(hashed=True)
    put_login(service)
    assert ask(service, route).status_code == 200
    ban(service.store, service.user(OPENID))
    is_problem(ask(service, route), 403, "user_banned")


class _Down(MemoryStore):
    def user(self, user: UserId) -> UserRow | None:
        raise errors.StoreUnavailable("gone")


@pytest.mark.parametrize("route", ROUTES)
def test_without_the_store_it_is_503(route: str) -> None:
    service = FakeService(store=_Down())
    put_login(service)
    is_problem(ask(service, route), 503, "store_unavailable")


# ---- what a body may be ----------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["decrypt", "verify", "phone", "sign"])
@pytest.mark.parametrize(
    "body", [[], "x", {}, {"encryptedData": 1, "iv": 2, "rawData": [], "code": None, "body": {}, "signature": 0}]
)
def test_a_body_that_lacks_something_is_a_bad_request(route: str, body: object) -> None:
    service = service_with_logins()
    is_problem(ask(service, route, body), 400, "bad_request")
    assert service.wechat.asked_with == []


@pytest.mark.parametrize(
    ("route", "most"), [("decrypt", 262_144), ("verify", 262_144), ("sign", 262_144), ("phone", 4_096)]
)
def test_a_body_that_is_too_large_is_413_and_another_type_415(route: str, most: int) -> None:
    service = service_with_logins()
    headers = {"Authorization": f"Bearer {token(service)}", "X-Service-Token": SERVICE_TOKEN}
    path = f"/session/{route}"
    large = service.client().post(path, data=b" " * (most + 1), content_type="application/json", headers=headers)
    is_problem(large, 413, "payload_too_large")
    text = service.client().post(path, data=b"{}", content_type="text/plain", headers=headers)
    is_problem(text, 415, "unsupported_media_type")


def test_a_token_that_is_not_good_is_told_before_the_body_is_looked_at() -> None:
    service = service_with_logins()
    reply = service.client().post("/session/decrypt", data=b" " * 300_000, content_type="text/plain")
    is_problem(reply, 401, "missing")


def test_a_form_is_as_good_as_json_also_with_plus_signs_that_became_spaces() -> None:
    service = service_with_logins()
    data = next(d for n in range(1000) if "+" in (d := open_data(n=n))["encryptedData"])
    text = f"iv={data['iv'].replace('=', '%3D')}&encryptedData={data['encryptedData'].replace('=', '%3D')}"
    reply = service.client().post(
        "/session/decrypt",
        data=text.encode(),
        content_type="application/x-www-form-urlencoded",
        headers={"Authorization": f"Bearer {token(service)}"},
    )
    assert reply.status_code == 200


@pytest.mark.parametrize("route", [route for route in ROUTES if route != "sign"])
def test_beyond_its_places_a_request_is_refused_at_once(route: str) -> None:
    service = replace(service_with_logins(), places=0, work_places=0)
    is_problem(ask(service, route), 503, "overloaded")


@pytest.mark.parametrize("route", ["phone", "check", "reset"])
def test_calls_that_are_no_logins_have_a_part_of_the_places_and_logins_the_rest(route: str) -> None:
    service = replace(service_with_logins(), call_places=0)
    is_problem(ask(service, route), 503, "overloaded")
    assert service.client().post("/login", json={"code": "any-code"}).status_code == 200


@pytest.mark.parametrize("route", ["decrypt", "verify", "sign"])
def test_requests_that_wait_for_wechat_do_not_stop_those_that_do_not(route: str) -> None:
    assert ask(replace(service_with_logins(), places=0), route).status_code == 200


# ---- decrypt ---------------------------------------------------------------------------------------


def test_decrypt_gives_the_object_as_wechat_made_it() -> None:
    members: dict[str, Any] = {"openId": OPENID, "nickName": "小明🎉", "list": [1, {"a": None}]}
    reply = ask(service_with_logins(), "decrypt", open_data(**members))
    assert reply.get_json() == {"watermark": {"appid": APPID, "timestamp": NOW}} | members


@pytest.mark.parametrize("key", [SESSION_KEY, OLD_KEY, OLDEST_KEY])
@pytest.mark.parametrize("sid", ["sid-1", "sid-2", "sid-3", "sid-of-a-login-that-is-gone"])
def test_data_made_under_any_of_the_users_three_keys_open_for_any_of_its_tokens(key: str, sid: str) -> None:
    service = service_with_logins()
    assert ask(service, "decrypt", open_data(key), bearer=token(service, sid=sid)).status_code == 200
    reply = ask(service, "verify", signed(key), bearer=token(service, sid=sid))
    assert reply.get_json() == {"valid": True}


def test_the_key_of_the_tokens_own_login_is_tried_first_then_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(_data: str, _iv: str, session_key: str, **_terms: object) -> None:
        tried.append(session_key)
        raise errors.DecryptFailed("x")

    monkeypatch.setattr("authsvc.session.decrypt", refuse)
    service = service_with_logins()
    ask(service, "decrypt", bearer=token(service, sid="sid-2"))
    assert tried == [OLD_KEY, SESSION_KEY, OLDEST_KEY]


BAD_DATA: dict[str, dict[str, str]] = {
    "no base64": {"encryptedData": "!", "iv": BODIES["decrypt"]["iv"]},  # type: ignore[index]
    "empty": {"encryptedData": "", "iv": ""},
    "short iv": open_data() | {"iv": "AAAA"},
    "other key": open_data(base64.b64encode(b"somebody else 16").decode()),
    "other app": open_data(watermark={"appid": "wx2222222222222222", "timestamp": NOW}),
    "stale": open_data(watermark={"appid": APPID, "timestamp": NOW - 601}),
    "from the future": open_data(watermark={"appid": APPID, "timestamp": NOW + 601}),
    "other user": open_data(openId="oSomebodyElse"),
}


def test_whatever_is_wrong_with_data_the_answer_is_the_same() -> None:
    service = service_with_logins()
    answers = []
    for data in BAD_DATA.values():
        reply = ask(service, "decrypt", data)
        is_problem(reply, 400, "decrypt_failed")
        answer = reply.get_json(force=True)
        del answer["request_id"]
        answers.append((answer, reply.headers["Content-Type"]))
    assert all(answer == answers[0] for answer in answers)


def test_who_fails_fifty_times_a_day_is_stopped_for_that_user_and_no_other() -> None:
    service = service_with_logins()
    client = service.client()
    put_login(service, openid="oSomebodyElse")
    for _ in range(50):
        is_problem(ask(service, "decrypt", BAD_DATA["other key"], client=client), 400, "decrypt_failed")
    reply = ask(service, "decrypt", client=client)
    is_problem(reply, 429, "rate_limited")
    assert "Retry-After" in reply.headers
    assert ask(service, "decrypt", bearer=token(service, openid="oSomebodyElse"), client=client).status_code == 200
    service.clock.at += 7_199
    assert ask(service, "verify", client=client).status_code == 200
    later = token(service, issued_at=NOW + 86_400, auth_time=NOW + 86_400, expires_at=NOW + 90_000)
    service.clock.at = NOW + 86_400
    put_login(service, "sid-9", at=NOW + 86_400)
    data = open_data(watermark={"appid": APPID, "timestamp": NOW + 86_400})
    assert ask(service, "decrypt", data, bearer=later, client=client).status_code == 200


@pytest.mark.parametrize("route", ["decrypt", "verify", "phone"])
def test_of_one_user_four_requests_are_under_way_and_no_more(route: str) -> None:
    service = service_with_logins()
    put_login(service, openid="oSomebodyElse")
    users = service.users_at_work
    assert [users.begin(APPID, OPENID) for _ in range(5)] == [True] * 4 + [False]
    is_problem(ask(service, route), 503, "overloaded")
    other = token(service, openid="oSomebodyElse")
    assert ask(service, route, bearer=other).status_code == 200
    users.end(APPID, OPENID)
    for _ in range(3):
        assert ask(service, route).status_code == 200, "each gives back what it took"


def test_data_under_a_key_that_was_sealed_for_another_row_do_not_open() -> None:
    service = FakeService()
    row = put_login(service)
    moved = replace(row, sid="sid-2", started_at_us=row.started_at_us + 1)
    service.store.put_login(moved, unionid=None)
    service.store.replace_logins(row.user, [row], by=None)
    is_problem(ask(service, "decrypt"), 409, "session_key_gone")


# ---- verify and sign -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        signed(base64.b64encode(b"somebody else 16").decode()),
        signed() | {"rawData": RAW_DATA + " "},
        signed() | {"signature": ""},
        signed() | {"signature": "签名"},
        signed() | {"signature": signed()["signature"].upper()},
    ],
)
def test_verify_says_false_of_what_wechat_did_not_sign(body: dict[str, str]) -> None:
    reply = ask(service_with_logins(), "verify", body)
    assert (reply.status_code, reply.get_json()) == (200, {"valid": False})


def test_sign_is_wechats_hmac_under_the_newest_key() -> None:
    body = '{"foo":"小程序"}'
    expected = hmac.new(SESSION_KEY.encode(), body.encode(), hashlib.sha256).hexdigest()
    reply = ask(service_with_logins(), "sign", {"body": body})
    assert reply.get_json() == {"signature": expected, "sig_method": "hmac_sha256"}


def test_sign_refuses_an_empty_body_whose_signature_could_reset_the_key() -> None:
    is_problem(ask(service_with_logins(), "sign", {"body": ""}), 400, "bad_request")


# ---- check, reset, phone -----------------------------------------------------------------------------


@pytest.mark.parametrize("valid", [True, False])
def test_check_asks_wechat_about_the_newest_key(valid: bool) -> None:
    service = service_with_logins()
    service.wechat.takes_key = valid
    assert ask(service, "check").get_json() == {"valid": valid}
    assert service.wechat.asked_with == [(f"access-token-of-{APPID}", OPENID, SESSION_KEY)]


def test_after_a_reset_the_new_key_is_kept_alone_and_no_longer_than_the_old_one() -> None:
    service = service_with_logins()
    newest = service.store.logins(service.user(OPENID), now=NOW)[0]
    service.clock.at += 100
    reply = ask(service, "reset")
    assert reply.get_json() == {"reset": True}
    assert service.wechat.asked_with == [(f"access-token-of-{APPID}", OPENID, SESSION_KEY)]
    (row,) = service.store.logins(service.user(OPENID), now=NOW)
    assert (row.sid, row.expires_at, row.started_at_us) == (newest.sid, newest.expires_at, newest.started_at_us)
    assert kept_session_key(row, service.ring, now=NOW) == service.wechat.new_session_key
    for key in (SESSION_KEY, OLD_KEY, OLDEST_KEY):
        is_problem(ask(service, "decrypt", open_data(key)), 400, "decrypt_failed")
    assert ask(service, "decrypt", open_data(service.wechat.new_session_key)).status_code == 200


def test_a_reset_of_a_key_that_wechat_has_not_any_more_forgets_the_old_ones() -> None:
    service = service_with_logins()
    service.wechat.takes_key = False
    is_problem(ask(service, "reset"), 409, "session_key_gone")
    assert service.store.logins(service.user(OPENID), now=NOW) == ()


def test_of_two_resets_at_once_the_new_key_stays_whoever_comes_last() -> None:
    service = service_with_logins()
    reset = service.wechat.reset_user_session_key

    def second_meanwhile(*args: Any, **kwargs: Any) -> Any:
        service.wechat.reset_user_session_key = reset  # type: ignore[method-assign]
        assert ask(service, "reset").status_code == 200
        service.wechat.takes_key = False
        return reset(*args, **kwargs)

    service.wechat.reset_user_session_key = second_meanwhile  # type: ignore[method-assign]
    is_problem(ask(service, "reset"), 409, "session_key_gone")
    (row,) = service.store.logins(service.user(OPENID), now=NOW)
    assert kept_session_key(row, service.ring, now=NOW) == service.wechat.new_session_key


def test_a_login_of_the_meantime_that_has_the_old_key_does_not_survive_a_reset() -> None:
    service = service_with_logins()
    reset = service.wechat.reset_user_session_key

    def slow(*args: Any, **kwargs: Any) -> Any:
        put_login(service, "sid-4", SESSION_KEY, at=NOW + 1)
        return reset(*args, **kwargs)

    service.wechat.reset_user_session_key = slow  # type: ignore[method-assign]
    assert ask(service, "reset").status_code == 200
    assert [row.sid for row in service.store.logins(service.user(OPENID), now=NOW)] == ["sid-3"]
    is_problem(ask(service, "decrypt"), 400, "decrypt_failed")


def test_a_login_of_the_meantime_with_a_key_of_its_own_survives_a_reset() -> None:
    service = service_with_logins()

    reset = service.wechat.reset_user_session_key

    def slow(*args: Any, **kwargs: Any) -> Any:
        put_login(service, "sid-4", base64.b64encode(b"one of its own16").decode(), at=NOW + 1)
        return reset(*args, **kwargs)

    service.wechat.reset_user_session_key = slow  # type: ignore[method-assign]
    assert ask(service, "reset").status_code == 200
    assert [row.sid for row in service.store.logins(service.user(OPENID), now=NOW)] == ["sid-4", "sid-3"]


def test_phone_gives_wechats_number_and_binds_it_to_the_users_openid() -> None:
    service = service_with_logins()
    assert ask(service, "phone", {"code": "phone-code"}).get_json() == {
        "phoneNumber": "+8613800138000",
        "purePhoneNumber": "13800138000",
        "countryCode": "86",
        "watermark": {"timestamp": NOW, "appid": APPID},
    }
    assert service.wechat.asked_with == [(f"access-token-of-{APPID}", OPENID, "phone-code")]


FAILURES: list[tuple[errors.AuthsvcError, int, str]] = [
    (errors.PhoneCodeInvalid("x", errcode=40029), 400, "phone_code_invalid"),
    (errors.AccessTokenRejected("x", errcode=40001), 502, "wechat_error"),
    (errors.WeChatRateLimited("x", errcode=45011), 429, "rate_limited"),
    (errors.WeChatMisconfigured("x", errcode=40013), 502, "wechat_config"),
    (errors.WeChatBadReply("x"), 502, "wechat_bad_reply"),
    (errors.WeChatBusy("x", errcode=-1), 503, "wechat_busy"),
    (errors.WeChatQuotaExceeded("x", errcode=45009), 503, "wechat_quota"),
    (errors.WeChatTimeout("x"), 504, "wechat_timeout"),
]


@pytest.mark.parametrize(
    ("route", "error", "status", "code"),
    [
        pytest.param(route, *row, id=f"{row[2]}-{route}")
        for route in ("check", "reset", "phone")
        for row in FAILURES
        if route == "phone" or row[2] != "phone_code_invalid"
    ],
)
def test_each_failure_at_wechat_has_its_status_and_code_and_leaves_the_keys_alone(
    route: str, error: errors.AuthsvcError, status: int, code: str
) -> None:
    service = service_with_logins()
    before = service.store.logins(service.user(OPENID), now=NOW)
    service.wechat.failure = error
    reply = ask(service, route)
    is_problem(reply, status, code)
    assert ("Retry-After" in reply.headers) is (status in (429, 503))
    assert service.store.logins(service.user(OPENID), now=NOW) == before


@pytest.mark.parametrize("route", ROUTES)
def test_no_reply_has_a_session_key_in_it(route: str) -> None:
    service = service_with_logins()
    text = ask(service, route).text
    for key in (SESSION_KEY, OLD_KEY, OLDEST_KEY, service.wechat.new_session_key):
        assert key not in text
