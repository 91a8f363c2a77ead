"""WeChat in miniature without HTTP: codes, session keys, quota, faults; the clock is the test's own."""

from __future__ import annotations

import base64
import itertools
import re

import pytest

from authsvc.errors import BadRequest, SettingsError
from authsvc.sandbox import admin, codes, users
from authsvc.sandbox.errcodes import ERRCODES
from authsvc.sandbox.faults import ENDPOINTS, FAULTS, JSCODE2SESSION, FaultPlan
from authsvc.sandbox.wechat import SandboxWeChat
from tests.support.clock import FakeClock

APPID, SECRET = "wx0123456789abcdef", "0123456789abcdef0123456789abcdef"
OTHER_APPID, OTHER_SECRET = "wxfedcba9876543210", "fedcba9876543210fedcba9876543210"
GRANT = "authorization_code"


class CountingBytes:
    """Different bytes at every call, the same in every run."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self, length: int) -> bytes:
        # A count alone would make every value nearly all zeros.
        return (next(self._numbers) * 0x9E3779B97F4A7C15).to_bytes(length + 8)[-length:]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model(clock: FakeClock) -> SandboxWeChat:
    return new_model(clock)


def new_model(clock: FakeClock) -> SandboxWeChat:
    return SandboxWeChat({APPID: SECRET, OTHER_APPID: OTHER_SECRET}, clock=clock, random_bytes=CountingBytes())


def exchange(model: SandboxWeChat, code: str, appid: str = APPID, secret: str = SECRET) -> dict[str, object]:
    return model.code2session(appid, secret, code, GRANT)


def log_in(model: SandboxWeChat, user: str = "alice") -> dict[str, object]:
    return exchange(model, model.mint_code(APPID, user))


# ---- codes --------------------------------------------------------------------------------------


def test_a_code_looks_like_a_real_one_and_no_two_are_alike(model: SandboxWeChat) -> None:
    minted = {model.mint_code(APPID, "alice") for _ in range(100)}
    assert len(minted) == 100
    assert all(re.fullmatch(r"[0-9A-Za-z]{32}", code) for code in minted)


def test_a_login_has_an_openid_and_a_session_key_and_nothing_else(model: SandboxWeChat) -> None:
    answer = log_in(model)
    assert set(answer) == {"openid", "session_key"}
    assert re.fullmatch(r"o[0-9A-Za-z_-]{27}", str(answer["openid"]))
    key = str(answer["session_key"])
    assert len(key) == 24
    assert len(base64.b64decode(key, validate=True)) == 16


@pytest.mark.parametrize(("age_s", "errcode"), [(0, None), (299, None), (300, 40029), (301, 40029), (86_400, 40029)])
def test_a_code_lives_five_minutes(model: SandboxWeChat, clock: FakeClock, age_s: int, errcode: int | None) -> None:
    code = model.mint_code(APPID, "alice")
    clock.at += age_s
    assert exchange(model, code).get("errcode") == errcode


def test_a_code_is_good_once_and_used_for_the_rest_of_its_five_minutes_and_unknown_then(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    code = model.mint_code(APPID, "alice")
    assert "errcode" not in exchange(model, code)
    assert exchange(model, code)["errcode"] == 40163
    clock.at += 299
    assert exchange(model, code)["errcode"] == 40163
    clock.at += 1
    assert exchange(model, code)["errcode"] == 40029


@pytest.mark.parametrize(
    ("appid", "secret", "code", "grant_type", "errcode"),
    [
        (None, SECRET, "minted", GRANT, 41002),
        ("", SECRET, "minted", GRANT, 41002),
        (APPID, None, "minted", GRANT, 41004),
        (APPID, "", "minted", GRANT, 41004),
        (APPID, SECRET, None, GRANT, 41008),
        (APPID, SECRET, "", GRANT, 41008),
        (APPID, SECRET, "minted", None, 40002),
        (APPID, SECRET, "minted", "client_credential", 40002),
        ("wxunknown", SECRET, "minted", GRANT, 40013),
        (APPID.upper(), SECRET, "minted", GRANT, 40013),
        (APPID, "wrong", "minted", GRANT, 40125),
        (APPID, "falsch-ä", "minted", GRANT, 40125),
        (APPID, "\ud800", "minted", GRANT, 40125),
        (APPID, OTHER_SECRET, "minted", GRANT, 40125),
        (APPID, SECRET, "the code is a mock one", GRANT, 40029),
        (OTHER_APPID, OTHER_SECRET, "minted", GRANT, 40029),
    ],
)
def test_each_refusal_has_its_errcode_and_a_rid_and_leaves_the_code_as_it_was(
    model: SandboxWeChat,
    appid: str | None,
    secret: str | None,
    code: str | None,
    grant_type: str | None,
    errcode: int,
) -> None:
    minted = model.mint_code(APPID, "alice")
    answer = model.code2session(appid, secret, minted if code == "minted" else code, grant_type)
    assert set(answer) == {"errcode", "errmsg"}
    assert answer["errcode"] == errcode
    assert re.fullmatch(r"[a-z_ ]+, rid: [0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}", str(answer["errmsg"]))
    assert "errcode" not in exchange(model, minted)


def test_the_allow_list_refusal_has_wechats_own_form(model: SandboxWeChat) -> None:
    errmsg = str(model.refusal(40164)["errmsg"])
    assert re.fullmatch(
        r"invalid ip 127\.0\.0\.1 ipv6 ::ffff:127\.0\.0\.1, not in whitelist rid: \w{8}-\w{8}-\w{8}", errmsg
    )


def test_no_refusal_repeats_the_secret_or_the_code(model: SandboxWeChat) -> None:
    for secret, code in [("wrong-s3cret", "a-code"), (SECRET, "a-code")]:
        answer = str(model.code2session(APPID, secret, code, GRANT))
        assert secret not in answer
        assert code not in answer
    assert SECRET not in repr(model)


# ---- users --------------------------------------------------------------------------------------


def test_an_openid_is_the_same_after_a_restart_and_different_for_each_app_and_user(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    openid = log_in(model)["openid"]
    assert openid == log_in(new_model(clock))["openid"] == model.openid(APPID, "alice")
    assert len({openid, model.openid(OTHER_APPID, "alice"), model.openid(APPID, "bob")}) == 3


def test_an_openid_never_changes_between_releases(model: SandboxWeChat) -> None:
    assert model.openid(APPID, "user-1") == "o-U8oqgZxrQwVFXa0hfTS7vi2Zpc"


def test_a_unionid_is_the_same_in_every_app(model: SandboxWeChat) -> None:
    unionid = model.unionid("alice")
    for appid, secret in [(APPID, SECRET), (OTHER_APPID, OTHER_SECRET)]:
        answer = exchange(model, model.mint_code(appid, "alice", unionid=unionid), appid, secret)
        assert answer["unionid"] == unionid
        assert answer["openid"] != unionid


@pytest.mark.parametrize("user", ["", "x" * 129, "\ud800"])
def test_what_is_no_name_is_refused_as_a_user(model: SandboxWeChat, user: str) -> None:
    with pytest.raises(BadRequest):
        model.mint_code(APPID, user)


@pytest.mark.parametrize(("appid", "fault"), [("wxunknown", None), (APPID, "no_such_fault")])
def test_an_unknown_app_or_fault_mints_nothing(model: SandboxWeChat, appid: str, fault: str | None) -> None:
    with pytest.raises(BadRequest):
        model.mint_code(appid, "alice", fault)


@pytest.mark.parametrize("apps", [{}, {"": SECRET}, {APPID: ""}, {"wx a": SECRET}, {APPID: "two words"}])
def test_apps_that_wechat_would_not_give_out_are_refused_without_the_secret(apps: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as refused:
        SandboxWeChat(apps, clock=FakeClock(), random_bytes=CountingBytes())
    assert not any(secret and secret in str(refused.value) for secret in apps.values())


# ---- session keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(("later_s", "same"), [(0, True), (59, True), (60, False), (3600, False)])
def test_a_later_login_replaces_the_session_key_but_not_within_a_minute(
    model: SandboxWeChat, clock: FakeClock, later_s: int, same: bool
) -> None:
    first = log_in(model)["session_key"]
    clock.at += later_s
    assert (log_in(model)["session_key"] == first) is same


def test_a_new_session_key_can_be_asked_for_within_the_minute(model: SandboxWeChat) -> None:
    first = log_in(model)["session_key"]
    assert exchange(model, model.mint_code(APPID, "alice", new_session_key=True))["session_key"] != first


def test_a_login_on_another_device_than_the_last_replaces_the_session_key_each_time(model: SandboxWeChat) -> None:
    keys = [
        exchange(model, model.mint_code(APPID, "alice", device=device))["session_key"]
        for device in ("phone", "phone", "pc", "phone", "phone")
    ]
    assert keys[0] == keys[1]
    assert keys[3] == keys[4]
    assert len({keys[0], keys[2], keys[3]}) == 3
    assert model.session_keys(APPID, model.openid(APPID, "alice")) == (keys[3], keys[2])


@pytest.mark.parametrize("device", ["", "x" * 129, "\ud800"])
def test_what_is_no_name_is_refused_as_a_device(model: SandboxWeChat, device: str) -> None:
    with pytest.raises(BadRequest):
        model.mint_code(APPID, "alice", device=device)


def test_the_users_are_told_with_how_often_their_key_was_replaced_and_the_last_one_first(model: SandboxWeChat) -> None:
    for user, device in [("alice", "phone"), ("bob", "phone"), ("alice", "phone"), ("alice", "pc")]:
        model.mint_code(APPID, user, device=device)
    told = [(user.name, user.openid, user.device, user.keys_replaced) for user in model.users(10)]
    assert told == [
        ("alice", model.openid(APPID, "alice"), "pc", 1),
        ("bob", model.openid(APPID, "bob"), "phone", 0),
    ]
    assert [user.name for user in model.users(1)] == ["alice"]


def test_the_login_that_started_last_has_the_valid_key_whichever_code_is_exchanged_first(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    earlier = model.mint_code(APPID, "alice")
    clock.at += 60
    later = model.mint_code(APPID, "alice")
    later_key, earlier_key = exchange(model, later)["session_key"], exchange(model, earlier)["session_key"]
    assert model.session_keys(APPID, model.openid(APPID, "alice")) == (later_key, earlier_key)


def test_the_valid_key_and_the_one_before_it_are_known_and_no_older_one(model: SandboxWeChat, clock: FakeClock) -> None:
    keys = []
    for _ in range(3):
        keys.append(log_in(model)["session_key"])
        clock.at += 60
    assert model.session_keys(APPID, model.openid(APPID, "alice")) == (keys[2], keys[1])
    assert model.session_keys(APPID, model.openid(APPID, "bob")) == ()


def test_users_do_not_share_a_session_key(model: SandboxWeChat) -> None:
    assert log_in(model, "alice")["session_key"] != log_in(model, "bob")["session_key"]


# ---- quota and memory ---------------------------------------------------------------------------


def test_the_hundred_and_first_exchange_of_a_user_in_a_minute_is_refused_and_keeps_its_code(
    model: SandboxWeChat, clock: FakeClock
) -> None:
    clock.at += 59
    assert not any("errcode" in log_in(model) for _ in range(100))
    code = model.mint_code(APPID, "alice")
    assert exchange(model, code)["errcode"] == 45011
    assert "errcode" not in log_in(model, "bob")
    clock.at += 1
    assert "errcode" not in exchange(model, code)


def test_ended_codes_are_forgotten_and_younger_ones_are_not(model: SandboxWeChat, clock: FakeClock) -> None:
    for _ in range(50):
        model.mint_code(APPID, "alice")
    clock.at += 1
    younger = model.mint_code(APPID, "alice")
    clock.at += codes.CODE_LIFETIME_S - 1
    model.mint_code(APPID, "alice")
    assert len(model._login_codes) == 2
    assert "errcode" not in exchange(model, younger)


def test_codes_and_users_beyond_the_bound_push_out_the_oldest(
    model: SandboxWeChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "KEPT_CODES", 10)
    monkeypatch.setattr(users, "KEPT_USERS", 5)
    minted = [model.mint_code(APPID, f"user-{n}") for n in range(20)]
    assert len(model._login_codes) == 10
    assert len(model._users) == 5
    assert exchange(model, minted[9])["errcode"] == 40029
    assert "errcode" not in exchange(model, minted[10])
    assert len(model._users) == 5


# ---- faults -------------------------------------------------------------------------------------


def test_a_code_meets_its_own_fault_every_time_or_as_often_as_told(model: SandboxWeChat) -> None:
    always = model.mint_code(APPID, "alice", "system_busy")
    once = model.mint_code(APPID, "alice", "system_busy", times=1)
    without = model.mint_code(APPID, "alice")
    assert [bool(model.code_fault(code)) for code in (always, always, once, once, without)] == [1, 1, 1, 0, 0]
    assert model.code_fault(None) is None
    assert model.code_fault("unknown") is None


def test_a_code_that_has_ended_has_lost_its_fault(model: SandboxWeChat, clock: FakeClock) -> None:
    code = model.mint_code(APPID, "alice", "reset")
    clock.at += codes.CODE_LIFETIME_S
    assert model.code_fault(code) is None


def test_a_plan_ends_after_its_times_and_a_new_one_replaces_it() -> None:
    plan = FaultPlan(JSCODE2SESSION)
    assert plan.take() is None
    plan.set("reset", times=2)
    plan.set("delay", times=2, delay_s=0.5)
    met = [plan.take() for _ in range(3)]
    assert [(armed.fault.name, armed.delay_s) if armed else None for armed in met] == [
        ("delay", 0.5),
        ("delay", 0.5),
        None,
    ]
    plan.set("reset", times=None)
    assert all(plan.take() for _ in range(1000))
    plan.clear()
    assert plan.take() is None


@pytest.mark.parametrize(
    ("name", "times", "delay_s"),
    [
        ("no_such_fault", 1, None),
        ("delay", 0, None),
        ("delay", -1, None),
        ("delay", 10**9 + 1, None),
        ("delay", 1, -0.1),
        ("delay", 1, 60.1),
        ("delay", 1, float("nan")),
        ("delay", 1, float("inf")),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_the_old_one_stays(
    name: str, times: int, delay_s: float | None
) -> None:
    plan = FaultPlan(JSCODE2SESSION)
    plan.set("reset")
    with pytest.raises(BadRequest):
        plan.set(name, times=times, delay_s=delay_s)
    armed = plan.take()
    assert armed is not None
    assert armed.fault.name == "reset"


def test_every_fault_stands_in_the_table_once_with_a_line_of_its_own() -> None:
    assert len(FAULTS) == 67
    assert all(re.fullmatch(r"[a-z0-9_]+", name) and fault.name == name for name, fault in FAULTS.items())
    assert len({fault.line for fault in FAULTS.values()}) == len(FAULTS)
    assert "none" not in FAULTS  # that name clears


def test_every_fault_makes_sense_somewhere_and_the_connections_faults_everywhere() -> None:
    assert all(fault.endpoints and fault.endpoints <= set(ENDPOINTS) for fault in FAULTS.values())
    for name in ("reset", "close", "delay", "hang", "drip_body", "bad_gateway_page", "huge", "system_busy"):
        assert FAULTS[name].endpoints == set(ENDPOINTS)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_plan_takes_the_faults_of_its_endpoint_and_no_others(endpoint: str) -> None:
    plan = FaultPlan(endpoint)
    for name, fault in FAULTS.items():
        if endpoint in fault.endpoints:
            plan.set(name)
        else:
            with pytest.raises(BadRequest):
                plan.set(name)


def test_a_code_takes_no_fault_that_is_for_another_call(model: SandboxWeChat) -> None:
    with pytest.raises(BadRequest):
        model.mint_code(APPID, "alice", "no_phone_info")


def test_a_plan_can_be_looked_at_without_counting() -> None:
    plan = FaultPlan(JSCODE2SESSION)
    assert plan.look() is None
    plan.set("delay", times=2, delay_s=0.5)
    for left in (2, 1):
        planned = plan.look()
        assert planned == plan.look()
        assert planned is not None
        assert (planned.name, planned.left, planned.delay_s) == ("delay", left, 0.5)
        plan.take()
    assert plan.look() is None


def test_every_errcode_has_a_text_of_wechats_and_a_meaning() -> None:
    assert all(known.errmsg and known.meaning for known in ERRCODES.values())


# ---- the bodies of the admin routes -------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"\xff",
        b"null",
        b"[]",
        b'"user"',
        b"[" * 4096,
        b'{"user": "a", "user": "b"}',
        b'{"usr": "a"}',
        b'{"user": ""}',
        b'{"user": 1}',
        b'{"user": "\\ud800"}',
        b'{"appid": ["wx"]}',
        b'{"fault": true}',
        b'{"unionid": 1}',
        b'{"unionid": ""}',
        b'{"new_session_key": 1}',
        b'{"device": 1}',
        b'{"device": ""}',
        b'{"times": 1}',
        b'{"delay_s": 1}',
        b'{"fault": "delay", "times": true}',
        b'{"fault": "delay", "times": 1.0}',
        b'{"fault": "delay", "times": 0}',
        b'{"fault": "delay", "delay_s": "1"}',
        b'{"fault": "delay", "delay_s": true}',
        b'{"fault": "delay", "delay_s": NaN}',
        b'{"fault": "delay", "delay_s": ' + b"9" * 4500 + b"}",
    ],
)
def test_an_order_for_a_code_that_is_not_of_its_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        admin.parse_code_order(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"name": ""}',
        b'{"name": 1}',
        b'{"name": "reset", "times": 0}',
        b'{"name": "reset", "endpoint": "elsewhere"}',
        b'{"name": "reset", "endpoint": ""}',
        b'{"name": "reset", "endpoint": ["checksession"]}',
        b'{"name": null, "endpoint": "no_such_call"}',
    ],
)
def test_an_order_for_a_fault_that_is_not_of_its_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        admin.parse_fault_order(body)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"user": null, "appid": null, "fault": null, "unionid": null}'])
def test_an_order_that_says_nothing_is_for_a_plain_code_of_the_first_user(body: bytes) -> None:
    assert admin.parse_code_order(body) == admin.CodeOrder(
        appid=None,
        user="user-1",
        fault=None,
        times=None,
        delay_s=None,
        unionid=None,
        new_session_key=False,
        device="phone",
    )


@pytest.mark.parametrize("body", [b'{"name": null}', b'{"name": "none"}'])
def test_null_and_none_both_clear_and_every_endpoint(body: bytes) -> None:
    order = admin.parse_fault_order(body)
    assert (order.name, order.endpoint) == (None, None)


def test_a_fault_is_for_code2session_unless_it_says_another_endpoint() -> None:
    assert admin.parse_fault_order(b'{"name": "reset"}').endpoint == "jscode2session"
    assert admin.parse_fault_order(b'{"name": "reset", "endpoint": "checksession"}').endpoint == "checksession"


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b'{"usr": "a"}',
        b'{"user": 1}',
        b'{"appid": ""}',
        b'{"phone": 13800138000}',
        b'{"phone": ""}',
        b'{"code": "c"}',
    ],
)
def test_an_order_for_a_phone_code_that_is_not_of_its_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        admin.parse_phone_code_order(body)


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b'{"user": 1}',
        b'{"fault": "delay"}',
        b'{"data": []}',
        b'{"data": "{}"}',
        b'{"data": {"a": 1, "a": 2}}',
        b'{"data": {"a": "\\ud800"}}',
        b'{"session_key": 0}',
        b'{"age_s": "1"}',
        b'{"age_s": true}',
        b'{"age_s": NaN}',
    ],
)
def test_an_order_for_open_data_that_is_not_of_its_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        admin.parse_open_data_order(body)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data": null, "session_key": null, "age_s": null}'])
def test_an_order_for_open_data_that_says_nothing_is_for_those_of_the_first_user_now(body: bytes) -> None:
    order = admin.OpenDataOrder(appid=None, user="user-1", data=None, session_key="current", age_s=0)
    assert admin.parse_open_data_order(body) == order
