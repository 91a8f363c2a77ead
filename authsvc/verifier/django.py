"""For Django: a middleware that puts the claims into `request.claims`, and `@login_required` for views.

settings.py: `AUTHSVC_VERIFIER = Verifier("https://auth.example.com", audience="api")`, and
"authsvc.verifier.django.bearer_middleware" in MIDDLEWARE.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Self

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from authsvc.errors import KeysUnavailable, TokenError, TokenMissing
from authsvc.verifier.bearer import bearer_token, refusal


@sync_and_async_middleware
def bearer_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Without a token `request.claims` is None; with a bad one the answer is 401, or 503 while it cannot be told."""
    if iscoroutinefunction(get_response):

        async def middleware_async(request: HttpRequest) -> HttpResponseBase:
            try:
                claims = await settings.AUTHSVC_VERIFIER.verify_async(_token(request))
            except TokenMissing:
                claims = None
            except (TokenError, KeysUnavailable) as error:
                return _refused(error)
            request.claims = claims  # type: ignore[attr-defined]
            answer: Awaitable[HttpResponseBase] = get_response(request)
            return await answer

        return middleware_async

    def middleware(request: HttpRequest) -> HttpResponseBase:
        try:
            claims = settings.AUTHSVC_VERIFIER.verify(_token(request))
        except TokenMissing:
            claims = None
        except (TokenError, KeysUnavailable) as error:
            return _refused(error)
        request.claims = claims  # type: ignore[attr-defined]
        answer: HttpResponseBase = get_response(request)
        return answer

    return middleware


def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
    """The view runs with a good token alone; without any the answer is 401. For functions and classes, plain and async;
    of a class: `@method_decorator(login_required, name="dispatch")`."""

    @functools.wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        # Without the middleware nobody has claims, and nobody gets in.
        if getattr(request, "claims", None) is None:
            return _refused(TokenMissing("no token"))
        return view(request, *args, **kwargs)

    return markcoroutinefunction(checked) if iscoroutinefunction(view) else checked


class _Refused(HttpResponse):
    """Django awaits what an async view gives back, and a decorator cannot always tell which kind it decorates."""

    def __await__(self) -> Generator[None, None, Self]:
        yield from ()
        return self


def _token(request: HttpRequest) -> str:
    return bearer_token([request.headers.get("Authorization", "")])


def _refused(error: TokenError | KeysUnavailable) -> HttpResponse:
    answer = refusal(error)
    headers = {name: value for name, value in answer.headers if name != "Content-Length"}
    return _Refused(answer.body, status=answer.status, headers=headers)
