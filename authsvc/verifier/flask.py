"""For Flask: `use_verifier(app, verifier)`, then `@login_required` on a view and `current_claims` in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, ParamSpec

from flask import Flask, Response, current_app, g, request
from werkzeug.local import LocalProxy

from authsvc.claims import Claims
from authsvc.errors import KeysUnavailable, TokenError
from authsvc.verifier.bearer import bearer_token, refusal
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
        verifier: Verifier = current_app.extensions[_EXTENSION]
        try:
            g.authsvc_claims = verifier.verify(bearer_token(request.headers.getlist("Authorization")))
        except (TokenError, KeysUnavailable) as error:
            answer = refusal(error)
            return Response(answer.body, answer.status, list(answer.headers))
        return current_app.ensure_sync(view)(*args, **kwargs)

    return checked


def _claims() -> Claims:
    if "authsvc_claims" not in g:
        raise RuntimeError("there are claims in a view with @login_required alone")
    claims: Claims = g.authsvc_claims
    return claims


current_claims: Any = LocalProxy(_claims)
"""The Claims of the token of this request. Raises: RuntimeError outside of a view with `@login_required`."""
