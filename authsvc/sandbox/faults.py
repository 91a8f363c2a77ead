"""Every way in which the sandbox can answer badly, by name; `FAULTS` is the table.

A fault that refuses, or never gets as far as an answer, leaves the code as it was. One that gives a
right or a mangled right answer has exchanged the code first: `consumes_code` says which is which.
"""

from __future__ import annotations

import base64
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from authsvc.errors import BadRequest
from authsvc.sandbox.wire import Answer, Headers, json_body

LONGEST_HANG_S: Final = 60.0
MAX_DELAY_S: Final = 60.0
MAX_TIMES: Final = 1_000_000_000

REPLY_LIMIT: Final = 64 * 1024  # what authsvc reads of a reply at most; the faults of size stay just below or go beyond
HUGE_BODY: Final = 200 * 1024
BOMB_BODY: Final = 32 * 1024 * 1024


class Call(Protocol):
    """One call of a WeChat endpoint, with the socket it came on. Writing raises OSError once the client has gone."""

    def exchange(self) -> Answer:
        """The answer WeChat would give, an errcode included; uses the code up, so it is asked for once."""

    def refusal(self, errcode: int) -> Answer:
        """An errcode with WeChat's errmsg; the code stays as it is."""

    def stranger(self) -> Answer:
        """What looks like a good login, of nobody who asked; whoever believes it has logged in a stranger."""

    def reply(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str | None = None,
        headers: Headers = (),
        missing: int = 0,
    ) -> None:
        """Answer in full, but for `missing` bytes that Content-Length promises and nobody sends.

        A content type of None is the endpoint's own.
        """

    def head(self, content_length: int) -> bytes:
        """Status line and headers of a 200."""

    def send(self, raw: bytes) -> None:
        """Put these bytes on the socket as they are."""

    def wait(self, seconds: float) -> bool:
        """Wait this long; False as soon as the client has gone or the server stops."""

    def hang_up(self) -> None:
        """Close the connection after this call."""

    def reset(self) -> None:
        """Close it after this call with a RST."""

    def elsewhere(self) -> str:
        """An absolute URL on this server that answers `stranger()`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. `act` gets the call and the delay in seconds."""

    name: str
    line: str
    act: Callable[[Call, float], None]
    consumes_code: bool = False
    default_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ArmedFault:
    """A fault that the call at hand meets."""

    fault: Fault
    delay_s: float

    def meet(self, call: Call) -> None:
        self.fault.act(call, self.delay_s)


class FaultPlan:
    """The one fault that the next calls meet, and how many of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: ArmedFault | None = None
        self._left: int | None = None

    def set(self, name: str, *, times: int | None = 1, delay_s: float | None = None) -> None:
        """Plan it for the next `times` calls, or for all of them if None; what was planned before is dropped.

        Raises: BadRequest for a name, a number or a delay that does not fit; the old plan stays then.
        """
        armed = ArmedFault(*_checked(name, times, delay_s))
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


def _checked(name: str, times: int | None, delay_s: float | None) -> tuple[Fault, float]:
    fault = FAULTS.get(name)
    if fault is None:
        raise BadRequest("unknown fault; `python -m authsvc.sandbox --help` lists them")
    if times is not None and not 1 <= times <= MAX_TIMES:
        raise BadRequest(f"times is 1 to {MAX_TIMES}")
    if delay_s is None:
        return fault, fault.default_delay_s
    if not 0 <= delay_s <= MAX_DELAY_S:  # NaN as well
        raise BadRequest(f"delay_s is 0 to {MAX_DELAY_S:.0f} seconds")
    return fault, delay_s


# ---- how they act -------------------------------------------------------------------------------

_Act = Callable[[Call, float], None]


def _refuse(errcode: int) -> _Act:
    return lambda call, _: call.reply(json_body(call.refusal(errcode)))


def _refuse_as_text(call: Call, _: float) -> None:
    answer = call.refusal(40029)
    call.reply(json_body({**answer, "errcode": str(answer["errcode"])}))


def _instead(body: bytes, *, status: int = 200, content_type: str | None = None) -> _Act:
    """This body instead of an answer."""
    return lambda call, _: call.reply(body, status=status, content_type=content_type)


def _encoded(encode: Callable[[bytes], bytes], *headers: tuple[str, str]) -> _Act:
    """The right answer, its bytes changed."""
    return lambda call, _: call.reply(encode(json_body(call.exchange())), headers=headers)


def _with(changes: Callable[[Answer], Answer]) -> _Act:
    """The right answer, some members changed; a refusal of WeChat's goes out as it is."""

    def act(call: Call, _: float) -> None:
        answer = call.exchange()
        call.reply(json_body(answer if "errcode" in answer else {**answer, **changes(answer)}))

    return act


def _without(member: str) -> _Act:
    return lambda call, _: call.reply(json_body({k: v for k, v in call.exchange().items() if k != member}))


def _with_raw_member(raw: bytes) -> Callable[[bytes], bytes]:
    """A last member, written as raw bytes."""
    return lambda body: body[:-1] + b"," + raw + b"}"


def _key_bytes(answer: Answer) -> bytes:
    return base64.b64decode(str(answer["session_key"]))


def _gzip(body: bytes, *, spaces: int = 0) -> bytes:
    """The body and that many spaces, gzip encoded, without ever holding the spaces."""
    packer = zlib.compressobj(9, wbits=31)  # 31: gzip's header and trailer
    parts = [packer.compress(body)]
    block = b" " * (1024 * 1024)
    while spaces > 0:
        parts.append(packer.compress(block[:spaces]))
        spaces -= len(block)
    parts.append(packer.flush())
    return b"".join(parts)


def _stranger_500(call: Call, _: float) -> None:
    # What looks like a login, so that a client that does not look at the status is found out.
    call.reply(json_body(call.stranger()), status=500)


def _stranger_list(call: Call, _: float) -> None:
    call.reply(b"[" + json_body(call.stranger()) + b"]")


def _redirect(call: Call, _: float) -> None:
    call.reply(b"", status=302, headers=[("Location", call.elsewhere())])


def _truncated(call: Call, _: float) -> None:
    # The body that does arrive is whole, so that only the missing length tells.
    call.hang_up()
    call.reply(json_body(call.exchange()), missing=100)


def _reset(call: Call, _: float) -> None:
    call.reset()


def _close(call: Call, _: float) -> None:
    call.hang_up()


def _delay(call: Call, delay_s: float) -> None:
    # Exchanged first: a client that loses patience and repeats finds its code used, the harder case.
    body = json_body(call.exchange())
    if call.wait(delay_s):
        call.reply(body)
    else:
        call.hang_up()


def _hang(call: Call, delay_s: float) -> None:
    call.hang_up()
    call.wait(delay_s)


def _drip(call: Call, raw: bytes, delay_s: float) -> None:
    for position in range(len(raw)):
        if not call.wait(delay_s):
            call.hang_up()
            return
        call.send(raw[position : position + 1])


def _drip_body(call: Call, delay_s: float) -> None:
    body = json_body(call.exchange())
    call.send(call.head(len(body)))
    _drip(call, body, delay_s)


def _drip_headers(call: Call, delay_s: float) -> None:
    body = json_body(call.exchange())
    _drip(call, call.head(len(body)), delay_s)
    call.send(body)


def _endless_continue(call: Call, delay_s: float) -> None:
    call.hang_up()
    delay_s = max(delay_s, 0.001)
    for _ in range(math.ceil(LONGEST_HANG_S / delay_s)):
        call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not call.wait(delay_s):
            return


# ---- the table ----------------------------------------------------------------------------------

_GATEWAY_PAGE: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    b"<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_NESTED: Final = b"[" * (REPLY_LIMIT // 2 - 1) + b"]" * (REPLY_LIMIT // 2 - 1)

_TABLE: Final = (
    # errcodes
    Fault("system_busy", "errcode -1: WeChat asks to try later", _refuse(-1)),
    Fault("invalid_code", "errcode 40029", _refuse(40029)),
    Fault("code_used", "errcode 40163: code been used", _refuse(40163)),
    Fault("code_blocked", "errcode 40226: high-risk user, login stopped by WeChat", _refuse(40226)),
    Fault("rate_limited", "errcode 45011: over 100 exchanges of this user in a minute", _refuse(45011)),
    Fault("quota_exceeded", "errcode 45009: the app's daily quota is used up", _refuse(45009)),
    Fault("invalid_appid", "errcode 40013", _refuse(40013)),
    Fault("invalid_appsecret", "errcode 40125", _refuse(40125)),
    Fault("ip_not_allowed", "errcode 40164: our address is not on the app's allow list", _refuse(40164)),
    Fault("appsecret_frozen", "errcode 40243", _refuse(40243)),
    Fault("appid_missing", "errcode 41002", _refuse(41002)),
    Fault("appsecret_missing", "errcode 41004", _refuse(41004)),
    Fault("code_missing", "errcode 41008", _refuse(41008)),
    Fault("unknown_errcode", "errcode 50002, which is not in WeChat's page for this call", _refuse(50002)),
    Fault("errcode_as_text", 'errcode 40029 as a string: "errcode": "40029"', _refuse_as_text),
    # no answer in it
    Fault(
        "bad_gateway_page",
        "HTTP 502 with a page as text/html",
        _instead(_GATEWAY_PAGE, status=502, content_type="text/html"),
    ),
    Fault("html_200", "the same page with HTTP 200", _instead(_GATEWAY_PAGE, content_type="text/html")),
    Fault("http_500", "HTTP 500 around what looks like a login (a stranger's)", _stranger_500),
    Fault("empty", "a body of no bytes", _instead(b"")),
    Fault("not_json", "a body that is not JSON", _instead(b"openid=oNobody&session_key=none")),
    Fault("json_null", "the body `null`", _instead(b"null")),
    Fault("json_list", "a list around what looks like a login (a stranger's)", _stranger_list),
    Fault("json_string", "a JSON string", _instead(b'"openid session_key"')),
    Fault("deep_json", f"{len(_NESTED) // 2:,} nested brackets, just under 64 KiB", _instead(_NESTED)),
    Fault("redirect", "302 to /sandbox/elsewhere, which answers what looks like a login (a stranger's)", _redirect),
    # the right answer, its bytes mangled
    Fault(
        "duplicate_members",
        "the right answer with a second openid behind it",
        _encoded(_with_raw_member(b'"openid":"oSecondOpenidOfTheDuplicate0"')),
        consumes_code=True,
    ),
    Fault(
        "not_utf8",
        "the right answer with bytes that are not UTF-8 in another member",
        _encoded(_with_raw_member(b'"nickname":"\xff\xfe\xc0"')),
        consumes_code=True,
    ),
    Fault(
        "utf16",
        "the right answer in UTF-16",
        _encoded(lambda body: body.decode().encode("utf-16")),
        consumes_code=True,
    ),
    Fault("bom", "the right answer behind a byte order mark", _encoded(b"\xef\xbb\xbf".__add__), consumes_code=True),
    Fault(
        "huge",
        "the right answer, then spaces up to 200 KiB",
        _encoded(lambda body: body.ljust(HUGE_BODY)),
        consumes_code=True,
    ),
    Fault(
        "gzip_bomb",
        "the right answer, then 32 MiB of spaces, as 32 KiB of gzip",
        _encoded(lambda body: _gzip(body, spaces=BOMB_BODY), ("Content-Encoding", "gzip")),
        consumes_code=True,
    ),
    Fault("truncated", "the right answer, but Content-Length promises 100 bytes more", _truncated, consumes_code=True),
    # the right answer, some members mangled
    Fault("no_openid", "the right answer without openid", _without("openid"), consumes_code=True),
    Fault("empty_openid", "openid is empty", _with(lambda _: {"openid": ""}), consumes_code=True),
    Fault("number_openid", "openid is a number", _with(lambda _: {"openid": 4711}), consumes_code=True),
    Fault(
        "openid_with_slash",
        "openid has a slash in it",
        _with(lambda answer: {"openid": f"{answer['openid']}/../x"}),
        consumes_code=True,
    ),
    Fault("long_openid", "openid has 129 characters", _with(lambda _: {"openid": "o" * 129}), consumes_code=True),
    Fault("no_session_key", "the right answer without session_key", _without("session_key"), consumes_code=True),
    Fault("empty_session_key", "session_key is empty", _with(lambda _: {"session_key": ""}), consumes_code=True),
    Fault(
        "short_session_key",
        "session_key is base64 of 15 bytes",
        _with(lambda answer: {"session_key": base64.b64encode(_key_bytes(answer)[:15]).decode()}),
        consumes_code=True,
    ),
    Fault(
        "unpadded_session_key",
        "session_key lacks its ==",
        _with(lambda answer: {"session_key": base64.b64encode(_key_bytes(answer)).decode().rstrip("=")}),
        consumes_code=True,
    ),
    Fault(
        "bad_session_key",
        "session_key is 24 characters that are not base64",
        _with(lambda _: {"session_key": "!" * 24}),
        consumes_code=True,
    ),
    # odd, but right: a client takes these
    Fault("gzip", "the right answer, gzip encoded", _encoded(_gzip, ("Content-Encoding", "gzip")), consumes_code=True),
    Fault(
        "set_cookie",
        "the right answer and a Set-Cookie",
        _encoded(lambda body: body, ("Set-Cookie", "sandbox=1; Path=/")),
        consumes_code=True,
    ),
    Fault(
        "control_characters",
        "the right answer with raw control characters in another member, as WeChat does",
        _encoded(_with_raw_member(b'"nickname":"a\x01\tb\x1f"')),
        consumes_code=True,
    ),
    Fault(
        "extra_members",
        "the right answer with errcode 0, errmsg ok and expires_in 7200",
        _with(lambda _: {"expires_in": 7200, "errcode": 0, "errmsg": "ok"}),
        consumes_code=True,
    ),
    # connection and time
    Fault("reset", "the connection is reset (RST) before any answer", _reset),
    Fault("close", "the connection is closed without an answer", _close),
    Fault(
        "delay",
        "the right answer after delay_s seconds (1); the code is exchanged at once",
        _delay,
        consumes_code=True,
        default_delay_s=1.0,
    ),
    Fault(
        "hang",
        "no answer until the client goes, or for delay_s seconds (60)",
        _hang,
        default_delay_s=LONGEST_HANG_S,
    ),
    Fault(
        "drip_body",
        "the right answer, its body one byte every delay_s seconds (0.2)",
        _drip_body,
        consumes_code=True,
        default_delay_s=0.2,
    ),
    Fault(
        "drip_headers",
        "the right answer, its head one byte every delay_s seconds (0.2)",
        _drip_headers,
        consumes_code=True,
        default_delay_s=0.2,
    ),
    Fault(
        "endless_continue",
        "HTTP/1.1 100 Continue every delay_s seconds (0.2) until the client goes, or for 60 s",
        _endless_continue,
        default_delay_s=0.2,
    ),
)

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType({fault.name: fault for fault in _TABLE})
