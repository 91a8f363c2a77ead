"""`POST /login`, as the contract has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from authsvc import errors
from authsvc.http.problems import PROBLEMS
from authsvc.sessionkeys import kept_session_key
from authsvc.store import LoginRow, UserRow
from authsvc.store.memory import MemoryStore
from authsvc.tokens import open_token
from authsvc.wechat import WeChatSession
from tests.support.app import APPID, SESSION_KEY, FakeService
from tests.support.clock import NOW
from tests.support.keys import POLICY
from tests.support.users import ban, rows_of, unban

CODE = "0712cDoV0cfty22AeloV0daMoV02cDog"
OPENID = "oABC-def_123"


def test_a_code_becomes_a_token_for_two_hours() -> None:
    service = FakeService()
    reply = service.client().post("/login", json={"code": CODE})
    assert reply.status_code == 200
    assert reply.json is not None
    assert reply.json.keys() == {"token", "token_type", "expires_in"}
    assert (reply.json["token_type"], reply.json["expires_in"]) == ("Bearer", 7200)
    claims = open_token(reply.json["token"], service.ring, POLICY, now=NOW)
    assert (claims.openid, claims.appid, claims.issued_at, claims.expires_at) == (OPENID, APPID, NOW, NOW + 7200)
    assert claims.auth_time == NOW
    assert reply.headers["Cache-Control"] == "no-store"
    assert service.wechat.asked == [(APPID, CODE)]


def test_a_form_is_as_good_as_json() -> None:
    for data in (f"code={CODE}", f"appid={APPID}&code={CODE}"):
        reply = FakeService().client().post("/login", data=data, content_type="application/x-www-form-urlencoded")
        assert reply.status_code == 200


def test_a_content_type_may_name_its_charset_and_the_body_have_other_members() -> None:
    body = json.dumps({"code": CODE, "userInfo": {"nickName": "小明"}}).encode()
    reply = FakeService().client().post("/login", data=body, content_type="application/json; charset=UTF-8")
    assert reply.status_code == 200


def test_a_store_that_is_not_to_know_openids_gets_none_and_the_login_is_as_good() -> None:
    service = FakeService(hashed=True)
    token = service.client().post("/login", json={"code": CODE}).get_json()["token"]
    assert open_token(token, service.ring, POLICY, now=NOW).openid == OPENID
    (row,) = service.store.logins(service.user(OPENID), now=NOW)
    assert kept_session_key(row, service.ring, now=NOW) == SESSION_KEY
    everything = [rows_of(service.store, kind) for kind in (UserRow, LoginRow)]
    assert service.user(OPENID).digest in str(everything)
    assert OPENID not in str(everything)
    ban(service.store, service.user(OPENID))
    assert service.client().post("/login", json={"code": CODE + "x"}).status_code == 403


def test_the_session_key_is_kept_sealed_in_the_row_that_the_sid_names() -> None:
    service = FakeService()
    token = service.client().post("/login", json={"code": CODE}).get_json()["token"]
    (row,) = service.store.logins(service.user(OPENID), now=NOW)
    assert row.sid == open_token(token, service.ring, POLICY, now=NOW).sid
    assert (row.created_at, row.expires_at) == (NOW, NOW + 259_200)
    assert SESSION_KEY.encode() not in row.sealed_session_key
    assert kept_session_key(row, service.ring, now=NOW) == SESSION_KEY


def test_two_logins_have_nothing_in_common_but_the_user() -> None:
    service = FakeService()
    client = service.client()
    tokens = [client.post("/login", json={"code": code}).get_json()["token"] for code in ("one", "two")]
    first, second = (open_token(token, service.ring, POLICY, now=NOW) for token in tokens)
    assert first.openid == second.openid
    assert len({first.sid, second.sid, first.jti, second.jti}) == 4


def test_a_row_is_ordered_by_when_its_login_started() -> None:
    service = FakeService()
    client = service.client()

    def slow() -> None:
        service.wechat.meanwhile = lambda: None
        service.clock.at += 10
        client.post("/login", json={"code": "later"})
        service.clock.at += 10

    service.wechat.meanwhile = slow
    client.post("/login", json={"code": "earlier"})
    rows = service.store.logins(service.user(OPENID), now=service.clock.at)
    assert [(row.started_at_us, row.created_at) for row in rows] == [
        ((NOW + 10) * 1_000_000, NOW + 10),
        (NOW * 1_000_000, NOW + 20),
    ]


@pytest.mark.parametrize(("asked_for", "in_token"), [(True, "uABC"), (False, None)])
def test_a_unionid_is_kept_and_stands_in_the_token_only_where_it_was_asked_for(
    asked_for: bool, in_token: str | None
) -> None:
    service = FakeService(with_unionid=asked_for)
    service.wechat.answer = WeChatSession(OPENID, SESSION_KEY, "uABC")
    token = service.client().post("/login", json={"code": CODE}).get_json()["token"]
    assert open_token(token, service.ring, POLICY, now=NOW).unionid == in_token
    user = service.store.user(service.user(OPENID))
    assert user is not None
    assert user.unionid == "uABC"


def test_with_several_apps_the_appid_is_explicit() -> None:
    client = FakeService(appids=("wx1", "wx2")).client()
    assert client.post("/login", json={"code": CODE}).get_json()["code"] == "bad_request"
    assert client.post("/login", json={"code": CODE, "appid": "wx3"}).get_json()["code"] == "bad_request"
    assert client.post("/login", json={"code": CODE, "appid": "wx2"}).status_code == 200


JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

BAD_BODIES: list[tuple[str, bytes]] = [
    (JSON, b""),
    (JSON, b"{}"),
    (JSON, b"null"),
    (JSON, b"true"),
    (JSON, b'"x"'),
    (JSON, b"[]"),
    (JSON, b'[{"code": "x"}]'),
    (JSON, b'{"code": ""}'),
    (JSON, b'{"code": null}'),
    (JSON, b'{"code": 1}'),
    (JSON, b'{"code": ["x"]}'),
    (JSON, b'{"code": {"x": 1}}'),
    (JSON, b'{"code": "x", "code": "y"}'),
    (JSON, b'{"code": "x", "appid": 1}'),
    (JSON, b'{"code": "\\ud800"}'),
    (JSON, b'{"code": "\xff"}'),
    (JSON, b'\xef\xbb\xbf{"code": "x"}'),
    (JSON, '{"code": "x"}'.encode("utf-16")),
    (JSON, b'{"code": "x&appid=other"}'),
    (JSON, b'{"code": "x%26secret"}'),
    (JSON, b'{"code": "a b"}'),
    (JSON, b'{"code": "' + b"a" * 129 + b'"}'),
    (JSON, b"[" * 4000),
    (JSON, b'{"a":' * 600),
    (FORM, b""),
    (FORM, b"code"),
    (FORM, b"code="),
    (FORM, b"code=x&code=y"),
    (FORM, b"code=%ff"),
    (FORM, b"code=x%26appid%3dy"),
    (FORM, b"code=\xff"),
    (FORM, b"&".join(b"a%d=1" % i for i in range(40))),
]


@pytest.mark.parametrize(("content_type", "body"), BAD_BODIES)
def test_a_body_that_says_no_code_is_a_bad_request_and_wechat_is_not_asked(content_type: str, body: bytes) -> None:
    service = FakeService()
    reply = service.client().post("/login", data=body, content_type=content_type)
    _is_problem(reply, 400, "bad_request")
    assert service.wechat.asked == []


def test_a_code_in_the_query_is_not_read() -> None:
    _is_problem(FakeService().client().post(f"/login?code={CODE}", json={}), 400, "bad_request")


def test_the_mock_code_of_devtools_gets_a_detail_that_explains_it() -> None:
    reply = FakeService().client().post("/login", json={"code": "the code is a mock one"})
    _is_problem(reply, 400, "bad_request")
    assert "project.config.json" in reply.get_json()["detail"]


@pytest.mark.parametrize("content_type", ["", "text/plain", "multipart/form-data; boundary=x", "application/xml"])
def test_another_content_type_is_415(content_type: str) -> None:
    reply = FakeService().client().post("/login", data=b'{"code": "x"}', content_type=content_type)
    _is_problem(reply, 415, "unsupported_media_type")


def test_a_body_over_4_kib_is_413_and_one_of_4_kib_is_not() -> None:
    client = FakeService().client()
    start, end = b'{"code": "x", "pad": "', b'"}'
    fits = start + b"a" * (4096 - len(start) - len(end)) + end
    assert client.post("/login", data=fits, content_type=JSON).status_code == 200
    _is_problem(client.post("/login", data=fits + b" ", content_type=JSON), 413, "payload_too_large")


WECHAT_ERRORS: list[tuple[errors.AuthsvcError, int, str]] = [
    (errors.CodeInvalid("x", errcode=40029), 401, "code_invalid"),
    (errors.CodeUsed("x", errcode=40163), 401, "code_used"),
    (errors.UserBlocked("x", errcode=40226), 403, "user_blocked"),
    (errors.WeChatRateLimited("x", errcode=45011), 429, "rate_limited"),
    (errors.WeChatMisconfigured("x", errcode=40125), 502, "wechat_config"),
    (errors.WeChatBadReply("x"), 502, "wechat_bad_reply"),
    (errors.WeChatError("x", errcode=50002), 502, "wechat_error"),
    (errors.WeChatBusy("x", errcode=-1), 503, "wechat_busy"),
    (errors.WeChatQuotaExceeded("x", errcode=45009), 503, "wechat_quota"),
    (errors.Overloaded("x"), 503, "overloaded"),
    (errors.WeChatTimeout("x"), 504, "wechat_timeout"),
]


@pytest.mark.parametrize(("error", "status", "code"), WECHAT_ERRORS, ids=[row[2] for row in WECHAT_ERRORS])
def test_each_failure_of_the_exchange_has_its_status_and_code_and_leaves_nothing(
    error: errors.AuthsvcError, status: int, code: str
) -> None:
    service = FakeService()
    service.wechat.answer = error
    reply = service.client().post("/login", json={"code": CODE})
    _is_problem(reply, status, code)
    errcode = getattr(error, "errcode", None)
    assert reply.get_json().get("wechat_errcode") == errcode
    assert service.store.user(service.user(OPENID)) is None


def test_a_banned_user_gets_no_token_and_leaves_no_row() -> None:
    service = FakeService()
    client = service.client()
    client.post("/login", json={"code": CODE})
    before = service.store.logins(service.user(OPENID), now=NOW)
    ban(service.store, service.user(OPENID))
    _is_problem(client.post("/login", json={"code": "another"}), 403, "user_banned")
    assert service.store.logins(service.user(OPENID), now=NOW) == before
    unban(service.store, service.user(OPENID))
    assert client.post("/login", json={"code": "a-third"}).status_code == 200


def test_beyond_its_places_a_login_is_refused_at_once_and_the_places_come_back() -> None:
    service = FakeService(places=1)
    client = service.client()
    refused = []

    def meanwhile() -> None:
        service.wechat.meanwhile = lambda: None
        refused.append(client.post("/login", json={"code": "another"}))
        service.wechat.meanwhile = meanwhile

    service.wechat.meanwhile = meanwhile
    for number, answer in enumerate((service.wechat.answer, errors.WeChatTimeout("x"), service.wechat.answer)):
        service.wechat.answer = answer
        client.post("/login", json={"code": f"{CODE}{number}"})
    for reply in refused:
        _is_problem(reply, 503, "overloaded")
    assert len(refused) == 3
    assert [code for _, code in service.wechat.asked] == [f"{CODE}{number}" for number in range(3)]


class _BrokenStore(MemoryStore):
    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        raise errors.StoreUnavailable("where the store is, is for the log")


def test_a_code_that_was_used_is_refused_without_asking_wechat_again() -> None:
    service = FakeService()
    client = service.client()
    assert client.post("/login", json={"code": CODE}).status_code == 200
    _is_problem(client.post("/login", json={"code": CODE}), 401, "code_used")
    service.wechat.answer = errors.CodeUsed("x", errcode=40163)
    for _ in range(2):
        _is_problem(client.post("/login", json={"code": "used-elsewhere"}), 401, "code_used")
    assert service.wechat.asked == [(APPID, CODE), (APPID, "used-elsewhere")]


def test_a_code_whose_login_was_not_kept_is_used_all_the_same() -> None:
    service = FakeService(store=_BrokenStore())
    client = service.client()
    _is_problem(client.post("/login", json={"code": CODE}), 503, "store_unavailable")
    _is_problem(client.post("/login", json={"code": CODE}), 401, "code_used")


@pytest.mark.parametrize("error", [errors.CodeInvalid("x", errcode=40029), errors.WeChatBusy("x", errcode=-1)])
def test_a_code_that_was_not_seen_to_be_used_may_come_again(error: errors.WeChatError) -> None:
    service = FakeService()
    client = service.client()
    usual, service.wechat.answer = service.wechat.answer, error
    assert client.post("/login", json={"code": CODE}).status_code != 200
    service.wechat.answer = usual
    assert client.post("/login", json={"code": CODE}).status_code == 200


OTHER = "wxfedcba0987654321"


def _referer(appid: str) -> dict[str, str]:
    return {"Referer": f"https://servicewechat.com/{appid}/devtools/page-frame.html"}


@pytest.mark.parametrize(("appids", "mend"), [((APPID,), "configured wrongly"), ((APPID, OTHER), "send it as `appid`")])
def test_a_code_of_another_mini_program_by_its_referer_is_said_so(appids: tuple[str, ...], mend: str) -> None:
    service = FakeService(appids=appids)
    service.wechat.answer = errors.CodeInvalid("the code is of no use", errcode=40029, rid="a-rid")
    body = {"code": CODE, "appid": APPID}
    reply = service.client().post("/login", json=body, headers=_referer(OTHER))
    _is_problem(reply, 401, "code_invalid")
    answer = reply.get_json(force=True)
    assert answer["wechat_errcode"] == 40029
    assert OTHER in answer["detail"]
    assert APPID in answer["detail"]
    assert mend in answer["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _referer(APPID),
        _referer("wx<script>"),
        {"Referer": f"https://servicewechat.com.example/{OTHER}/0/page-frame.html"},
        {"Referer": f"http://servicewechat.com/{OTHER}/0/page-frame.html"},
        {"Referer": f"https://servicewechat.com/{OTHER}/0/page-frame.html?x"},
        {"Referer": f"https://servicewechat.com/{'wx' * 40}/0/page-frame.html"},
    ],
)
def test_another_referer_changes_nothing(headers: dict[str, str]) -> None:
    service = FakeService()
    service.wechat.answer = errors.CodeInvalid("the code is of no use", errcode=40029)
    reply = service.client().post("/login", json={"code": CODE}, headers=headers)
    assert reply.get_json(force=True)["detail"] == "the code is of no use"


def test_a_referer_alone_refuses_nobody() -> None:
    assert FakeService().client().post("/login", json={"code": CODE}, headers=_referer(OTHER)).status_code == 200


def test_without_the_store_there_is_no_token() -> None:
    reply = FakeService(store=_BrokenStore()).client().post("/login", json={"code": CODE})
    _is_problem(reply, 503, "store_unavailable")
    assert "where the store is" not in reply.text


class _Bug(MemoryStore):
    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        raise RuntimeError("SECRETMARKER")


def test_a_fault_of_our_own_says_nothing_of_itself() -> None:
    reply = FakeService(store=_Bug()).client().post("/login", json={"code": CODE})
    _is_problem(reply, 500, "internal_error")
    assert "SECRETMARKER" not in reply.text


def test_a_key_set_without_an_active_key_is_503() -> None:
    service = FakeService()
    service.clock.at = NOW - 10
    _is_problem(service.client().post("/login", json={"code": CODE}), 503, "keys_unusable")


def test_every_error_class_has_a_row_in_the_table_or_never_reaches_a_reply() -> None:
    def leaves(base: type[Exception]) -> set[str]:
        return {c.code for c in base.__subclasses__()} | {x for c in base.__subclasses__() for x in leaves(c)}  # type: ignore[attr-defined]

    not_of_requests = {"settings_invalid", "cannot_listen", "cannot_count", "cannot_write", "keys_conflict"}
    answered_in_words = {"signature_invalid"}  # `{"valid": false}`
    opening = {"seal_broken"}
    of_verifiers = {"keys_unavailable"}
    aside = not_of_requests | opening | of_verifiers | answered_in_words
    assert leaves(errors.AuthsvcError) - aside <= PROBLEMS.keys()


def _is_problem(reply: Any, status: int, code: str) -> None:
    assert reply.status_code == status
    assert reply.content_type == "application/problem+json"
    body = reply.get_json(force=True)
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"]
    assert body["request_id"] == reply.headers["X-Request-ID"]
    assert "token" not in body
    assert reply.headers["Cache-Control"] == "no-store"
    assert ("WWW-Authenticate" in reply.headers) is (status == 401)
    assert ("Retry-After" in reply.headers) is (status in (429, 503))
