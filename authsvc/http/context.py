"""What is known about the request under way: its id, and what its log line will say."""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final

import structlog
from flask import Flask, Response, g, request

from authsvc.http.services import services
from authsvc.http.traces import caller_of, follow, unfollow
from authsvc.spans import Caller, Span

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LOGIN: Final = "login.log_in"
_REQUEST_ID: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")

_log = structlog.get_logger("authsvc.http")


def request_id() -> str:
    """The caller's X-Request-ID if it is a plain one, else one of our own."""
    found: str = g.request_id
    return found


def is_request_id(given: str) -> bool:
    """Whether it is plain enough to be repeated, in replies and in the log."""
    return _REQUEST_ID.fullmatch(given) is not None


def note(**fields: Any) -> None:
    """Add to the log line of this request. Nothing secret: no code, token, session_key, openid."""
    g.log_fields.update(fields)


def note_token(refused_for: str | None) -> None:
    """Count a token that was looked at; `refused_for` is a TokenError's code."""
    if (metrics := services().metrics) is not None:
        metrics.note_token(refused_for)


def install_request_log(app: Flask) -> None:
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(_tear_down)


def _begin() -> None:
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if is_request_id(given) else secrets.token_hex(8)
    g.log_fields = {}
    g.started_at = time.perf_counter()
    caller = caller_of(request.headers.get("traceparent", ""))
    g.until_end = ExitStack()
    g.span = g.until_end.enter_context(_span(caller))
    follow(g.request_id, caller, g.span.ids)


def _span(caller: Caller | None) -> AbstractContextManager[Span]:
    """By OpenTelemetry's conventions for HTTP. Not the path, and no query: see `_route`."""
    method = request.method if request.method in _METHODS else "_OTHER"
    attributes: dict[str, str | int] = {"http.request.method": method, "authsvc.request_id": g.request_id}
    if request.url_rule is None:
        return services().spans.span(method, "server", attributes, caller)
    attributes["http.route"] = request.url_rule.rule
    return services().spans.span(f"{method} {request.url_rule.rule}", "server", attributes, caller)


def _end(reply: Response) -> Response:
    reply.headers["X-Request-ID"] = request_id()
    _count(reply.status_code)
    g.span.note("http.response.status_code", reply.status_code)
    if "outcome" in g.log_fields:
        g.span.note("authsvc.outcome", g.log_fields["outcome"])
    if reply.status_code >= 500:
        g.span.fail(str(g.log_fields.get("outcome", reply.status_code)))
    failed = reply.status_code >= 500
    if failed or _is_logged():
        # A failure is said whatever ACCESS_LOG chooses: it is an outage at WeChat, of the store, or of our own.
        _log.log(
            logging.WARNING if failed else logging.INFO,
            "request",
            method=request.method if request.method in _METHODS else "(other)",
            path=_route(),
            status=reply.status_code,
            duration_ms=round((time.perf_counter() - g.started_at) * 1000, 1),
            **{name: value for name, value in g.log_fields.items() if value is not None},
        )
    return reply


def _tear_down(_error: BaseException | None) -> None:
    unfollow()
    until_end: ExitStack | None = g.pop("until_end", None)
    if until_end is not None:
        until_end.close()


def _count(status: int) -> None:
    metrics = services().metrics
    if metrics is None:
        return
    metrics.note_request(_route(), request.method, status)
    if request.endpoint == _LOGIN and "outcome" in g.log_fields:
        metrics.note_login(g.log_fields["outcome"], g.log_fields.get("wechat_errcode"))


def _route() -> str:
    # The rule and not the path: a client that puts its token into the path must not put it into the log.
    return request.url_rule.rule if request.url_rule else "(no such route)"


def _is_logged() -> bool:
    match services().access_log:
        case "all":
            return True
        case "login":
            return request.endpoint == _LOGIN
        case "none":
            return False
