"""Proxies in front of the service: which of their words is believed, and what is said if nobody told us of them."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any, Final

import structlog
from flask import Flask, request

from authsvc.errors import StoreUnavailable
from authsvc.http.services import services
from authsvc.store import FORWARDING_HEADER_SEEN, SharedValue

_HEADERS: Final = ("X-Forwarded-For", "Forwarded", "X-Real-IP")
_REMEMBERED_S: Final = 86_400  # also for `authsvc doctor`

_log = structlog.get_logger("authsvc.http")


def install_proxies(app: Flask, *, trusted: int) -> None:
    """Believe what the last `trusted` proxies say of the client's address, and nothing else that they say."""
    if not trusted:
        app.before_request(_Lookout().look)
        return
    inner = app.wsgi_app

    def behind_proxies(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # Not as werkzeug's ProxyFix reads it, which knows quotes: a client could put one before what proxies add, and
        # with it take away or change what they say. And the client's address alone is taken: the scheme and the host
        # that we answer with never come from a request.
        told = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
        if len(told) >= trusted and told != [""]:
            theirs = [word.strip() for word in told[-trusted:]]
            # One of them empty: a client can add commas, and it is not known who stands where.
            environ["REMOTE_ADDR"] = theirs[0] if all(theirs) else ""
        return inner(environ, start_response)

    app.wsgi_app = behind_proxies  # type: ignore[method-assign]


class _Lookout:
    """Says once a day that there seems to be a proxy, of which the settings know nothing."""

    def __init__(self) -> None:
        self._said = Lock()  # whoever gets it says so, and keeps it

    def look(self) -> None:
        if self._said.locked() or request.method != "POST":
            return  # addresses are counted where somebody logs in
        seen = next((name for name in _HEADERS if name in request.headers), None)
        if seen is None or not self._said.acquire(blocking=False):
            return
        now = services().clock.now()
        noted = SharedValue(FORWARDING_HEADER_SEEN, seen.encode("ascii"), now + _REMEMBERED_S)
        try:
            is_news = services().store.share_first(noted, now=now)
        except StoreUnavailable:
            is_news = True
        if is_news:  # no other worker has said it
            _log.warning(
                "forwarding_header_seen",
                header=seen,
                problem="a proxy seems to stand before this service: AUTHSVC_TRUSTED_PROXIES is 0, so all of its "
                "clients look like one, also to AUTHSVC_LOGIN_RATE; set how many proxies there are",
            )
