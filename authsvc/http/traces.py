"""Who called, in every log line of a request: its id, and the trace that it is part of (W3C Trace Context, level 1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import structlog

from authsvc.spans import Caller

_VERSION_00: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
# A later version may have more behind a dash, and what is known of it now stays at its place (4.3).
_LATER: Final = re.compile(r"(?!ff|00)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def follow(request_id: str, caller: Caller | None, span_ids: Mapping[str, str]) -> None:
    """From here on all lines that this thread logs have the ids; `unfollow` ends that."""
    ids = {} if caller is None else {"trace_id": caller.trace_id, "parent_id": caller.parent_id}
    structlog.contextvars.bind_contextvars(request_id=request_id, **{**ids, **span_ids})


def unfollow() -> None:
    structlog.contextvars.clear_contextvars()


def caller_of(traceparent: str) -> Caller | None:
    """None for what is no traceparent."""
    found = _VERSION_00.fullmatch(traceparent) or _LATER.fullmatch(traceparent)
    if found is None:
        return None
    trace_id, parent_id, flags = found.groups()
    if not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return Caller(trace_id, parent_id, is_sampled=bool(int(flags, 16) & 1))
