"""Every path of the sandbox and what it answers, free of sockets. A new WeChat call is a row in `WECHAT`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import BadRequest
from authsvc.sandbox import admin, wire
from authsvc.sandbox.callbook import CallBook
from authsvc.sandbox.faults import (
    CHECKSESSION,
    ENDPOINTS,
    GETUSERPHONENUMBER,
    JSCODE2SESSION,
    RESETUSERSESSIONKEY,
    STABLE_TOKEN,
    ArmedFault,
    FaultPlan,
)
from authsvc.sandbox.wechat import SandboxWeChat


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(repr=False)  # the app secret is in it
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class About:
    """Which app and user of ours a call is about, as far as it says."""

    appid: str | None = None
    openid: str | None = None


@dataclass(frozen=True, slots=True)
class WeChatEndpoint:
    """One of WeChat's calls; counting it and playing faults come by themselves."""

    name: str  # in `GET /sandbox/calls` and `POST /sandbox/fault`
    content_type: str
    answer: Callable[[SandboxWeChat, Request], wire.Answer]
    stranger: Callable[[SandboxWeChat, Request], wire.Answer]  # what looks like a good answer, but is nobody's
    about: Callable[[SandboxWeChat, Request], About] = lambda _model, _request: About()
    code_fault: Callable[[SandboxWeChat, Request], ArmedFault | None] = lambda _model, _request: None


class Site:
    """All that one sandbox knows: WeChat, the planned faults by endpoint, and the calls so far."""

    def __init__(self, model: SandboxWeChat) -> None:
        self.model = model
        self.faults = {endpoint.name: FaultPlan(endpoint.name) for endpoint in WECHAT.values()}
        self.calls = CallBook(self.faults)


# ---- WeChat's calls ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _TokenRequest:
    appid: str | None
    secret: str | None = field(repr=False)
    grant_type: str | None
    force_refresh: bool


@dataclass(frozen=True, slots=True)
class _PhoneRequest:
    code: str | None = field(repr=False)
    openid: str | None


class _BadBody(Exception):
    """Not the JSON that the call takes; WeChat's 47001."""


def _code2session(model: SandboxWeChat, request: Request) -> wire.Answer:
    if request.method != "GET":
        return model.refusal(41002)  # WeChat does not look for the parameters anywhere but in the query
    query = request.query
    return model.code2session(query.get("appid"), query.get("secret"), query.get("js_code"), query.get("grant_type"))


def _about_code2session(model: SandboxWeChat, request: Request) -> About:
    return About(_own_appid(model, request.query.get("appid")), model.login_code_openid(request.query.get("js_code")))


def _stable_token(model: SandboxWeChat, request: Request) -> wire.Answer:
    if request.method != "POST":
        return model.refusal(43002)
    try:
        asked = _parse_token_request(request.body)
    except _BadBody:
        return model.refusal(47001)
    return model.stable_token(asked.appid, asked.secret, asked.grant_type, force_refresh=asked.force_refresh)


def _about_stable_token(model: SandboxWeChat, request: Request) -> About:
    try:
        return About(_own_appid(model, _parse_token_request(request.body).appid))
    except _BadBody:
        return About()


def _check_session_key(model: SandboxWeChat, request: Request) -> wire.Answer:
    return _signed(model.check_session_key, model, request)


def _reset_session_key(model: SandboxWeChat, request: Request) -> wire.Answer:
    return _signed(model.reset_session_key, model, request)


def _signed(ask: Callable[..., wire.Answer], model: SandboxWeChat, request: Request) -> wire.Answer:
    if request.method != "GET":
        return model.refusal(43001)
    names = ("access_token", "openid", "signature", "sig_method")
    return ask(*(request.query.get(name) for name in names), body=request.body)


def _about_signed(model: SandboxWeChat, request: Request) -> About:
    appid = model.token_appid(request.query.get("access_token"))
    openid = request.query.get("openid")
    return About(appid, openid if appid and openid and model.knows(appid, openid) else None)


def _phone_number(model: SandboxWeChat, request: Request) -> wire.Answer:
    if request.method != "POST":
        return model.refusal(43002)
    access_token = request.query.get("access_token")
    try:
        asked = _parse_phone_request(request.body)
    except _BadBody:
        # A bad access_token comes first, so that a client sees the same errcode whatever else is wrong.
        return model.access_token_refusal(access_token) or model.refusal(47001)
    return model.phone_number(access_token, asked.code, asked.openid)


def _about_phone_number(model: SandboxWeChat, request: Request) -> About:
    appid = model.token_appid(request.query.get("access_token"))
    try:
        return About(appid, model.phone_code_openid(_parse_phone_request(request.body).code))
    except _BadBody:
        return About(appid)


def _strangers_phone(model: SandboxWeChat, request: Request) -> wire.Answer:
    # At the end of a redirect there is no access_token.
    appid = model.token_appid(request.query.get("access_token")) or model.appids[0]
    return model.strangers.phone(appid, model.now)


def _parse_token_request(body: bytes) -> _TokenRequest:
    members = _members(body)
    force_refresh = members.get("force_refresh", False)
    if not isinstance(force_refresh, bool):
        raise _BadBody
    return _TokenRequest(
        appid=_text(members, "appid"),
        secret=_text(members, "secret"),
        grant_type=_text(members, "grant_type"),
        force_refresh=force_refresh,
    )


def _parse_phone_request(body: bytes) -> _PhoneRequest:
    members = _members(body)
    return _PhoneRequest(code=_text(members, "code"), openid=_text(members, "openid"))


def _members(body: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(body)
    except NotCanonical:
        raise _BadBody from None


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    # null is no text either: whoever sends it has a variable unset.
    if name in members and not isinstance(value, str):
        raise _BadBody
    return value if isinstance(value, str) else None


def _own_appid(model: SandboxWeChat, appid: str | None) -> str | None:
    return appid if appid in model.appids else None


CODE2SESSION: Final = WeChatEndpoint(
    name=JSCODE2SESSION,
    content_type=wire.TEXT,
    answer=_code2session,
    stranger=lambda model, _: model.strangers.login(),
    about=_about_code2session,
    code_fault=lambda model, request: model.code_fault(request.query.get("js_code")),
)

_CALLS: Final[Mapping[str, WeChatEndpoint]] = {
    "/sns/jscode2session": CODE2SESSION,
    "/cgi-bin/stable_token": WeChatEndpoint(
        name=STABLE_TOKEN,
        content_type=wire.JSON,
        answer=_stable_token,
        stranger=lambda model, _: model.strangers.access_token(),
        about=_about_stable_token,
    ),
    "/wxa/checksession": WeChatEndpoint(
        name=CHECKSESSION,
        content_type=wire.JSON,
        answer=_check_session_key,
        stranger=lambda model, _: model.strangers.nothing(),
        about=_about_signed,
    ),
    "/wxa/resetusersessionkey": WeChatEndpoint(
        name=RESETUSERSESSIONKEY,
        content_type=wire.JSON,
        answer=_reset_session_key,
        stranger=lambda model, request: model.strangers.session_key(request.query.get("openid")),
        about=_about_signed,
    ),
    "/wxa/business/getuserphonenumber": WeChatEndpoint(
        name=GETUSERPHONENUMBER,
        content_type=wire.JSON,
        answer=_phone_number,
        stranger=_strangers_phone,
        about=_about_phone_number,
    ),
}
ELSEWHERE_PATH: Final = "/sandbox/elsewhere"
"""Below it, by the name of the call, is where the fault `redirect` points to."""

WECHAT: Final[Mapping[str, WeChatEndpoint]] = {
    **_CALLS,
    **{
        f"{ELSEWHERE_PATH}/{call.name}": WeChatEndpoint(
            name="elsewhere", content_type=call.content_type, answer=call.stranger, stranger=call.stranger
        )
        for call in _CALLS.values()
    },
}


# ---- our own ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AdminRoute:
    method: str
    act: Callable[[Site, Request], wire.Answer]
    usage: str  # what it takes and gives, for --help


def _mint_code(site: Site, request: Request) -> wire.Answer:
    order = admin.parse_code_order(request.body)
    appid = _ordered_appid(site.model, order.appid)
    unionid = order.unionid if isinstance(order.unionid, str) else None
    if order.unionid is True:
        unionid = site.model.unionid(order.user)
    code = site.model.mint_code(
        appid,
        order.user,
        order.fault,
        times=order.times,
        delay_s=order.delay_s,
        unionid=unionid,
        new_session_key=order.new_session_key,
        device=order.device,
    )
    return {"code": code, "appid": appid}


def _mint_phone_code(site: Site, request: Request) -> wire.Answer:
    order = admin.parse_phone_code_order(request.body)
    return {"code": site.model.mint_phone_code(_ordered_appid(site.model, order.appid), order.user, order.phone)}


def _make_open_data(site: Site, request: Request) -> wire.Answer:
    order = admin.parse_open_data_order(request.body)
    appid = _ordered_appid(site.model, order.appid)
    return site.model.open_data(appid, order.user, order.data, order.session_key, order.age_s)


def _plan_fault(site: Site, request: Request) -> wire.Answer:
    order = admin.parse_fault_order(request.body)
    plans = [site.faults[name] for name in ENDPOINTS if order.endpoint in (None, name)]
    for plan in plans:
        if order.name is None:
            plan.clear()
        else:
            plan.set(order.name, times=order.times, delay_s=order.delay_s)
    return {"name": order.name, "times": order.times if order.name else 0, "endpoint": order.endpoint}


def _tell_calls(site: Site, _: Request) -> wire.Answer:
    return {**site.calls.counts(), "last": [asdict(record) for record in site.calls.last()]}


def _ordered_appid(model: SandboxWeChat, appid: str | None) -> str:
    if appid is not None:
        return appid
    if len(model.appids) != 1:
        raise BadRequest("appid is missing, and this sandbox has more than one app")
    return model.appids[0]


ADMIN: Final[Mapping[str, AdminRoute]] = {
    "/sandbox/code": AdminRoute(
        "POST",
        _mint_code,
        "{appid?, user?, device?, unionid?, new_session_key?, fault?, times?, delay_s?}: what wx.login gives",
    ),
    "/sandbox/phone_code": AdminRoute(
        "POST", _mint_phone_code, "{appid?, user?, phone?}: the code that the phone number button gives"
    ),
    "/sandbox/open_data": AdminRoute(
        "POST",
        _make_open_data,
        '{appid?, user?, data?, session_key?: "current" | "previous", age_s?}: what wx.getUserInfo gives',
    ),
    "/sandbox/fault": AdminRoute(
        "POST",
        _plan_fault,
        "{name, endpoint?, times?, delay_s?}: what the next calls meet; a name of null clears",
    ),
    "/sandbox/calls": AdminRoute("GET", _tell_calls, "how often each call came, and the last ones"),
}
