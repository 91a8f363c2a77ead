"""A short way to the answer of `GET /checklogin`, in front of Flask: the one route that is asked all the time.

What it does not know at a glance it leaves to Flask. Both use the same functions, and answer the same to the byte.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, Final

from authsvc.http.checklogin import PATH, checked
from authsvc.http.context import is_request_id
from authsvc.http.gateway import WSGIApp
from authsvc.http.headers import SECURITY_HEADERS
from authsvc.http.hosts import is_host_of
from authsvc.http.rsgi import Headers
from authsvc.http.services import Services

_QUERY: Final = "token="
_HEADERS: Final = [
    ("Content-Type", "application/json"),
    ("Cache-Control", "no-store"),
    *SECURITY_HEADERS.items(),
]


class FastLane:
    """Answers, or leaves it to `app`."""

    def __init__(self, app: WSGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        # A line in the log for each, or a policy for pages of other origins, is Flask's to see to.
        self._is_open = services.access_log != "all" and not services.cors_origins
        self._numbers = count(secrets.randbits(62))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self.at_once(
            environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""), headers=environ
        )
        if answer is None:
            return self._app(environ, start_response)
        headers, body = answer
        start_response("200 OK", headers)
        return [body]

    def at_once(
        self, method: str, path: str, query: str, *, headers: Mapping[str, str]
    ) -> tuple[Headers, bytes] | None:
        """The headers and the body of a 200, or None where the app is to answer.

        `headers` are named as in a WSGI environ. Waits for nothing.
        """
        if path != PATH or method != "GET" or not self._is_open:
            return None
        # Any of these means more than one parameter, or one that is written in another way than it is meant.
        if query and (not query.startswith(_QUERY) or "&" in query or "%" in query or "+" in query):
            return None
        services = self._services
        if not is_host_of(headers.get("HTTP_HOST", ""), services.issuer, services.hosts):
            return None
        authorization = headers.get("HTTP_AUTHORIZATION")
        answer, refused_for = checked(
            services, [query[len(_QUERY) :]] if query else [], [] if authorization is None else [authorization]
        )
        if (metrics := services.metrics) is not None:
            metrics.note_request(PATH, "GET", 200)
            metrics.note_token(refused_for)
        if answer["is_login"]:
            body = b'{"is_login":true,"expires_in":%d}\n' % answer["expires_in"]
        else:
            body = b'{"is_login":false,"reason":"%b"}\n' % answer["reason"].encode("ascii")
        given = headers.get("HTTP_X_REQUEST_ID")
        request_id = given if given is not None and is_request_id(given) else f"{next(self._numbers):016x}"
        return [*_HEADERS, ("Content-Length", str(len(body))), ("X-Request-ID", request_id)], body
