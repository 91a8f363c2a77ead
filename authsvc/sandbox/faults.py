"""Every way in which the sandbox can answer badly, by name; `FAULTS` is the table.

A fault that refuses, or never gets as far as an answer, leaves code and session_key as they were. One that gives a
right or a mangled right answer has asked WeChat first: `consumes_code` says which is which.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from authsvc.errors import BadRequest
from authsvc.sandbox import fault_acts as acts
from authsvc.sandbox.fault_acts import LONGEST_HANG_S, Call

JSCODE2SESSION: Final = "jscode2session"
STABLE_TOKEN: Final = "stable_token"  # noqa: S105 - the name of a call
CHECKSESSION: Final = "checksession"
RESETUSERSESSIONKEY: Final = "resetusersessionkey"
GETUSERPHONENUMBER: Final = "getuserphonenumber"

ENDPOINTS: Final = (JSCODE2SESSION, STABLE_TOKEN, CHECKSESSION, RESETUSERSESSIONKEY, GETUSERPHONENUMBER)
EVERYWHERE: Final = frozenset(ENDPOINTS)

MAX_DELAY_S: Final = 60.0
MAX_TIMES: Final = 1_000_000_000

REPLY_LIMIT: Final = 64 * 1024  # what authsvc reads of a reply at most; the faults of size stay just below or go beyond
HUGE_BODY: Final = 200 * 1024
BOMB_BODY: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. `act` gets the call and the delay in seconds."""

    name: str
    line: str
    act: Callable[[Call, float], None]
    endpoints: frozenset[str] = EVERYWHERE  # the calls of WeChat's that it makes sense for
    consumes_code: bool = False
    default_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ArmedFault:
    """A fault that the call at hand meets."""

    fault: Fault
    delay_s: float

    def meet(self, call: Call) -> None:
        self.fault.act(call, self.delay_s)


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault that calls to come will meet."""

    name: str
    left: int | None  # None: all of them
    delay_s: float


class FaultPlan:
    """The one fault that the next calls of one endpoint meet, and how many of them. Thread-safe."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._armed: ArmedFault | None = None
        self._left: int | None = None

    def set(self, name: str, *, times: int | None = 1, delay_s: float | None = None) -> None:
        """Plan it for the next `times` calls, or for all of them if None; what was planned before is dropped.

        Raises: BadRequest for a name, a number or a delay that does not fit, or a fault that makes no sense for
        the endpoint; the old plan stays then.
        """
        armed = ArmedFault(*_checked(self._endpoint, name, times, delay_s))
        with self._lock:
            self._armed, self._left = armed, times

    def clear(self) -> None:
        with self._lock:
            self._armed = None

    def take(self) -> ArmedFault | None:
        """The fault for one call, counted."""
        with self._lock:
            armed = self._armed
            if armed is not None and self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self._armed = None
            return armed

    def look(self) -> PlannedFault | None:
        """What the next call will meet; it stays planned."""
        with self._lock:
            armed = self._armed
            return PlannedFault(armed.fault.name, self._left, armed.delay_s) if armed else None


def _checked(endpoint: str, name: str, times: int | None, delay_s: float | None) -> tuple[Fault, float]:
    fault = FAULTS.get(name)
    if fault is None:
        raise BadRequest("unknown fault; `python -m authsvc.sandbox --help` lists them")
    if endpoint not in fault.endpoints:
        raise BadRequest("the fault makes no sense there; `python -m authsvc.sandbox --help` says where each does")
    if times is not None and not 1 <= times <= MAX_TIMES:
        raise BadRequest(f"times is 1 to {MAX_TIMES}")
    if delay_s is None:
        return fault, fault.default_delay_s
    if not 0 <= delay_s <= MAX_DELAY_S:  # NaN as well
        raise BadRequest(f"delay_s is 0 to {MAX_DELAY_S:.0f} seconds")
    return fault, delay_s


# ---- the table ----------------------------------------------------------------------------------

_LOGIN: Final = frozenset({JSCODE2SESSION})
_TOKEN: Final = frozenset({STABLE_TOKEN})
_PHONE: Final = frozenset({GETUSERPHONENUMBER})
_TAKES_A_CODE: Final = frozenset({JSCODE2SESSION, GETUSERPHONENUMBER})
_TAKES_THE_SECRET: Final = frozenset({JSCODE2SESSION, STABLE_TOKEN})
_TAKES_A_TOKEN: Final = frozenset({CHECKSESSION, RESETUSERSESSIONKEY, GETUSERPHONENUMBER})
_TAKES_A_SIGNATURE: Final = frozenset({CHECKSESSION, RESETUSERSESSIONKEY})
_GIVES_A_KEY: Final = frozenset({JSCODE2SESSION, RESETUSERSESSIONKEY})  # and an openid

_GATEWAY_PAGE: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    b"<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_NESTED: Final = b"[" * (REPLY_LIMIT // 2 - 1) + b"]" * (REPLY_LIMIT // 2 - 1)
_EXTRA: Final = {"expires_in": 7200, "errcode": 0, "errmsg": "ok"}


def _refusal(name: str, line: str, errcode: int, endpoints: frozenset[str] = EVERYWHERE) -> Fault:
    return Fault(name, line, acts.refuse(errcode), endpoints)


def _right(name: str, line: str, act: acts.Act, endpoints: frozenset[str] = EVERYWHERE, delay_s: float = 0) -> Fault:
    return Fault(name, line, act, endpoints, consumes_code=True, default_delay_s=delay_s)


_TABLE: Final = (
    # errcodes
    _refusal("system_busy", "errcode -1: WeChat asks to try later", -1),
    _refusal("invalid_code", "errcode 40029", 40029, _TAKES_A_CODE),
    _refusal("code_used", "errcode 40163: code been used", 40163, _LOGIN),
    _refusal("code_blocked", "errcode 40226: high-risk user, login stopped by WeChat", 40226, _LOGIN),
    _refusal("rate_limited", "errcode 45011: too often within a minute", 45011),
    _refusal("quota_exceeded", "errcode 45009: the app's daily quota is used up", 45009),
    _refusal("invalid_appid", "errcode 40013", 40013, _TAKES_THE_SECRET | _PHONE),
    _refusal("invalid_appsecret", "errcode 40125", 40125, _TAKES_THE_SECRET),
    _refusal("ip_not_allowed", "errcode 40164: our address is not on the app's allow list", 40164),
    _refusal("appsecret_frozen", "errcode 40243", 40243, _TAKES_THE_SECRET),
    _refusal("appid_missing", "errcode 41002", 41002, _TAKES_THE_SECRET),
    _refusal("appsecret_missing", "errcode 41004", 41004, _TAKES_THE_SECRET),
    _refusal("code_missing", "errcode 41008", 41008, _LOGIN),
    _refusal("unknown_errcode", "errcode 50002, which is not in WeChat's page for this call", 50002),
    _refusal("access_token_invalid", "errcode 40001: unknown, or not the latest", 40001, _TAKES_A_TOKEN),
    _refusal("access_token_other", "errcode 40014: not a valid access_token", 40014, _TAKES_A_TOKEN),
    _refusal("access_token_expired", "errcode 42001", 42001, _TAKES_A_TOKEN),
    _refusal("openid_invalid", "errcode 40003", 40003, _TAKES_A_SIGNATURE),
    _refusal("sig_method_invalid", "errcode 87008", 87008, _TAKES_A_SIGNATURE),
    _refusal("signature_invalid", "errcode 87009: not signed with the key in force", 87009, _TAKES_A_SIGNATURE),
    Fault(
        "errcode_as_text",
        'errcode 40029 as a string: "errcode": "40029"',
        acts.refuse_as_text,
        _TAKES_A_CODE,
    ),
    # no answer in it
    Fault(
        "bad_gateway_page",
        "HTTP 502 with a page as text/html",
        acts.instead(_GATEWAY_PAGE, status=502, content_type="text/html"),
    ),
    Fault("html_200", "the same page with HTTP 200", acts.instead(_GATEWAY_PAGE, content_type="text/html")),
    Fault("http_500", "HTTP 500 around what looks like a good answer (a stranger's)", acts.stranger_500),
    Fault("empty", "a body of no bytes", acts.instead(b"")),
    Fault("not_json", "a body that is not JSON", acts.instead(b"openid=oNobody&session_key=none")),
    Fault("json_null", "the body `null`", acts.instead(b"null")),
    Fault("json_list", "a list around what looks like a good answer (a stranger's)", acts.stranger_list),
    Fault("json_string", "a JSON string", acts.instead(b'"openid session_key"')),
    Fault("deep_json", f"{len(_NESTED) // 2:,} nested brackets, just under 64 KiB", acts.instead(_NESTED)),
    Fault("redirect", "302 to below /sandbox/elsewhere, where a good answer seems to be (a stranger's)", acts.redirect),
    # the right answer, its bytes mangled
    _right(
        "duplicate_members",
        "the right answer with one member again behind it, a stranger's",
        acts.one_member_twice,
    ),
    _right(
        "not_utf8",
        "the right answer with bytes that are not UTF-8 in another member",
        acts.encoded(acts.with_raw_member(b'"nickname":"\xff\xfe\xc0"')),
    ),
    _right("utf16", "the right answer in UTF-16", acts.encoded(lambda body: body.decode().encode("utf-16"))),
    _right("bom", "the right answer behind a byte order mark", acts.encoded(b"\xef\xbb\xbf".__add__)),
    _right("huge", "the right answer, then spaces up to 200 KiB", acts.encoded(lambda body: body.ljust(HUGE_BODY))),
    _right(
        "gzip_bomb",
        "the right answer, then 32 MiB of spaces, as 32 KiB of gzip",
        acts.encoded(lambda body: acts.gzip(body, spaces=BOMB_BODY), ("Content-Encoding", "gzip")),
    ),
    _right("truncated", "the right answer, but Content-Length promises 100 bytes more", acts.truncated),
    # the right answer, some members mangled
    _right("no_openid", "the right answer without openid", acts.without("openid"), _GIVES_A_KEY),
    _right("empty_openid", "openid is empty", acts.changed(lambda _: {"openid": ""}), _GIVES_A_KEY),
    _right("number_openid", "openid is a number", acts.changed(lambda _: {"openid": 4711}), _GIVES_A_KEY),
    _right(
        "openid_with_slash",
        "openid has a slash in it",
        acts.changed(lambda answer: {"openid": f"{answer['openid']}/../x"}),
        _GIVES_A_KEY,
    ),
    _right("long_openid", "openid has 129 characters", acts.changed(lambda _: {"openid": "o" * 129}), _GIVES_A_KEY),
    _right("no_session_key", "the right answer without session_key", acts.without("session_key"), _GIVES_A_KEY),
    _right("empty_session_key", "session_key is empty", acts.with_session_key(lambda _: ""), _GIVES_A_KEY),
    _right(
        "short_session_key",
        "session_key is base64 of 15 bytes",
        acts.with_session_key(lambda key: base64.b64encode(key[:15]).decode()),
        _GIVES_A_KEY,
    ),
    _right(
        "unpadded_session_key",
        "session_key lacks its ==",
        acts.with_session_key(lambda key: base64.b64encode(key).decode().rstrip("=")),
        _GIVES_A_KEY,
    ),
    _right(
        "bad_session_key",
        "session_key is 24 characters that are not base64",
        acts.with_session_key(lambda _: "!" * 24),
        _GIVES_A_KEY,
    ),
    _right("no_access_token", "the right answer without access_token", acts.without("access_token"), _TOKEN),
    _right("number_access_token", "access_token is a number", acts.changed(lambda _: {"access_token": 4711}), _TOKEN),
    _right("no_expires_in", "the right answer without expires_in", acts.without("expires_in"), _TOKEN),
    _right(
        "text_expires_in",
        'expires_in is a string: "7200"',
        acts.changed(lambda answer: {"expires_in": str(answer["expires_in"])}),
        _TOKEN,
    ),
    _right("zero_expires_in", "expires_in is 0", acts.changed(lambda _: {"expires_in": 0}), _TOKEN),
    _right("no_phone_info", "the right answer without phone_info", acts.without("phone_info"), _PHONE),
    _right(
        "foreign_watermark",
        "phone_info.watermark.appid is another app's",
        acts.changed(acts.with_another_watermark),
        _PHONE,
    ),
    # odd, but right: a client takes these
    _right("gzip", "the right answer, gzip encoded", acts.encoded(acts.gzip, ("Content-Encoding", "gzip"))),
    _right(
        "set_cookie",
        "the right answer and a Set-Cookie",
        acts.encoded(lambda body: body, ("Set-Cookie", "sandbox=1; Path=/")),
    ),
    _right(
        "control_characters",
        "the right answer with raw control characters in another member, as WeChat does",
        acts.encoded(acts.with_raw_member(b'"nickname":"a\x01\tb\x1f"')),
    ),
    _right(
        "extra_members",
        "the right answer with errcode 0, errmsg ok and expires_in 7200, unless these are in it anyway",
        acts.changed(lambda answer: {**_EXTRA, **answer}),
    ),
    _right(
        "text_country_code",
        'countryCode is a string: "86"',
        acts.changed(acts.with_country_code_as_text),
        _PHONE,
    ),
    # connection and time
    Fault("reset", "the connection is reset (RST) before any answer", acts.reset),
    Fault("close", "the connection is closed without an answer", acts.close),
    _right("delay", "the right answer after delay_s seconds (1); WeChat is asked at once", acts.delay, delay_s=1.0),
    Fault(
        "hang",
        "no answer until the client goes, or for delay_s seconds (60)",
        acts.hang,
        default_delay_s=LONGEST_HANG_S,
    ),
    _right(
        "drip_body",
        "the right answer, its body one byte every delay_s seconds (0.2)",
        acts.drip_body,
        delay_s=0.2,
    ),
    _right(
        "drip_headers",
        "the right answer, its head one byte every delay_s seconds (0.2)",
        acts.drip_headers,
        delay_s=0.2,
    ),
    Fault(
        "endless_continue",
        "HTTP/1.1 100 Continue every delay_s seconds (0.2) until the client goes, or for 60 s",
        acts.endless_continue,
        default_delay_s=0.2,
    ),
)

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType({fault.name: fault for fault in _TABLE})
