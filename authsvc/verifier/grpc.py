"""For gRPC servers: an interceptor that lets calls with a good token in their `authorization` metadata through.

grpc.server(pool, interceptors=[BearerInterceptor(verifier)]), and `claims_of(context)` in a servicer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import grpc

from authsvc.claims import Claims
from authsvc.errors import KeysUnavailable, TokenError
from authsvc.verifier.bearer import bearer_token
from authsvc.verifier.core import Verifier

_ATTRIBUTE: Final = "authsvc_claims"


class BearerInterceptor(grpc.ServerInterceptor):
    """Calls without a good token end as UNAUTHENTICATED, or UNAVAILABLE while it cannot be told; the details are the
    error's `code`.

    `public`: full method names ("/package.Service/Method") that everybody may call, without claims.
    """

    def __init__(self, verifier: Verifier, *, public: Collection[str] = ()) -> None:
        self._verifier = verifier
        self._public = frozenset(public)

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        call = handler_call_details
        if call.method in self._public:
            return continuation(call)
        given = [str(value) for name, value in call.invocation_metadata if name == "authorization"]
        try:
            claims = self._verifier.verify(bearer_token(given))
        except TokenError as error:
            return _aborted(grpc.StatusCode.UNAUTHENTICATED, error.code)
        except KeysUnavailable as error:
            return _aborted(grpc.StatusCode.UNAVAILABLE, error.code)
        return _with_claims(continuation(call), claims)


def claims_of(context: grpc.ServicerContext) -> Claims:
    """The claims of the caller's token. Raises: RuntimeError where the interceptor is not, and in public methods."""
    claims = getattr(context, _ATTRIBUTE, None)
    if not isinstance(claims, Claims):
        raise RuntimeError("there are claims behind a BearerInterceptor alone")
    return claims


def _with_claims(handler: Any, claims: Claims) -> Any:
    if handler is None:
        return None  # there is no such method
    makers = {
        "unary_unary": grpc.unary_unary_rpc_method_handler,
        "unary_stream": grpc.unary_stream_rpc_method_handler,
        "stream_unary": grpc.stream_unary_rpc_method_handler,
        "stream_stream": grpc.stream_stream_rpc_method_handler,
    }
    kind = next(name for name in makers if getattr(handler, name) is not None)
    behaviour = getattr(handler, kind)

    def called(request: Any, context: grpc.ServicerContext) -> Any:
        setattr(context, _ATTRIBUTE, claims)
        return behaviour(request, context)

    return makers[kind](called, handler.request_deserializer, handler.response_serializer)


def _aborted(status: grpc.StatusCode, code: str) -> Any:
    def abort(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(status, code)

    return grpc.unary_unary_rpc_method_handler(abort)
