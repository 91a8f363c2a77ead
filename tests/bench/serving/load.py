"""Those who ask, and what they found: what both kinds of load have in common."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass

from tests.bench.serving.contenders import Server


@dataclass(frozen=True)
class Run:
    """One run. One with errors is no figure."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float | None  # of the server's processes, for a request; None: too little to be told
    client_share: float  # of a core, for who asked and for WeChat; near 1 it is they who were measured
    refused_per_s: float = 0
    errors: tuple[str, ...] = ()


def whole_answer(server: Server, token: str) -> bytes:
    """Of `GET /checklogin`, to the byte. Raises: OSError, EOFError."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        asked = f"GET /checklogin?token={token} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
        connection.sendall(asked.encode("ascii"))
        received = b""
        while True:
            head, gap, body = received.partition(b"\r\n\r\n")
            if gap and len(body) >= content_length(head):
                return received
            part = connection.recv(65_536)
            if not part:
                raise EOFError("the connection was closed within an answer")
            received += part


def content_length(head: bytes) -> int:
    """Raises: ValueError."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("no Content-Length")


def status_of(head: bytes) -> int:
    return int(head[9:12])


def amiss(server: Server, token: str, *, is_login: bool) -> tuple[bytes, str | None]:
    """The answer, and what is wrong with it."""
    try:
        answer = whole_answer(server, token)
        head, _, body = answer.partition(b"\r\n\r\n")
        if status_of(head) != 200:
            return answer, f"checklogin answered {status_of(head)}"
        if json.loads(body).get("is_login") is not is_login:
            return answer, f"checklogin did not say is_login: {is_login}"
    except (OSError, EOFError, ValueError) as error:
        return b"", f"checklogin: {type(error).__name__}"
    return answer, None
