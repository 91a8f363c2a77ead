"""HTTP/1.1 as bytes: faults break single bytes of a reply, so here a reply is bytes and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

TEXT: Final = "text/plain"  # code2Session's own content type, without a charset
JSON: Final = "application/json; charset=UTF-8"  # that of WeChat's other calls, and of our admin routes

Answer = Mapping[str, object]
Headers = Iterable[tuple[str, str]]


def json_body(answer: Answer) -> bytes:
    """UTF-8 with `/` as `\\/`, the way WeChat writes it; a client that cuts strings out by hand trips here."""
    # A slash stands in strings only, never in JSON's own grammar.
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).replace("/", "\\/").encode()


def head(
    status: int,
    *,
    content_length: int,
    content_type: str,
    keep_alive: bool,
    headers: Headers = (),
) -> bytes:
    """Status line and headers up to and with the empty line."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        f"Content-Type: {content_type}",
        f"Content-Length: {content_length}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
