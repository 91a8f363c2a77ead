"""Every path of the sandbox and what it answers, free of sockets. A new WeChat call is a row in `WECHAT`."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from authsvc.errors import BadRequest
from authsvc.sandbox import admin, wire
from authsvc.sandbox.faults import ArmedFault, FaultPlan
from authsvc.sandbox.wechat import SandboxWeChat

KEPT_CALLS: Final = 200


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(repr=False)  # the app secret is in it
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WeChatEndpoint:
    """One of WeChat's calls; counting it and playing faults come by themselves."""

    name: str  # in `GET /sandbox/calls`
    content_type: str
    answer: Callable[[SandboxWeChat, Request], wire.Answer]
    code_fault: Callable[[SandboxWeChat, Request], ArmedFault | None] = lambda _model, _request: None


@dataclass(slots=True)
class CallRecord:
    endpoint: str
    appid: str | None  # None unless it is one of ours: whoever swaps two parameters sends the secret here
    fault: str | None
    errcode: int | None = None  # 0 for a login; None for an answer without one, or none


class CallBook:
    """How many calls came, and what became of the last ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._last: deque[CallRecord] = deque(maxlen=KEPT_CALLS)

    def note(self, record: CallRecord) -> None:
        with self._lock:
            self._counts[record.endpoint] += 1
            self._last.append(record)

    def told(self) -> wire.Answer:
        with self._lock:
            counts = {endpoint.name: self._counts[endpoint.name] for endpoint in WECHAT.values()}
            return {**counts, "last": [asdict(record) for record in self._last]}


class Site:
    """All that one sandbox knows: WeChat, the planned faults by endpoint, and the calls so far."""

    def __init__(self, model: SandboxWeChat) -> None:
        self.model = model
        self.faults = {endpoint.name: FaultPlan() for endpoint in WECHAT.values()}
        self.calls = CallBook()


# ---- WeChat's calls ------------------------------------------------------------------------------


def _code2session(model: SandboxWeChat, request: Request) -> wire.Answer:
    if request.method != "GET":
        return model.refusal(41002)  # WeChat does not look for the parameters anywhere but in the query
    query = request.query
    return model.code2session(query.get("appid"), query.get("secret"), query.get("js_code"), query.get("grant_type"))


CODE2SESSION: Final = WeChatEndpoint(
    name="jscode2session",
    content_type=wire.TEXT,
    answer=_code2session,
    code_fault=lambda model, request: model.code_fault(request.query.get("js_code")),
)
_ELSEWHERE: Final = WeChatEndpoint(
    name="elsewhere",  # where the fault `redirect` points to
    content_type=wire.TEXT,
    answer=lambda model, _: model.stranger(),
)
ELSEWHERE_PATH: Final = "/sandbox/elsewhere"

WECHAT: Final[Mapping[str, WeChatEndpoint]] = {
    "/sns/jscode2session": CODE2SESSION,
    ELSEWHERE_PATH: _ELSEWHERE,
}


# ---- our own ------------------------------------------------------------------------------------


def _mint_code(site: Site, request: Request) -> wire.Answer:
    order = admin.parse_code_order(request.body)
    model = site.model
    appid = order.appid
    if appid is None:
        if len(model.appids) != 1:
            raise BadRequest("appid is missing, and this sandbox has more than one app")
        (appid,) = model.appids
    unionid = order.unionid if isinstance(order.unionid, str) else None
    if order.unionid is True:
        unionid = model.unionid(order.user)
    code = model.mint_code(
        appid,
        order.user,
        order.fault,
        times=order.times,
        delay_s=order.delay_s,
        unionid=unionid,
        new_session_key=order.new_session_key,
    )
    return {"code": code, "appid": appid}


def _plan_fault(site: Site, request: Request) -> wire.Answer:
    order = admin.parse_fault_order(request.body)
    plan = site.faults[CODE2SESSION.name]
    if order.name is None:
        plan.clear()
        return {"name": None, "times": 0}
    plan.set(order.name, times=order.times, delay_s=order.delay_s)
    return {"name": order.name, "times": order.times}


def _tell_calls(site: Site, _: Request) -> wire.Answer:
    return site.calls.told()


ADMIN: Final[Mapping[str, tuple[str, Callable[[Site, Request], wire.Answer]]]] = {
    "/sandbox/code": ("POST", _mint_code),
    "/sandbox/fault": ("POST", _plan_fault),
    "/sandbox/calls": ("GET", _tell_calls),
}
