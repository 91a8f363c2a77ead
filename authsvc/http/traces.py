"""Who called, in every log line of a request: its id, and the trace that it is part of (W3C Trace Context, level 1)."""

from __future__ import annotations

import re
from typing import Final

import structlog

_VERSION_00: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
# A later version may have more behind a dash, and what is known of it now stays at its place (4.3).
_LATER: Final = re.compile(r"(?!ff|00)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


def follow(request_id: str, traceparent: str | None) -> None:
    """From here on all lines that this thread logs have the ids; `unfollow` ends that."""
    structlog.contextvars.bind_contextvars(request_id=request_id, **_ids(traceparent or ""))


def unfollow() -> None:
    structlog.contextvars.clear_contextvars()


def _ids(traceparent: str) -> dict[str, str]:
    found = _VERSION_00.fullmatch(traceparent) or _LATER.fullmatch(traceparent)
    if found is None:
        return {}
    trace_id, parent_id = found.groups()
    if not int(trace_id, 16) or not int(parent_id, 16):
        return {}
    return {"trace_id": trace_id, "parent_id": parent_id}
