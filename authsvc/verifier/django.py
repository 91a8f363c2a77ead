"""For Django: a middleware that puts the claims into `request.claims`, and `@login_required` for views.

settings.py: `AUTHSVC_VERIFIER = Verifier("https://auth.example.com", audience="api")`, and
"authsvc.verifier.django.bearer_middleware" in MIDDLEWARE.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any

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
    """The view runs with a good token alone; without any the answer is 401. Plain and async views."""
    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def checked_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            if _is_stranger(request):
                return _refused(TokenMissing("no token"))
            return await view(request, *args, **kwargs)

        return checked_async

    @functools.wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if _is_stranger(request):
            return _refused(TokenMissing("no token"))
        return view(request, *args, **kwargs)

    return checked


def _token(request: HttpRequest) -> str:
    return bearer_token([request.headers.get("Authorization", "")])


def _is_stranger(request: HttpRequest) -> bool:
    # Without the middleware nobody has claims, and nobody gets in.
    return getattr(request, "claims", None) is None


def _refused(error: TokenError | KeysUnavailable) -> HttpResponse:
    answer = refusal(error)
    headers = {name: value for name, value in answer.headers if name != "Content-Length"}
    return HttpResponse(answer.body, status=answer.status, headers=headers)
