"""For any WSGI app (PEP 3333): a middleware that lets requests with a good token through.

The claims are in `environ["authsvc.claims"]`, the openid is `REMOTE_USER`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from authsvc.errors import KeysUnavailable, TokenError
from authsvc.verifier.bearer import CLAIMS, bearer_token, refusal
from authsvc.verifier.core import Verifier

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["CLAIMS", "BearerMiddleware"]


class BearerMiddleware:
    """Requests without a good token are answered 401, or 503 while it cannot be told, and do not reach the app.

    `public`: paths (PATH_INFO, to the letter) that everybody reaches, without claims.
    """

    def __init__(self, app: WSGIApplication, verifier: Verifier, *, public: Collection[str] = ()) -> None:
        self._app = app
        self._verifier = verifier
        self._public = frozenset(public)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "") not in self._public:
            try:
                # A server joins two headers of this name with a comma, which is more than one token.
                claims = self._verifier.verify(bearer_token([environ.get("HTTP_AUTHORIZATION", "")]))
            except (TokenError, KeysUnavailable) as error:
                answer = refusal(error)
                start_response(f"{answer.status} {answer.reason}", list(answer.headers))
                return [] if environ.get("REQUEST_METHOD") == "HEAD" else [answer.body]
            environ[CLAIMS] = claims
            environ["REMOTE_USER"] = claims.openid
        return self._app(environ, start_response)
