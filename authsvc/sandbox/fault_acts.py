"""How the sandbox answers badly: what a fault does with one call."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from authsvc.sandbox.wire import Answer, Headers, json_body

LONGEST_HANG_S: Final = 60.0


class Call(Protocol):
    """One call of a WeChat endpoint, with the socket it came on. Writing raises OSError once the client has gone."""

    def exchange(self) -> Answer:
        """The answer WeChat would give, an errcode included; what that uses up is gone, so it is asked for once."""

    def refusal(self, errcode: int) -> Answer:
        """An errcode with WeChat's errmsg; nothing is used up."""

    def stranger(self) -> Answer:
        """What looks like a good answer of this endpoint, of nobody who asked; whoever believes it has a stranger's."""

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


Act = Callable[[Call, float], None]


def refuse(errcode: int) -> Act:
    return lambda call, _: call.reply(json_body(call.refusal(errcode)))


def refuse_as_text(call: Call, _: float) -> None:
    answer = call.refusal(40029)
    call.reply(json_body({**answer, "errcode": str(answer["errcode"])}))


def instead(body: bytes, *, status: int = 200, content_type: str | None = None) -> Act:
    """This body instead of an answer."""
    return lambda call, _: call.reply(body, status=status, content_type=content_type)


def encoded(encode: Callable[[bytes], bytes], *headers: tuple[str, str]) -> Act:
    """The right answer, its bytes changed."""
    return lambda call, _: call.reply(encode(json_body(call.exchange())), headers=headers)


def changed(changes: Callable[[Answer], Answer]) -> Act:
    """The right answer, some members changed; a refusal of WeChat's goes out as it is."""

    def act(call: Call, _: float) -> None:
        answer = call.exchange()
        call.reply(json_body({**answer, **changes(answer)} if _is_good(answer) else answer))

    return act


def without(member: str) -> Act:
    return lambda call, _: call.reply(json_body({k: v for k, v in call.exchange().items() if k != member}))


def with_raw_member(raw: bytes) -> Callable[[bytes], bytes]:
    """A last member, written as raw bytes."""
    return lambda body: body[:-1] + b"," + raw + b"}"


def one_member_twice(call: Call, _: float) -> None:
    """The right answer, and behind it what a stranger's answer has else: the first member that differs."""
    answer, stranger = call.exchange(), call.stranger()
    body = json_body(answer)
    if _is_good(answer):
        name = next((name for name in stranger if stranger[name] != answer.get(name)), next(iter(stranger)))
        body = with_raw_member(json_body({name: stranger[name]})[1:-1])(body)
    call.reply(body)


def with_session_key(spell: Callable[[bytes], str]) -> Act:
    """The right answer, its session_key as this spells the bytes of it."""
    return changed(lambda answer: {"session_key": spell(base64.b64decode(str(answer["session_key"])))})


def with_another_watermark(answer: Answer) -> Answer:
    info = answer["phone_info"]
    assert isinstance(info, dict)
    return {"phone_info": {**info, "watermark": {**info["watermark"], "appid": "wx0000000000000000"}}}


def with_country_code_as_text(answer: Answer) -> Answer:
    info = answer["phone_info"]
    assert isinstance(info, dict)
    return {"phone_info": {**info, "countryCode": str(info["countryCode"])}}


def gzip(body: bytes, *, spaces: int = 0) -> bytes:
    """The body and that many spaces, gzip encoded, without ever holding the spaces."""
    packer = zlib.compressobj(9, wbits=31)  # 31: gzip's header and trailer
    parts = [packer.compress(body)]
    block = b" " * (1024 * 1024)
    while spaces > 0:
        parts.append(packer.compress(block[:spaces]))
        spaces -= len(block)
    parts.append(packer.flush())
    return b"".join(parts)


def stranger_500(call: Call, _: float) -> None:
    # What looks like a login, so that a client that does not look at the status is found out.
    call.reply(json_body(call.stranger()), status=500)


def stranger_list(call: Call, _: float) -> None:
    call.reply(b"[" + json_body(call.stranger()) + b"]")


def redirect(call: Call, _: float) -> None:
    call.reply(b"", status=302, headers=[("Location", call.elsewhere())])


def truncated(call: Call, _: float) -> None:
    # The body that does arrive is whole, so that only the missing length tells.
    call.hang_up()
    call.reply(json_body(call.exchange()), missing=100)


def reset(call: Call, _: float) -> None:
    call.reset()


def close(call: Call, _: float) -> None:
    call.hang_up()


def delay(call: Call, delay_s: float) -> None:
    # Exchanged first: a client that loses patience and repeats finds its code used, the harder case.
    body = json_body(call.exchange())
    if call.wait(delay_s):
        call.reply(body)
    else:
        call.hang_up()


def hang(call: Call, delay_s: float) -> None:
    call.hang_up()
    call.wait(delay_s)


def _drip(call: Call, raw: bytes, delay_s: float) -> None:
    for position in range(len(raw)):
        if not call.wait(delay_s):
            call.hang_up()
            return
        call.send(raw[position : position + 1])


def drip_body(call: Call, delay_s: float) -> None:
    body = json_body(call.exchange())
    call.send(call.head(len(body)))
    _drip(call, body, delay_s)


def drip_headers(call: Call, delay_s: float) -> None:
    body = json_body(call.exchange())
    _drip(call, call.head(len(body)), delay_s)
    call.send(body)


def endless_continue(call: Call, delay_s: float) -> None:
    call.hang_up()
    delay_s = max(delay_s, 0.001)
    for _ in range(math.ceil(LONGEST_HANG_S / delay_s)):
        call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not call.wait(delay_s):
            return


def _is_good(answer: Answer) -> bool:
    # Some of WeChat's calls say errcode 0 when all is well, others leave it out.
    return answer.get("errcode", 0) == 0
