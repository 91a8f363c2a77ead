"""The bodies of the sandbox's own routes: JSON in, frozen dataclasses out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import BadRequest
from authsvc.sandbox.faults import ENDPOINTS, JSCODE2SESSION
from authsvc.sandbox.wechat import DEFAULT_DEVICE

DEFAULT_USER: Final = "user-1"


@dataclass(frozen=True, slots=True)
class CodeOrder:
    """`POST /sandbox/code`."""

    appid: str | None  # None: the only app
    user: str
    fault: str | None
    times: int | None  # exchanges of this code that meet the fault; None: all of them
    delay_s: float | None
    unionid: str | bool | None  # True: the one derived from the user; a text: that one
    new_session_key: bool
    device: str


@dataclass(frozen=True, slots=True)
class PhoneCodeOrder:
    """`POST /sandbox/phone_code`."""

    appid: str | None  # None: the only app
    user: str
    phone: str | None = field(repr=False)  # None: the user's own number


@dataclass(frozen=True, slots=True)
class OpenDataOrder:
    """`POST /sandbox/open_data`."""

    appid: str | None  # None: the only app
    user: str
    data: Mapping[str, object] | None = field(repr=False)  # None: what wx.getUserInfo tells of the user
    session_key: str  # which one: "current" or "previous"
    age_s: float  # negative: from the future


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """`POST /sandbox/fault`; a name of None clears."""

    name: str | None
    times: int
    delay_s: float | None
    endpoint: str | None  # None, with a name of None alone: every one


def parse_code_order(body: bytes) -> CodeOrder:
    """An empty body orders a code for DEFAULT_USER.

    Raises: BadRequest, as the other ones do, saying which member is wrong, but never its value.
    """
    known = ("appid", "user", "fault", "times", "delay_s", "unionid", "new_session_key", "device")
    members = _members(body or b"{}", known)
    unionid = members.get("unionid")
    if not isinstance(unionid, bool):
        unionid = _optional_text("unionid", unionid)
    new_session_key = members.get("new_session_key", False)
    if not isinstance(new_session_key, bool):
        raise BadRequest("new_session_key is true or false")
    fault = _fault_name("fault", members.get("fault"))
    if fault is None and ("times" in members or "delay_s" in members):
        raise BadRequest("times and delay_s go with a fault")
    return CodeOrder(
        appid=_optional_text("appid", members.get("appid")),
        user=_optional_text("user", members.get("user")) or DEFAULT_USER,
        fault=fault,
        times=_optional_count("times", members.get("times")),
        delay_s=_optional_seconds("delay_s", members.get("delay_s")),
        unionid=unionid,
        new_session_key=new_session_key,
        device=_optional_text("device", members.get("device")) or DEFAULT_DEVICE,
    )


def parse_phone_code_order(body: bytes) -> PhoneCodeOrder:
    """An empty body orders one for DEFAULT_USER."""
    members = _members(body or b"{}", ("appid", "user", "phone"))
    return PhoneCodeOrder(
        appid=_optional_text("appid", members.get("appid")),
        user=_optional_text("user", members.get("user")) or DEFAULT_USER,
        phone=_optional_text("phone", members.get("phone")),
    )


def parse_open_data_order(body: bytes) -> OpenDataOrder:
    """An empty body orders those of DEFAULT_USER, made now under the current session_key."""
    members = _members(body or b"{}", ("appid", "user", "data", "session_key", "age_s"))
    data = members.get("data")
    if data is not None and not isinstance(data, dict):
        raise BadRequest("data is an object")
    return OpenDataOrder(
        appid=_optional_text("appid", members.get("appid")),
        user=_optional_text("user", members.get("user")) or DEFAULT_USER,
        data=data,
        session_key=_optional_text("session_key", members.get("session_key")) or "current",
        age_s=_optional_seconds("age_s", members.get("age_s")) or 0,
    )


def parse_fault_order(body: bytes) -> FaultOrder:
    """Without an endpoint a fault is for code2session, and clearing is for all."""
    members = _members(body, ("name", "times", "delay_s", "endpoint"))
    if "name" not in members:
        raise BadRequest("name is missing: the name of a fault, or null to clear")
    name = _fault_name("name", members["name"])
    endpoint = _optional_text("endpoint", members.get("endpoint"))
    if endpoint is not None and endpoint not in ENDPOINTS:
        raise BadRequest(f"endpoint is one of {', '.join(ENDPOINTS)}")
    return FaultOrder(
        name=name,
        times=_optional_count("times", members.get("times")) or 1,
        delay_s=_optional_seconds("delay_s", members.get("delay_s")),
        endpoint=endpoint or (JSCODE2SESSION if name else None),
    )


def _members(body: bytes, known: Collection[str]) -> dict[str, object]:
    try:
        value = parse_json_object(body)
    except NotCanonical as error:
        raise BadRequest(f"the body is {error}") from None
    if not value.keys() <= set(known):
        raise BadRequest(f"unknown member; known are {', '.join(known)}")
    return value


def _text(member: str, value: object) -> str:
    if not isinstance(value, str) or not value or any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRequest(f"{member} is a text that is not empty")
    return value


def _optional_text(member: str, value: object) -> str | None:
    return None if value is None else _text(member, value)


def _fault_name(member: str, value: object) -> str | None:
    name = _optional_text(member, value)
    return None if name == "none" else name


def _optional_count(member: str, value: object) -> int | None:
    # type(): bool is an int to isinstance.
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise BadRequest(f"{member} is a whole number from 1")
    return value


def _optional_seconds(member: str, value: object) -> float | None:
    """How many are too many is the fault table's matter."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadRequest(f"{member} is a number of seconds")
    return value
