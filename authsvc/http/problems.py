"""Every error reply, from one table: RFC 9457 `application/problem+json` with a stable `code`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import structlog
from flask import Flask, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from authsvc.errors import AuthsvcError, TokenError, WeChatError
from authsvc.http.context import note, note_token, request_id
from authsvc.verifier.bearer import challenge


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    title: str
    retry_after_s: int | None = None
    # Whether the error's own message goes into the reply. It does not where it is for the operator.
    tells_detail: bool = True


PROBLEMS: Final[dict[str, Problem]] = {
    "bad_request": Problem(400, "The request is not what this route takes"),
    "decrypt_failed": Problem(400, "The data could not be decrypted", tells_detail=False),
    "phone_code_invalid": Problem(400, "WeChat does not know this phone number code"),
    "missing": Problem(401, "There is no token"),
    "malformed": Problem(401, "The token is not one"),
    "revoked": Problem(401, "The token's key has been revoked"),
    "invalid": Problem(401, "The token is not good"),
    "expired": Problem(401, "The token has expired"),
    "code_invalid": Problem(401, "WeChat does not know this code"),
    "code_used": Problem(401, "This code has been used"),
    "ops_token_invalid": Problem(401, "This route is for operators"),
    "user_blocked": Problem(403, "WeChat has blocked this user's login"),
    "user_banned": Problem(403, "This user may not log in"),
    "service_token_invalid": Problem(403, "This route is for our own back ends"),
    "not_found": Problem(404, "There is nothing here"),
    "method_not_allowed": Problem(405, "This route does not take this method"),
    "request_timeout": Problem(408, "The body did not come in time"),
    "session_key_gone": Problem(409, "There is no good session key of this user"),
    "payload_too_large": Problem(413, "The body is too large"),
    "unsupported_media_type": Problem(415, "The body has a type that this route does not take"),
    "misdirected_request": Problem(421, "This service is another host"),
    # WeChat's limit counts by minute, 100 exchanges a user; so does ours, unless it was set otherwise.
    "rate_limited": Problem(429, "Too many requests", retry_after_s=60),
    "internal_error": Problem(500, "The service failed", tells_detail=False),
    "wechat_config": Problem(502, "The service is not set up rightly at WeChat", tells_detail=False),
    "wechat_bad_reply": Problem(502, "WeChat's answer could not be used"),
    "wechat_error": Problem(502, "WeChat answered with an error"),
    "wechat_busy": Problem(503, "WeChat is busy", retry_after_s=5),
    "wechat_quota": Problem(503, "The quota at WeChat is used up", retry_after_s=3600),
    "store_unavailable": Problem(503, "The side store does not answer", retry_after_s=5, tells_detail=False),
    "keys_unusable": Problem(503, "The service cannot sign", retry_after_s=60, tells_detail=False),
    "overloaded": Problem(503, "Too many requests are under way", retry_after_s=1),
    "wechat_timeout": Problem(504, "No answer from WeChat"),
}

_CODE_OF_STATUS: Final = {
    problem.status: code
    for code, problem in PROBLEMS.items()
    if code
    in (
        *("bad_request", "not_found", "method_not_allowed", "request_timeout", "payload_too_large"),
        *("unsupported_media_type", "rate_limited"),
    )
}

_log = structlog.get_logger("authsvc.http")


def problem_reply(code: str, *, detail: str | None = None, **members: object) -> Response:
    """The reply for one code of the table. `members` are extension members (RFC 9457, 3.2)."""
    problem = PROBLEMS[code]
    body: dict[str, object] = {"status": problem.status, "title": problem.title, "code": code}
    if detail and problem.tells_detail:
        body["detail"] = detail
    body.update(members)
    body["request_id"] = request_id()
    reply = Response(json.dumps(body, ensure_ascii=False) + "\n", problem.status, mimetype="application/problem+json")
    reply.headers["Cache-Control"] = "no-store"
    if problem.status == 401:
        # RFC 9110, 15.5.2: a 401 names its scheme.
        reply.headers["WWW-Authenticate"] = "Bearer"
    if problem.retry_after_s is not None:
        reply.headers["Retry-After"] = str(problem.retry_after_s)
    note(outcome=code)
    return reply


def install_problems(app: Flask) -> None:
    """Turn everything that can go wrong in a view into a row of the table."""
    app.register_error_handler(AuthsvcError, _authsvc_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)


def _authsvc_error(error: AuthsvcError) -> Response:
    if error.code not in PROBLEMS:
        return _unexpected_error(error)
    members: dict[str, object] = {}
    note(problem=str(error))
    if isinstance(error, WeChatError):
        note(wechat_call=error.call, wechat_errcode=error.errcode, wechat_rid=error.rid)
        note(wechat_saw_address=error.seen_address)
        if error.errcode is not None:
            members["wechat_errcode"] = error.errcode
    reply = problem_reply(error.code, detail=str(error), **members)
    if isinstance(error, TokenError):
        note_token(error.code)
        reply.headers["WWW-Authenticate"] = challenge(error)
    return reply


def _http_error(error: HTTPException) -> Response:
    reply = problem_reply(_CODE_OF_STATUS.get(error.code or 0, "bad_request"))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        reply.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return reply


def _unexpected_error(error: Exception) -> Response:
    _log.error("unexpected_error", exc_info=error)
    return problem_reply("internal_error")
