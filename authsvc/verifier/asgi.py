"""For any ASGI app (Starlette, FastAPI): a middleware that lets requests with a good token through.

The claims are `request.state.claims`; `request.user` and `request.auth` are what Starlette's own authentication sets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from authsvc.claims import Claims
from authsvc.errors import KeysUnavailable, TokenError
from authsvc.verifier.bearer import Refusal, bearer_token, refusal
from authsvc.verifier.core import Verifier

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class BearerUser:
    """What Starlette's `request.user` offers."""

    claims: Claims

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def identity(self) -> str:
        return self.claims.openid

    @property
    def display_name(self) -> str:
        return self.claims.openid


@dataclass(frozen=True, slots=True)
class BearerAuth:
    """What Starlette's `request.auth` offers, for its `@requires("authenticated")`."""

    scopes: tuple[str, ...] = ("authenticated",)


class BearerMiddleware:
    """Requests without a good token are answered 401, or 503 while it cannot be told, and do not reach the app;
    a WebSocket is not accepted (the server makes a 403 of that).

    `public`: paths (to the letter) that everybody reaches, without claims.
    """

    def __init__(self, app: ASGIApp, verifier: Verifier, *, public: Collection[str] = ()) -> None:
        self._app = app
        self._verifier = verifier
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What else there may be one day (WebTransport) has no token that we know how to read.
        if scope["type"] == "lifespan" or scope["path"] in self._public:
            await self._app(scope, receive, send)
            return
        given = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"]
        try:
            claims = await self._verifier.verify_async(bearer_token(given))
        except (TokenError, KeysUnavailable) as error:
            await _refuse(scope, send, refusal(error))
            return
        # In place, as Starlette's own do: who stands before us, a log or a handler of errors, sees it too.
        scope.setdefault("state", {})["claims"] = claims
        scope["user"], scope["auth"] = BearerUser(claims), BearerAuth()
        await self._app(scope, receive, send)


async def _refuse(scope: Scope, send: Send, answer: Refusal) -> None:
    if scope["type"] == "websocket":
        # RFC 6455, 7.4.1: 1008 is "policy violation", 1013 (registered with IANA) "try again later".
        await send({"type": "websocket.close", "code": 1008 if answer.status == 401 else 1013})
        return
    headers = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
