"""The bodies of the sandbox's own routes: JSON in, frozen dataclasses out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import BadRequest

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


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """`POST /sandbox/fault`; a name of None clears."""

    name: str | None
    times: int
    delay_s: float | None


def parse_code_order(body: bytes) -> CodeOrder:
    """An empty body orders a code for DEFAULT_USER.

    Raises: BadRequest, as the other one does, saying which member is wrong, but never its value.
    """
    members = _members(body or b"{}", ("appid", "user", "fault", "times", "delay_s", "unionid", "new_session_key"))
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
    )


def parse_fault_order(body: bytes) -> FaultOrder:
    members = _members(body, ("name", "times", "delay_s"))
    if "name" not in members:
        raise BadRequest("name is missing: the name of a fault, or null to clear")
    return FaultOrder(
        name=_fault_name("name", members["name"]),
        times=_optional_count("times", members.get("times")) or 1,
        delay_s=_optional_seconds("delay_s", members.get("delay_s")),
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
