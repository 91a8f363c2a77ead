"""For Flask: `use_verifier(app, verifier)`, then `@login_required` on a view and `current_claims` in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, ParamSpec

from flask import Flask, Response, current_app, request
from werkzeug.local import LocalProxy

from authsvc.claims import Claims
from authsvc.errors import KeysUnavailable, TokenError
from authsvc.verifier.bearer import CLAIMS, bearer_token, refusal
from authsvc.verifier.core import Verifier

_EXTENSION: Final = "authsvc"

_P = ParamSpec("_P")


def use_verifier(app: Flask, verifier: Verifier) -> None:
    """Have the views of this app that want a login verify their tokens with this."""
    app.extensions[_EXTENSION] = verifier


def login_required(view: Callable[_P, Any]) -> Callable[_P, Any]:
    """The view runs with a good token alone; else the answer is 401, or 503 while it cannot be told.

    Beneath the route: `@app.get(...)` first, then this. Plain and async views.
    """

    @functools.wraps(view)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        verifier: Verifier | None = current_app.extensions.get(_EXTENSION)
        if verifier is None:
            raise RuntimeError("use_verifier(app, verifier) comes before the first request")
        try:
            # On the request itself: what is on `g` outlives it in a test that has an app context of its own.
            request.environ[CLAIMS] = verifier.verify(bearer_token(request.headers.getlist("Authorization")))
        except (TokenError, KeysUnavailable) as error:
            answer = refusal(error)
            return Response(answer.body, answer.status, list(answer.headers))
        return current_app.ensure_sync(view)(*args, **kwargs)

    return checked


def _claims() -> Claims:
    claims = request.environ.get(CLAIMS)
    if not isinstance(claims, Claims):
        raise RuntimeError("there are claims in a view with @login_required alone")
    return claims


current_claims: Any = LocalProxy(_claims)
"""The Claims of the token of this request. Raises: RuntimeError outside of a view with `@login_required`."""
