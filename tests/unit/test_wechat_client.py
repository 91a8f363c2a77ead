"""WeChat's calls: what is asked, what is believed of the answer, and what each errcode means."""

from __future__ import annotations

import contextlib
import json
import ssl
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import requests
import responses
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, NewConnectionError

from authsvc.errors import (
    AccessTokenRejected,
    BadRequest,
    CodeInvalid,
    CodeUsed,
    PhoneCodeInvalid,
    SessionKeyGone,
    UserBlocked,
    WeChatBadReply,
    WeChatBusy,
    WeChatError,
    WeChatMisconfigured,
    WeChatQuotaExceeded,
    WeChatRateLimited,
    WeChatTimeout,
)
from authsvc.wechat import (
    AccessToken,
    App,
    PhoneNumber,
    WeChatClient,
    WeChatSession,
    check_code,
    new_session,
)
from authsvc.wechat.transport import Call, TransportError, send

URL = "https://api.weixin.qq.com"
FALLBACK = "https://api2.weixin.qq.com"
PATH = "/sns/jscode2session"
SESSION_KEY = "tiihtNczf5v6AKRyjwEUhQ=="
GOOD: dict[str, Any] = {"openid": "oABC-def_123", "session_key": SESSION_KEY}
APP = App("wx1234567890abcdef", ("SECRETMARKER",))
CODE = "CODEMARKER0712cDoV0cfty22AeloV0d"


class _Time:
    """Sleeping passes the time, and nothing else does."""

    def __init__(self) -> None:
        self.at = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds

    def monotonic(self) -> float:
        return self.at


def _client(time: _Time | None = None, *, fallback_url: str | None = None) -> WeChatClient:
    time = time or _Time()
    return WeChatClient(
        # Reading certifi's roots takes longer than the whole test, and nothing here speaks TLS.
        new_session(connections=4, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
        url=URL,
        fallback_url=fallback_url,
        timeout_s=5,
        sleep=time.sleep,
        monotonic=time.monotonic,
        jitter=lambda: 0.5,
    )


def _exchange(body: object, *, status: int = 200) -> WeChatSession:
    with responses.RequestsMock() as wechat:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        wechat.get(URL + PATH, body=raw, status=status, content_type="text/plain")
        return _client().code2session(APP, CODE)


@responses.activate
def test_the_call_is_the_documented_one_with_four_parameters() -> None:
    call = responses.get(URL + PATH, json=GOOD)
    _client().code2session(APP, CODE)
    assert call.calls[0].request.params == {
        "appid": APP.appid,
        "secret": "SECRETMARKER",
        "js_code": CODE,
        "grant_type": "authorization_code",
    }


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        GOOD | {"errcode": 0, "errmsg": "ok"},
        GOOD | {"errcode": "0"},
        GOOD | {"expires_in": 7200},
        GOOD | {"unionid": ""},
        GOOD | {"unionid": None},
        GOOD | {"openid": "o" * 128},
        json.dumps(GOOD | {"nickname": "小程序"}, ensure_ascii=False).encode(),
        json.dumps(GOOD).replace("{", '{"nickname": "a\x01b\n", ').encode(),
    ],
)
def test_a_right_answer_is_believed_with_whatever_else_wechat_puts_into_it(body: object) -> None:
    assert _exchange(body).session_key == SESSION_KEY


def test_a_unionid_is_taken_where_there_is_one() -> None:
    assert _exchange(GOOD | {"unionid": "ocMvos6NjeKLIBqg5Mr9QjxrP1FA"}).unionid == "ocMvos6NjeKLIBqg5Mr9QjxrP1FA"
    assert _exchange(GOOD).unionid is None


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502</html>",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        json.dumps(GOOD).encode() + b"{}",
        json.dumps(GOOD).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b'{"openid": "\xff"}',
        b"[" * 60_000,
        json.dumps(GOOD).replace("{", '{"openid": "other", ').encode(),
        GOOD | {"errcode": "none"},
        GOOD | {"errcode": True},
        GOOD | {"errcode": 40029.0},
        GOOD | {"errcode": None},
        GOOD | {"errcode": [40029]},
        GOOD | {"errcode": 10**9},
        GOOD | {"errcode": "9" * 10},
        _without("openid"),
        *(GOOD | {"openid": value} for value in ("", None, 1, True, ["o"], "o/1", "o" * 129, "o\n", "ö", "o 1")),
        _without("session_key"),
        *(
            GOOD | {"session_key": value}
            for value in ("", None, 1, "AAAA", "tiihtNczf5v6AKRyjwEUhQ", "tiihtNczf5v6AKRyjwEUhR==", SESSION_KEY + "\n")
        ),
        *(GOOD | {"unionid": value} for value in (1, True, ["u"], "u/1")),
    ],
)
def test_what_is_not_a_right_answer_is_a_bad_reply(body: object) -> None:
    with pytest.raises(WeChatBadReply):
        _exchange(body)


@pytest.mark.parametrize("status", [201, 204, 301, 302, 400, 404, 500, 502, 503])
def test_another_status_is_a_bad_reply_even_with_a_right_body(status: int) -> None:
    with pytest.raises(WeChatBadReply):
        _exchange(GOOD, status=status)


ERRCODES: dict[int, type[WeChatError]] = {
    -1: WeChatBusy,
    40029: CodeInvalid,
    40163: CodeUsed,
    40226: UserBlocked,
    45011: WeChatRateLimited,
    45009: WeChatQuotaExceeded,
    40013: WeChatMisconfigured,
    40125: WeChatMisconfigured,
    40164: WeChatMisconfigured,
    40243: WeChatMisconfigured,
    41002: WeChatMisconfigured,
    41004: WeChatMisconfigured,
    41008: WeChatMisconfigured,
    50002: WeChatError,
    61003: WeChatError,
}


@pytest.mark.parametrize("errcode", ERRCODES)
@pytest.mark.parametrize("spelled", [int, str])
@responses.activate
def test_each_errcode_has_its_own_error_even_beside_an_openid(errcode: int, spelled: Callable[[int], Any]) -> None:
    responses.get(URL + PATH, json=GOOD | {"errcode": spelled(errcode), "errmsg": "anything"})
    with pytest.raises(WeChatError) as refused:
        _client().code2session(APP, CODE)
    assert type(refused.value) is ERRCODES[errcode]
    assert refused.value.errcode == errcode


@pytest.mark.parametrize(
    ("errmsg", "rid"),
    [
        ("invalid code, rid: 652d44d0-1d0af18b-5b069232", "652d44d0-1d0af18b-5b069232"),
        ("code been used, hints: [ req_id: MdoBRh4FE-_iqKea ]", "MdoBRh4FE-_iqKea"),
        ("invalid ip 8.149.1.108, not in whitelist rid: 00000000-ffffffff-00000000", "00000000-ffffffff-00000000"),
        ("rid: SECRETMARKER", None),
        ("req_id: " + "a" * 32, None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
@responses.activate
def test_the_rid_is_kept_and_nothing_else_of_the_errmsg(errmsg: object, rid: str | None) -> None:
    responses.get(URL + PATH, json={"errcode": 40029, "errmsg": errmsg})
    with pytest.raises(CodeInvalid) as refused:
        _client().code2session(APP, CODE)
    assert refused.value.rid == rid
    assert "SECRETMARKER" not in str(refused.value)


@responses.activate
def test_busy_is_asked_once_more_after_a_pause() -> None:
    responses.get(URL + PATH, json={"errcode": -1, "errmsg": "system error"})
    responses.get(URL + PATH, json=GOOD)
    time = _Time()
    assert _client(time).code2session(APP, CODE).openid == GOOD["openid"]
    assert time.slept == [pytest.approx(0.4)]


@responses.activate
def test_busy_twice_is_the_end() -> None:
    responses.get(URL + PATH, json={"errcode": -1, "errmsg": "system error"})
    with pytest.raises(WeChatBusy):
        _client().code2session(APP, CODE)
    assert len(responses.calls) == 2


def _refused() -> requests.ConnectionError:
    pool = HTTPSConnectionPool("api.weixin.qq.com")
    reason = NewConnectionError(HTTPSConnection("api.weixin.qq.com"), "refused")
    return requests.ConnectionError(MaxRetryError(pool, f"{PATH}?secret=SECRETMARKER", reason))


@responses.activate
def test_without_a_connection_the_fallback_host_is_asked() -> None:
    responses.get(URL + PATH, body=_refused())
    responses.get(FALLBACK + PATH, json=GOOD)
    assert _client(fallback_url=FALLBACK).code2session(APP, CODE).openid == GOOD["openid"]


@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError(f"{PATH}?secret=SECRETMARKER"),
        requests.ReadTimeout(f"{PATH}?secret=SECRETMARKER"),
        requests.exceptions.ChunkedEncodingError(f"{PATH}?secret=SECRETMARKER"),
    ],
)
@responses.activate
def test_after_a_silence_the_code_is_not_sent_again(error: Exception) -> None:
    responses.get(URL + PATH, body=error)
    with pytest.raises(WeChatTimeout) as failed:
        _client(fallback_url=FALLBACK).code2session(APP, CODE)
    assert len(responses.calls) == 1
    shown = "".join(traceback.format_exception(failed.value)) + repr(failed.value)
    assert "SECRETMARKER" not in shown
    assert "CODEMARKER" not in shown


@pytest.mark.parametrize(
    "error",
    [
        _refused(),
        requests.ReadTimeout(f"{PATH}?secret=SECRETMARKER"),
        requests.exceptions.SSLError(f"{PATH}?secret=SECRETMARKER"),
        requests.exceptions.InvalidURL(f"{PATH}?secret=SECRETMARKER"),
        requests.ConnectionError(),
        ValueError(f"{PATH}?secret=SECRETMARKER"),
        OSError(f"{PATH}?secret=SECRETMARKER"),
    ],
    ids=lambda error: type(error).__name__,
)
@responses.activate
def test_no_error_of_the_transport_carries_the_url(error: Exception) -> None:
    responses.get(URL + PATH, body=error)
    with pytest.raises(TransportError) as failed:
        send(new_session(connections=1), Call(URL + PATH, {"secret": APP.secrets[0]}), timeout_s=1, connect_s=1)
    assert "SECRETMARKER" not in "".join(traceback.format_exception(failed.value)) + repr(failed.value)


@responses.activate
def test_while_a_secret_is_being_reset_the_other_one_is_tried_once() -> None:
    app = App(APP.appid, ("old", "new"))
    responses.get(URL + PATH, json={"errcode": 40125, "errmsg": "invalid appsecret"})
    with_new_secret = responses.matchers.query_param_matcher({"secret": "new"}, strict_match=False)
    responses.get(URL + PATH, json=GOOD, match=[with_new_secret])
    assert _client().code2session(app, CODE).openid == GOOD["openid"]


def _answers_by_secret(good: str) -> None:
    """WeChat that takes one secret, and no other."""

    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        secret = dict(request.params)["secret"]  # type: ignore[attr-defined]
        return 200, {}, json.dumps(GOOD if secret == good else {"errcode": 40125, "errmsg": "invalid appsecret"})

    responses.add_callback("GET", URL + PATH, answer)


@responses.activate
def test_the_secret_that_worked_last_is_tried_first_and_a_change_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, app = _client(), App(APP.appid, ("FIRSTMARKER", "SECONDMARKER"))
    _answers_by_secret("SECONDMARKER")
    for calls in (2, 3, 4):
        client.code2session(app, CODE)
        assert len(responses.calls) == calls
    responses.reset()
    _answers_by_secret("FIRSTMARKER")
    for calls in (2, 3):
        client.code2session(app, CODE)
        assert len(responses.calls) == calls
    said = [record.getMessage() for record in caplog.records if record.name == "authsvc.wechat"]
    assert ["the second works" in line for line in said] == [True, False]
    assert "MARKER" not in "".join(said)


@responses.activate
def test_when_the_second_secret_is_the_good_one_a_busy_wechat_does_not_cost_the_login() -> None:
    client, app = _client(), App(APP.appid, ("first", "second"))
    _answers_by_secret("second")
    client.code2session(app, CODE)
    responses.reset()
    responses.get(URL + PATH, json={"errcode": -1})
    _answers_by_secret("second")
    assert client.code2session(app, CODE).openid == GOOD["openid"]


@pytest.mark.parametrize("secrets", ["a plain text", ()])
def test_secrets_are_a_row_of_texts(secrets: Any) -> None:
    with pytest.raises(TypeError):
        App("wx1", secrets)


@pytest.mark.parametrize(
    ("errmsg", "address"),
    [
        (
            "invalid ip 8.149.1.108 ipv6 ::ffff:8.149.1.108, not in whitelist rid: 00000000-ffffffff-00000000",
            "8.149.1.108",
        ),
        ("invalid ip 2001:db8::1, not in whitelist", "2001:db8::1"),
        ("invalid ip 999.1.1.1 ipv6 x", None),
        ("invalid ip 8.149.1.108SECRET", None),
        ("not in whitelist", None),
        (None, None),
    ],
)
@responses.activate
def test_the_address_that_is_not_allowed_is_kept_for_the_operator(errmsg: object, address: str | None) -> None:
    responses.get(URL + PATH, json={"errcode": 40164, "errmsg": errmsg})
    with pytest.raises(WeChatMisconfigured) as refused:
        _client().code2session(APP, CODE)
    assert refused.value.seen_address == address
    assert refused.value.call == "jscode2session"


@responses.activate
def test_a_wrong_secret_is_not_tried_twice() -> None:
    responses.get(URL + PATH, json={"errcode": 40125, "errmsg": "invalid appsecret"})
    with pytest.raises(WeChatMisconfigured):
        _client().code2session(APP, CODE)
    assert len(responses.calls) == 1


@responses.activate
def test_a_login_makes_no_third_call() -> None:
    app = App(APP.appid, ("old", "new"))
    responses.get(URL + PATH, json={"errcode": -1})
    responses.get(URL + PATH, json={"errcode": 40125})
    responses.get(URL + PATH, json=GOOD)
    with pytest.raises(WeChatMisconfigured):
        _client().code2session(app, CODE)
    assert len(responses.calls) == 2


@responses.activate
def test_when_the_pause_has_used_the_time_up_it_is_a_timeout() -> None:
    responses.get(URL + PATH, json={"errcode": -1})
    time = _Time()
    client = _client(time)

    def slow(seconds: float) -> None:
        time.at += 100

    client._sleep = slow
    with pytest.raises(WeChatTimeout):
        client.code2session(APP, CODE)


@pytest.mark.parametrize(
    "code",
    ["", " ", "a b", "x&appid=other", "x%26", "a/b", "a\x01", "a\n", "a" * 129, "ö", "{}", "../..", "a#b", "a?b"],
)
@responses.activate
def test_a_code_that_could_change_the_url_never_reaches_wechat(code: str) -> None:
    with pytest.raises(BadRequest):
        _client().code2session(APP, code)
    assert len(responses.calls) == 0


@pytest.mark.parametrize("code", ["a", "0712cDoV0cfty22AeloV0daMoV02cDog", "-_", "a" * 128])
def test_a_plain_code_is_sent(code: str) -> None:
    check_code(code)


def test_the_mock_code_of_devtools_is_explained() -> None:
    with pytest.raises(BadRequest, match="appid"):
        check_code("the code is a mock one")


@responses.activate
def test_health_is_that_of_the_last_exchange() -> None:
    client = _client()
    seen = [client.health]
    replies: list[object] = [GOOD, {"errcode": 40125}, {"errcode": 40029}, [], {"errcode": 45009}, GOOD]
    for reply in replies:
        responses.reset()
        responses.get(URL + PATH, json=reply)
        with contextlib.suppress(WeChatError):
            client.code2session(APP, CODE)
        seen.append(client.health)
    assert seen == ["untried", "ok", "wechat_config", "ok", "wechat_bad_reply", "wechat_quota", "ok"]


# ---- the calls with an access token -----------------------------------------------------------------

ACCESS_TOKEN = "TOKENMARKER"
STABLE_TOKEN = URL + "/cgi-bin/stable_token"
CHECK = URL + "/wxa/checksession"
RESET = URL + "/wxa/resetusersessionkey"
PHONE = URL + "/wxa/business/getuserphonenumber"

OPENID = GOOD["openid"]
# HMAC-SHA256 of nothing under SESSION_KEY.
SIGNATURE = "7154f9f8b4b76b92f541cbf0e37d48840fa06e5e42da92a6f80168a1516a4735"
PHONE_INFO: dict[str, Any] = {
    "phoneNumber": "13580006666",
    "purePhoneNumber": "13580006666",
    "countryCode": 86,
    "watermark": {"timestamp": 1637744274, "appid": APP.appid},
}


def _check() -> bool:
    return _client().check_session_key(ACCESS_TOKEN, OPENID, SESSION_KEY)


def _reset() -> WeChatSession:
    return _client().reset_user_session_key(ACCESS_TOKEN, OPENID, SESSION_KEY)


def _phone(code: str = "phone-code") -> PhoneNumber:
    return _client().phone_number(ACCESS_TOKEN, code, appid=APP.appid, openid=OPENID)


def _token() -> AccessToken:
    return _client().stable_access_token(APP)


@responses.activate
def test_an_access_token_comes_from_stable_token_by_post_and_never_by_force() -> None:
    call = responses.post(STABLE_TOKEN, json={"access_token": "abc", "expires_in": 7200})
    assert _token() == AccessToken("abc", 7200)
    request = call.calls[0].request
    assert request.params == {}, "the secret is in the body"
    assert json.loads(request.body or b"") == {
        "grant_type": "client_credential",
        "appid": APP.appid,
        "secret": "SECRETMARKER",
        "force_refresh": False,
    }


@responses.activate
def test_a_session_key_is_checked_with_its_signature_in_the_query_and_no_body() -> None:
    call = responses.get(CHECK, json={"errcode": 0, "errmsg": "ok"})
    assert _check() is True
    request = call.calls[0].request
    assert request.params == {
        "access_token": ACCESS_TOKEN,
        "openid": OPENID,
        "signature": SIGNATURE,
        "sig_method": "hmac_sha256",
    }
    assert request.body is None


@responses.activate
def test_a_session_key_that_wechat_has_not_any_more_is_told_from_a_failure() -> None:
    responses.get(CHECK, json={"errcode": 87009, "errmsg": "invalid signature"})
    assert _check() is False


@responses.activate
def test_a_reset_gives_the_new_session_key() -> None:
    call = responses.get(RESET, json={"errcode": 0, "errmsg": "ok", **GOOD})
    assert _reset() == WeChatSession(OPENID, SESSION_KEY)
    assert call.calls[0].request.params["signature"] == SIGNATURE


@responses.activate
def test_a_reset_of_another_users_key_is_not_believed() -> None:
    responses.get(RESET, json={"errcode": 0, "errmsg": "ok", **GOOD, "openid": "oSomebodyElse"})
    with pytest.raises(WeChatBadReply):
        _reset()


@responses.activate
def test_a_reset_under_a_key_that_wechat_has_not_any_more_is_an_error_of_its_own() -> None:
    responses.get(RESET, json={"errcode": 87009, "errmsg": "invalid signature"})
    with pytest.raises(SessionKeyGone):
        _reset()


@pytest.mark.parametrize("country_code", [86, "86"])
@responses.activate
def test_a_phone_number_is_asked_for_with_the_users_openid(country_code: object) -> None:
    call = responses.post(
        PHONE, json={"errcode": 0, "errmsg": "ok", "phone_info": PHONE_INFO | {"countryCode": country_code}}
    )
    assert _phone() == PhoneNumber("13580006666", "13580006666", "86", 1637744274)
    request = call.calls[0].request
    assert request.params == {"access_token": ACCESS_TOKEN}
    assert json.loads(request.body or b"") == {"code": "phone-code", "openid": OPENID}


@pytest.mark.parametrize("errcode", [40029, 40163])
@responses.activate
def test_a_phone_code_that_is_refused_is_told_from_a_login_code(errcode: int) -> None:
    responses.post(PHONE, json={"errcode": errcode, "errmsg": "invalid code, rid: 652d44d0-1d0af18b-5b069232"})
    with pytest.raises(PhoneCodeInvalid) as refused:
        _phone()
    assert (refused.value.errcode, refused.value.rid) == (errcode, "652d44d0-1d0af18b-5b069232")


@pytest.mark.parametrize("code", ["", "a b", "x&y", "a" * 129, "ö"])
@responses.activate
def test_what_is_no_phone_code_never_reaches_wechat(code: str) -> None:
    with pytest.raises(BadRequest):
        _phone(code)
    assert len(responses.calls) == 0


BAD_SESSIONS: list[dict[str, Any]] = [
    {},
    {"openid": OPENID},
    {"session_key": SESSION_KEY},
    GOOD | {"session_key": "AAAA"},
]
BAD_PHONE_INFO: list[Any] = [
    None,
    [],
    *(
        PHONE_INFO | change
        for change in (
            {"watermark": None},
            {"watermark": {"timestamp": 1637744274, "appid": "wx2222222222222222"}},
            {"watermark": {"timestamp": "1637744274", "appid": APP.appid}},
            {"watermark": {"timestamp": True, "appid": APP.appid}},
            {"phoneNumber": None},
            {"phoneNumber": ""},
            {"phoneNumber": "1" * 65},
            {"purePhoneNumber": 13580006666},
            {"countryCode": None},
            {"countryCode": True},
            {"countryCode": "+86"},
        )
    ),
]
BAD_ANSWERS: list[tuple[Callable[[], object], str, str, object]] = [
    *(
        (_token, "POST", STABLE_TOKEN, answer)
        for answer in (
            {},
            {"access_token": "abc"},
            {"expires_in": 7200},
            {"access_token": "", "expires_in": 7200},
            {"access_token": 1, "expires_in": 7200},
            {"access_token": "a b", "expires_in": 7200},
            {"access_token": "a" * 2049, "expires_in": 7200},
            {"access_token": "abc", "expires_in": "7200"},
            {"access_token": "abc", "expires_in": 0},
            {"access_token": "abc", "expires_in": True},
            {"access_token": "abc", "expires_in": 86401},
        )
    ),
    (_check, "GET", CHECK, {}),
    (_check, "GET", CHECK, {"errmsg": "ok"}),
    (_check, "GET", CHECK, {"errcode": None}),
    *((_reset, "GET", RESET, {"errcode": 0, **answer}) for answer in BAD_SESSIONS),
    *((_phone, "POST", PHONE, {"errcode": 0, "phone_info": info}) for info in BAD_PHONE_INFO),
    (_phone, "POST", PHONE, {"errcode": 0}),
]


@pytest.mark.parametrize(("ask", "method", "url", "answer"), BAD_ANSWERS)
@responses.activate
def test_what_is_not_a_right_answer_of_that_call_is_a_bad_reply(
    ask: Callable[[], object], method: str, url: str, answer: object
) -> None:
    responses.add(method, url, json=answer)
    with pytest.raises(WeChatBadReply):
        ask()


CALLS: dict[str, tuple[Callable[[], object], str, str]] = {
    "stable_token": (_token, "POST", STABLE_TOKEN),
    "checksession": (_check, "GET", CHECK),
    "resetusersessionkey": (_reset, "GET", RESET),
    "getuserphonenumber": (_phone, "POST", PHONE),
}


@pytest.mark.parametrize("errcode", [40001, 40014, 42001])
@pytest.mark.parametrize("name", CALLS)
@responses.activate
def test_a_token_that_is_not_taken_can_be_told_and_for_stable_token_it_is_the_secret(name: str, errcode: int) -> None:
    ask, method, url = CALLS[name]
    responses.add(method, url, json={"errcode": errcode, "errmsg": "invalid credential"})
    with pytest.raises(WeChatMisconfigured if name == "stable_token" else AccessTokenRejected):
        ask()
    assert len(responses.calls) == 1


@pytest.mark.parametrize("name", CALLS)
@responses.activate
def test_every_call_is_made_once_more_when_wechat_is_busy_and_no_more(name: str) -> None:
    ask, method, url = CALLS[name]
    responses.add(method, url, json={"errcode": -1, "errmsg": "system error"})
    with pytest.raises(WeChatBusy):
        ask()
    assert len(responses.calls) == 2


@pytest.mark.parametrize("name", CALLS)
@responses.activate
def test_no_call_is_made_again_after_a_silence_nor_says_a_secret(name: str) -> None:
    ask, method, url = CALLS[name]
    responses.add(method, url, body=requests.ReadTimeout(f"{url}?access_token=TOKENMARKER&secret=SECRETMARKER"))
    with pytest.raises(WeChatTimeout) as failed:
        ask()
    assert len(responses.calls) == 1
    shown = "".join(traceback.format_exception(failed.value)) + repr(failed.value)
    assert not any(secret in shown for secret in ("SECRETMARKER", ACCESS_TOKEN, SESSION_KEY, SIGNATURE))


@responses.activate
def test_stable_token_over_its_minute_quota_is_busy_and_not_the_users_fault() -> None:
    responses.post(STABLE_TOKEN, json={"errcode": 45011, "errmsg": "api minute-quota reach limit"})
    with pytest.raises(WeChatBusy):
        _token()


@pytest.mark.parametrize("errcode", [40125, 40001])
@responses.activate
def test_while_a_secret_is_being_reset_an_access_token_is_had_with_the_other_one(errcode: int) -> None:
    responses.post(STABLE_TOKEN, json={"errcode": errcode, "errmsg": "invalid credential"})
    call = responses.post(STABLE_TOKEN, json={"access_token": "abc", "expires_in": 7200})
    _client().stable_access_token(App(APP.appid, ("old", "new")))
    assert [json.loads(c.request.body or b"")["secret"] for c in call.calls] == ["new"]


@responses.activate
def test_without_a_fallback_host_the_same_one_is_asked_again_after_a_pause() -> None:
    responses.get(URL + PATH, body=_refused())
    responses.get(URL + PATH, json=GOOD)
    time = _Time()
    assert _client(time).code2session(APP, CODE).openid == OPENID
    assert time.slept == [pytest.approx(0.4)]


@responses.activate
def test_a_deadline_of_the_caller_bounds_the_call() -> None:
    responses.get(CHECK, json={"errcode": 0, "errmsg": "ok"})
    time = _Time()
    with pytest.raises(WeChatTimeout):
        _client(time).check_session_key(ACCESS_TOKEN, OPENID, SESSION_KEY, ends_at=time.at)
    assert len(responses.calls) == 0


@responses.activate
def test_a_call_that_there_was_no_time_for_says_nothing_of_wechat() -> None:
    responses.get(CHECK, json={"errcode": 0, "errmsg": "ok"})
    time = _Time()
    client = _client(time)
    for _ in range(20):
        with pytest.raises(WeChatTimeout):
            client.check_session_key(ACCESS_TOKEN, OPENID, SESSION_KEY, ends_at=time.at)
        time.at += 2
    assert client.check_session_key(ACCESS_TOKEN, OPENID, SESSION_KEY) is True


@responses.activate
def test_when_one_call_has_been_down_for_a_while_it_is_not_made_and_the_others_are() -> None:
    responses.get(CHECK, body=b"<html>502</html>", status=502)
    responses.get(URL + PATH, json=GOOD)
    time = _Time()
    client = _client(time)
    for _ in range(6):
        with pytest.raises(WeChatBadReply):
            client.check_session_key(ACCESS_TOKEN, OPENID, SESSION_KEY)
        time.at += 2
    before = len(responses.calls)
    with pytest.raises(WeChatBusy):
        client.check_session_key(ACCESS_TOKEN, OPENID, SESSION_KEY)
    assert len(responses.calls) == before
    assert client.code2session(APP, CODE).openid == OPENID


def test_nothing_that_is_secret_has_a_repr() -> None:
    assert "SECRETMARKER" not in repr(APP)
    assert SESSION_KEY not in repr(WeChatSession("o", SESSION_KEY))
    assert "1358" not in repr(PhoneNumber("13580006666", "13580006666", "86", 0))
