"""What WeChat in miniature answers a server beside logins: access tokens, checked and reset keys, phones, open data."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from authsvc.errors import BadRequest
from authsvc.sandbox import access_tokens, open_data
from authsvc.sandbox.wechat import SandboxWeChat
from tests.support.clock import NOW, FakeClock

APPID, SECRET = "wx0123456789abcdef", "0123456789abcdef0123456789abcdef"
OTHER_APPID, OTHER_SECRET = "wxfedcba9876543210", "fedcba9876543210fedcba9876543210"
MIDNIGHT = 1_799_942_400  # in Beijing
DAY_S = 86_400


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model(clock: FakeClock) -> SandboxWeChat:
    apps = {APPID: SECRET, OTHER_APPID: OTHER_SECRET}
    return SandboxWeChat(apps, clock=clock, random_bytes=random.Random(4711).randbytes)


def stable(model: SandboxWeChat, *, app: tuple[str, str] = (APPID, SECRET), force: bool = False) -> dict[str, object]:
    return model.stable_token(*app, "client_credential", force_refresh=force)


def token(model: SandboxWeChat, appid: str = APPID) -> str:
    return str(stable(model, app=(appid, SECRET if appid == APPID else OTHER_SECRET))["access_token"])


def log_in(model: SandboxWeChat, user: str = "alice", **more: Any) -> str:
    """The session_key."""
    answer = model.code2session(APPID, SECRET, model.mint_code(APPID, user, **more), "authorization_code")
    return str(answer["session_key"])


def signature(session_key: str, body: bytes = b"") -> str:
    return hmac.new(session_key.encode(), body, hashlib.sha256).hexdigest()


def check(model: SandboxWeChat, access_token: str, session_key: str, user: str = "alice") -> object:
    """The errcode."""
    openid = model.openid(APPID, user)
    return model.check_session_key(access_token, openid, signature(session_key), "hmac_sha256")["errcode"]


def reset(model: SandboxWeChat, access_token: str, session_key: str, user: str = "alice") -> dict[str, object]:
    openid = model.openid(APPID, user)
    return model.reset_session_key(access_token, openid, signature(session_key), "hmac_sha256")


# ---- access tokens ------------------------------------------------------------------------------


def test_an_access_token_looks_like_a_real_one_and_lives_two_hours(model: SandboxWeChat) -> None:
    answer = stable(model)
    assert set(answer) == {"access_token", "expires_in"}
    assert re.fullmatch(r"[0-9A-Za-z_-]{136}", str(answer["access_token"]))
    assert answer["expires_in"] == 7200


def test_a_token_stays_the_same_and_tells_the_seconds_it_has_left(model: SandboxWeChat, clock: FakeClock) -> None:
    first = stable(model)
    clock.at += 6899
    assert stable(model) == {**first, "expires_in": 301}


def test_in_a_tokens_last_five_minutes_there_is_a_new_one_and_both_are_good(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    old = token(model)
    clock.at += 6900
    answer = stable(model)
    assert answer["access_token"] != old
    assert answer["expires_in"] == 7200
    assert model.access_token_refusal(old) is None
    assert model.access_token_refusal(str(answer["access_token"])) is None


@pytest.mark.parametrize(("age_s", "errcode"), [(7199, None), (7200, 42001), (7201, 42001), (DAY_S, 42001)])
def test_a_token_ends_after_two_hours_and_is_told_from_an_unknown_one(
    model: SandboxWeChat, clock: FakeClock, age_s: int, errcode: int | None
) -> None:
    old = token(model)
    clock.at += age_s
    token(model)
    assert (model.access_token_refusal(old) or {}).get("errcode") == errcode
    assert (model.access_token_refusal(old[:-1]) or {}).get("errcode") == 40001


def test_two_apps_never_share_a_token(model: SandboxWeChat) -> None:
    ours, theirs = token(model), token(model, OTHER_APPID)
    assert ours != theirs
    assert (model.token_appid(ours), model.token_appid(theirs)) == (APPID, OTHER_APPID)
    stable(model, force=True)
    assert model.access_token_refusal(theirs) is None


def test_a_forced_refresh_kills_every_token_of_the_app_at_once(model: SandboxWeChat, clock: FakeClock) -> None:
    first = token(model)
    clock.at += 6900
    second = token(model)
    forced = stable(model, force=True)
    assert forced["expires_in"] == 7200
    assert forced["access_token"] not in (first, second)
    assert [(model.access_token_refusal(dead) or {})["errcode"] for dead in (first, second)] == [40001, 40001]
    assert token(model) == forced["access_token"]


@pytest.mark.parametrize(("later_s", "errcode"), [(0, 45011), (29, 45011), (30, None)])
def test_forced_refreshes_are_thirty_seconds_apart(
    model: SandboxWeChat, clock: FakeClock, later_s: int, errcode: int | None
) -> None:
    forced = stable(model, force=True)["access_token"]
    clock.at += later_s
    assert stable(model, force=True).get("errcode") == errcode
    assert (stable(model)["access_token"] == forced) is (errcode is not None), "a refused one kills nothing"


def test_the_twenty_first_forced_refresh_of_a_day_is_refused_until_midnight_in_beijing(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    assert (MIDNIGHT + 8 * 3600) % DAY_S == 0
    clock.at = MIDNIGHT + DAY_S - 22 * 60
    for _ in range(20):
        assert "errcode" not in stable(model, force=True)
        clock.at += 60
    assert stable(model, force=True)["errcode"] == 45009
    assert "errcode" not in stable(model, app=(OTHER_APPID, OTHER_SECRET), force=True)
    assert "errcode" not in stable(model)
    clock.at = MIDNIGHT + DAY_S - 1
    assert stable(model, force=True)["errcode"] == 45009
    clock.at += 1
    assert "errcode" not in stable(model, force=True)


def test_the_quota_of_a_minute_is_ten_thousand_calls_of_an_app(model: SandboxWeChat, clock: FakeClock) -> None:
    clock.at = MIDNIGHT + 59
    assert not any("errcode" in stable(model) for _ in range(10_000))
    assert stable(model)["errcode"] == 45011
    assert "errcode" not in stable(model, app=(OTHER_APPID, OTHER_SECRET))
    clock.at += 1
    assert "errcode" not in stable(model)


def test_the_quota_of_a_day_is_half_a_million_calls_of_an_app(
    model: SandboxWeChat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access_tokens.TOKEN_CALLS_PER_DAY == 500_000
    monkeypatch.setattr(access_tokens, "TOKEN_CALLS_PER_DAY", 3)
    clock.at = MIDNIGHT + DAY_S - 1
    assert ["errcode" in stable(model) for _ in range(3)] == [False] * 3
    assert stable(model)["errcode"] == 45009
    clock.at += 1
    assert "errcode" not in stable(model)


@pytest.mark.parametrize(
    ("appid", "secret", "grant_type", "errcode"),
    [
        (None, None, None, 41002),
        ("", SECRET, "client_credential", 41002),
        (APPID, None, None, 41004),
        (APPID, "", "client_credential", 41004),
        ("wxunknown", "wrong", None, 40002),
        (APPID, SECRET, "authorization_code", 40002),
        ("wxunknown", SECRET, "client_credential", 40013),
        (APPID, OTHER_SECRET, "client_credential", 40125),
        (APPID, "falsch-ä", "client_credential", 40125),
    ],
)
def test_whoever_is_not_the_app_gets_no_token(
    model: SandboxWeChat, appid: str | None, secret: str | None, grant_type: str | None, errcode: int
) -> None:
    answer = model.stable_token(appid, secret, grant_type, force_refresh=True)
    assert answer["errcode"] == errcode
    assert "access_token" not in answer
    assert "errcode" not in stable(model, force=True), "nor has it used up anything"


def test_old_tokens_are_forgotten_after_a_while(model: SandboxWeChat, clock: FakeClock) -> None:
    first = token(model)
    for _ in range(60):
        clock.at += 7200
        token(model)
    assert (model.access_token_refusal(first) or {})["errcode"] == 40001


# ---- checking a session key ---------------------------------------------------------------------


def test_the_key_of_the_last_login_is_good_and_the_one_it_displaced_is_not(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    access_token, old = token(model), log_in(model)
    assert check(model, access_token, old) == 0
    clock.at += 60
    new = log_in(model)
    assert [check(model, access_token, key) for key in (old, new)] == [87009, 0]


def test_a_code_displaces_the_key_before_it_is_exchanged(model: SandboxWeChat) -> None:
    access_token, old = token(model), log_in(model)
    model.mint_code(APPID, "alice", device="pc")
    assert check(model, access_token, old) == 87009


@pytest.mark.parametrize(("age_s", "errcode"), [(0, 0), (3 * DAY_S - 1, 0), (3 * DAY_S, 87009), (30 * DAY_S, 87009)])
def test_a_session_key_lives_three_days(model: SandboxWeChat, clock: FakeClock, age_s: int, errcode: int) -> None:
    key = log_in(model)
    clock.at += age_s
    assert check(model, token(model), key) == errcode


def test_the_signature_of_wechats_own_page_comes_out() -> None:
    assert (
        open_data.request_signature(b'{"foo":"bar"}', "o0q0otL8aEzpcZL/FT9WsQ==")
        == "654571f79995b2ce1e149e53c0a33dc39c0a74090db514261454e8dbe432aa0b"
    )
    assert (
        open_data.request_signature(b"", "tiihtNczf5v6AKRyjwEUhQ==")
        == "7154f9f8b4b76b92f541cbf0e37d48840fa06e5e42da92a6f80168a1516a4735"
    )


def test_the_signature_is_over_the_body_under_the_text_of_the_key_in_lower_case_hex(model: SandboxWeChat) -> None:
    access_token, key, openid = token(model), log_in(model), model.openid(APPID, "alice")

    def errcode(signature: str | None, body: bytes = b"") -> object:
        return model.check_session_key(access_token, openid, signature, "hmac_sha256", body)["errcode"]

    digest = hmac.new(key.encode(), b"", hashlib.sha256).digest()
    decoded = hmac.new(base64.b64decode(key), b"", hashlib.sha256).hexdigest()
    over_the_openid = hmac.new(key.encode(), openid.encode(), hashlib.sha256).hexdigest()
    assert errcode(digest.hex()) == 0
    bad = [None, "", decoded, over_the_openid, digest.hex().upper(), base64.b64encode(digest).decode(), "ü" * 64]
    assert [errcode(signature) for signature in bad] == [87009] * len(bad)
    assert errcode(digest.hex(), b"{}") == 87009
    assert errcode(signature(key, b"{}"), b"{}") == 0


@pytest.mark.parametrize("call", ["check_session_key", "reset_session_key"])
def test_a_signed_call_is_refused_for_the_first_thing_that_is_wrong(
    model: SandboxWeChat, clock: FakeClock, call: str
) -> None:
    ended = token(model)
    clock.at += 7200
    good, key, openid = token(model), log_in(model), model.openid(APPID, "alice")
    theirs = token(model, OTHER_APPID)
    ours = signature(key)

    def errcode(*parameters: str | None) -> object:
        answer = getattr(model, call)(*parameters)
        assert "session_key" not in answer
        return answer["errcode"]

    assert errcode(None, "oNobody", "x", None) == 41001
    assert errcode("", "oNobody", "x", None) == 41001
    assert errcode("unknown", "oNobody", "x", None) == 40001
    assert errcode(ended, "oNobody", "x", None) == 42001
    assert errcode(good, "oNobody", "x", None) == 40003
    assert errcode(good, None, "x", None) == 40003
    assert errcode(good, model.openid(APPID, "never-here"), ours, "hmac_sha256") == 40003
    assert errcode(theirs, openid, ours, "hmac_sha256") == 40003
    assert errcode(good, openid, "x", None) == 87008
    assert errcode(good, openid, ours, "hmac_sha1") == 87008
    assert errcode(good, openid, "x", "hmac_sha256") == 87009
    assert check(model, good, key) == 0, "nothing of this has changed the key"


# ---- resetting it -------------------------------------------------------------------------------


def test_a_reset_gives_a_new_key_and_kills_the_old_one_and_the_one_before(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    access_token, oldest = token(model), log_in(model)
    clock.at += 60
    old = log_in(model)
    answer = reset(model, access_token, old)
    assert set(answer) == {"errcode", "errmsg", "openid", "session_key"}
    assert (answer["errcode"], answer["errmsg"]) == (0, "ok")
    assert answer["openid"] == model.openid(APPID, "alice")
    new = str(answer["session_key"])
    assert len(base64.b64decode(new, validate=True)) == 16
    assert [check(model, access_token, key) for key in (oldest, old, new)] == [87009, 87009, 0]
    assert model.session_keys(APPID, model.openid(APPID, "alice")) == (new,)
    assert reset(model, access_token, old)["errcode"] == 87009


def test_a_reset_key_ends_when_the_old_one_would_have(model: SandboxWeChat, clock: FakeClock) -> None:
    key = log_in(model)
    clock.at += 3 * DAY_S - 1
    access_token = token(model)
    new = str(reset(model, access_token, key)["session_key"])
    assert check(model, access_token, new) == 0
    clock.at += 1
    assert check(model, access_token, new) == 87009
    assert reset(model, access_token, new)["errcode"] == 87009


def test_a_code_from_before_a_reset_gives_the_key_from_after_it(model: SandboxWeChat) -> None:
    key, code = log_in(model), model.mint_code(APPID, "alice")
    new = reset(model, token(model), key)["session_key"]
    assert model.code2session(APPID, SECRET, code, "authorization_code")["session_key"] == new


def test_a_login_soon_after_a_reset_keeps_the_new_key(model: SandboxWeChat, clock: FakeClock) -> None:
    new = reset(model, token(model), log_in(model))["session_key"]
    clock.at += 59
    assert log_in(model) == new


def test_a_reset_leaves_other_users_alone(model: SandboxWeChat) -> None:
    access_token, alices, bobs = token(model), log_in(model, "alice"), log_in(model, "bob")
    reset(model, access_token, alices)
    assert check(model, access_token, bobs, "bob") == 0


# ---- phone numbers ------------------------------------------------------------------------------


def phone_errcode(model: SandboxWeChat, code: str | None, openid: str | None = None, appid: str = APPID) -> object:
    return model.phone_number(token(model, appid), code, openid)["errcode"]


def test_a_phone_code_gives_the_number_with_a_watermark_of_now(model: SandboxWeChat, clock: FakeClock) -> None:
    code = model.mint_phone_code(APPID, "alice", "13800138000")
    assert re.fullmatch(r"[0-9a-f]{64}", code)
    clock.at += 10
    assert model.phone_number(token(model), code, model.openid(APPID, "alice")) == {
        "errcode": 0,
        "errmsg": "ok",
        "phone_info": {
            "phoneNumber": "13800138000",
            "purePhoneNumber": "13800138000",
            "countryCode": 86,
            "watermark": {"timestamp": NOW + 10, "appid": APPID},
        },
    }


def test_a_user_has_the_same_number_always_and_another_user_another(model: SandboxWeChat) -> None:
    def number(user: str) -> str:
        answer: Any = model.phone_number(token(model), model.mint_phone_code(APPID, user))
        return str(answer["phone_info"]["purePhoneNumber"])

    assert re.fullmatch(r"138[0-9]{8}", number("alice"))
    assert number("alice") == number("alice") != number("bob")


def test_a_phone_code_is_good_once(model: SandboxWeChat) -> None:
    code = model.mint_phone_code(APPID, "alice")
    assert [phone_errcode(model, code) for _ in range(3)] == [0, 40029, 40029]


@pytest.mark.parametrize(("age_s", "errcode"), [(299, 0), (300, 40029)])
def test_a_phone_code_lives_five_minutes(model: SandboxWeChat, clock: FakeClock, age_s: int, errcode: int) -> None:
    code = model.mint_phone_code(APPID, "alice")
    clock.at += age_s
    assert phone_errcode(model, code) == errcode


def test_a_phone_code_of_another_app_or_user_or_of_a_login_is_invalid_and_stays_good_for_its_own(
    model: SandboxWeChat,
) -> None:
    code = model.mint_phone_code(APPID, "alice")
    assert phone_errcode(model, code, appid=OTHER_APPID) == 40029
    assert phone_errcode(model, code, model.openid(APPID, "bob")) == 40029
    assert phone_errcode(model, code, "") == 40029
    for other in (model.mint_code(APPID, "alice"), "unknown", "", None):
        assert phone_errcode(model, other) == 40029
    assert phone_errcode(model, code, model.openid(APPID, "alice")) == 0


def test_a_phone_code_is_no_login(model: SandboxWeChat) -> None:
    code = model.mint_phone_code(APPID, "alice")
    assert model.code2session(APPID, SECRET, code, "authorization_code")["errcode"] == 40029
    assert phone_errcode(model, code) == 0


def test_a_phone_number_needs_a_good_access_token_first_of_all(model: SandboxWeChat, clock: FakeClock) -> None:
    ended = token(model)
    clock.at += 7200
    code = model.mint_phone_code(APPID, "alice")
    given = [(None, 41001), ("", 41001), ("unknown", 40001), (ended, 42001)]
    for access_token, errcode in given:
        assert model.phone_number(access_token, None)["errcode"] == errcode
        assert model.phone_number(access_token, code)["errcode"] == errcode
    assert phone_errcode(model, code) == 0


@pytest.mark.parametrize(
    "phone", ["", "1234", "1" * 16, "+8613800138000", "138-0013", "13800138000\n", "１３８００１３８"]
)
def test_what_is_no_phone_number_is_refused(model: SandboxWeChat, phone: str) -> None:
    with pytest.raises(BadRequest) as refused:
        model.mint_phone_code(APPID, "alice", phone)
    assert not phone or phone not in str(refused.value)


@pytest.mark.parametrize(("appid", "user"), [("wxunknown", "alice"), (APPID, ""), (APPID, "\ud800")])
def test_nobody_gets_no_phone_code_and_no_open_data(model: SandboxWeChat, appid: str, user: str) -> None:
    with pytest.raises(BadRequest):
        model.mint_phone_code(appid, user)
    with pytest.raises(BadRequest):
        model.open_data(appid, user)


# ---- open data ----------------------------------------------------------------------------------


def decrypted(made: dict[str, str], session_key: str) -> dict[str, Any]:
    cipher = Cipher(algorithms.AES(base64.b64decode(session_key)), modes.CBC(base64.b64decode(made["iv"])))
    padded = cipher.decryptor().update(base64.b64decode(made["encryptedData"], validate=True))
    assert 1 <= padded[-1] <= 16
    assert padded[-padded[-1] :] == padded[-1:] * padded[-1]
    opened = json.loads(padded[: -padded[-1]])
    assert isinstance(opened, dict)
    return opened


def test_the_rawdata_signature_of_wechats_own_page_comes_out() -> None:
    raw_data = (
        '{"nickName":"Band","gender":1,"language":"zh_CN","city":"Guangzhou","province":"Guangdong","country":"CN",'
        '"avatarUrl":"http://wx.qlogo.cn/mmopen/vi_32/1vZvI39NWFQ9XM4LtQpFrQJ1xlgZxx3w7bQxKARol6503Iuswjjn6nIGBiaycAjAtpuj'
        'xyzYsrztuuICqIM5ibXQ/0"}'
    )
    signed = open_data.raw_data_signature(raw_data, "HyVFkGl5F5OQWJZZaNzBBg==")
    assert signed == "75e81ceda165f4ffa64f4068af58c64b8f54b88c"


def test_open_data_are_about_the_user_signed_and_encrypted_under_the_key_in_force(model: SandboxWeChat) -> None:
    key = log_in(model)
    made = model.open_data(APPID, "alice")
    assert set(made) == {"rawData", "signature", "encryptedData", "iv"}
    assert len(base64.b64decode(made["iv"], validate=True)) == 16
    assert made["signature"] == hashlib.sha1((made["rawData"] + key).encode()).hexdigest()
    public = json.loads(made["rawData"])
    assert set(public) == {"nickName", "gender", "language", "city", "province", "country", "avatarUrl"}
    opened = decrypted(made, key)
    assert opened == {
        **public,
        "openId": model.openid(APPID, "alice"),
        "watermark": {"timestamp": NOW, "appid": APPID},
    }
    assert re.search("[\u4e00-\u9fff].*[\U0001f300-\U0001faff]", opened["nickName"])


def test_a_user_with_a_unionid_has_it_in_the_encrypted_part_alone(model: SandboxWeChat) -> None:
    key = log_in(model, unionid="oUnion")
    made = model.open_data(APPID, "alice")
    assert decrypted(made, key)["unionId"] == "oUnion"
    assert "oUnion" not in made["rawData"]


def test_no_two_open_data_have_the_same_iv(model: SandboxWeChat) -> None:
    log_in(model)
    assert len({model.open_data(APPID, "alice")["iv"] for _ in range(50)}) == 50


def test_open_data_can_be_made_under_the_key_before(model: SandboxWeChat) -> None:
    old = log_in(model)
    with pytest.raises(BadRequest):
        model.open_data(APPID, "alice", which="previous")
    new = log_in(model, device="pc")
    for which, key in (("previous", old), ("current", new)):
        made = model.open_data(APPID, "alice", which=which)
        assert decrypted(made, key)["openId"] == model.openid(APPID, "alice")
        assert made["signature"] == hashlib.sha1((made["rawData"] + key).encode()).hexdigest()


def test_after_a_reset_there_is_no_key_before(model: SandboxWeChat, clock: FakeClock) -> None:
    log_in(model)
    new = reset(model, token(model), log_in(model, device="pc"))["session_key"]
    with pytest.raises(BadRequest):
        model.open_data(APPID, "alice", which="previous")
    assert decrypted(model.open_data(APPID, "alice"), str(new))["openId"] == model.openid(APPID, "alice")


@pytest.mark.parametrize(("age_s", "timestamp"), [(0, NOW), (600, NOW - 600), (-600, NOW + 600), (0.5, NOW - 1)])
def test_open_data_are_as_old_as_asked(model: SandboxWeChat, age_s: float, timestamp: int) -> None:
    key = log_in(model)
    watermark = decrypted(model.open_data(APPID, "alice", age_s=age_s), key)["watermark"]
    assert watermark == {"timestamp": timestamp, "appid": APPID}


def test_open_data_of_ones_own_have_these_members_and_a_watermark(model: SandboxWeChat) -> None:
    key = log_in(model)
    made = model.open_data(APPID, "alice", {"openGId": "tGroup", "名": "值/"})
    assert made["rawData"] == '{"openGId":"tGroup","名":"值/"}'
    assert decrypted(made, key) == {
        "openGId": "tGroup",
        "名": "值/",
        "watermark": {"timestamp": NOW, "appid": APPID},
    }


@pytest.mark.parametrize("watermark", [None, {}, "text", {"timestamp": "1", "appid": "wxother"}])
def test_a_watermark_of_ones_own_wins_whatever_it_is(model: SandboxWeChat, watermark: object) -> None:
    key = log_in(model)
    made = model.open_data(APPID, "alice", {"openId": "oOther", "watermark": watermark}, age_s=5)
    assert decrypted(made, key) == {"openId": "oOther", "watermark": watermark}
    assert made["rawData"] == "{}"


@pytest.mark.parametrize("age_s", [1_000_000_001, -1_000_000_001, float("nan"), float("inf"), 10**400])
def test_an_age_that_no_clock_shows_is_refused(model: SandboxWeChat, age_s: float) -> None:
    log_in(model)
    with pytest.raises(BadRequest):
        model.open_data(APPID, "alice", age_s=age_s)


@pytest.mark.parametrize("which", ["", "next", "Current"])
def test_there_is_no_third_session_key(model: SandboxWeChat, which: str) -> None:
    log_in(model)
    with pytest.raises(BadRequest):
        model.open_data(APPID, "alice", which=which)


def test_whoever_never_logged_in_has_no_open_data(model: SandboxWeChat) -> None:
    model.mint_phone_code(APPID, "alice")
    with pytest.raises(BadRequest):
        model.open_data(APPID, "alice")


# ---- strangers ----------------------------------------------------------------------------------


def test_a_strangers_answers_look_like_good_ones_and_are_nobodys(model: SandboxWeChat) -> None:
    access_token, key, openid = token(model), log_in(model), model.openid(APPID, "alice")
    stranger = model.strangers
    login: Any = stranger.login()
    assert set(login) == {"openid", "session_key"}
    assert not model.knows(APPID, login["openid"])
    nobodys: Any = stranger.access_token()
    assert set(nobodys) == set(stable(model))
    assert (model.access_token_refusal(nobodys["access_token"]) or {})["errcode"] == 40001
    another_key: Any = stranger.session_key(openid)
    assert (another_key["errcode"], another_key["openid"]) == (0, openid)
    assert check(model, access_token, another_key["session_key"]) == 87009
    assert check(model, access_token, key) == 0
    phone: Any = stranger.phone(APPID, NOW)
    own: Any = model.phone_number(access_token, model.mint_phone_code(APPID, "alice"))
    assert phone["phone_info"]["watermark"] == own["phone_info"]["watermark"]
    assert phone["phone_info"]["purePhoneNumber"] != own["phone_info"]["purePhoneNumber"]
    assert stranger.nothing() == {"errcode": 0, "errmsg": "ok"}
