"""The interceptor in a real gRPC server: all four kinds of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from authsvc import Verifier
from authsvc.testing import FakeIssuer
from authsvc.verifier.grpc import BearerInterceptor, claims_of
from tests.support.keys import Down

ISSUER = FakeIssuer()
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def _unary(request: Any, context: grpc.ServicerContext) -> bytes:
    return claims_of(context).openid.encode()


def _stream(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield claims_of(context).openid.encode()


def _public(request: bytes, context: grpc.ServicerContext) -> bytes:
    with pytest.raises(RuntimeError, match="BearerInterceptor"):
        claims_of(context)
    return b"anybody"


def _serve(verifier: Verifier) -> tuple[Any, int]:
    methods: dict[str, Any] = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(_unary),
        "unary_stream": grpc.unary_stream_rpc_method_handler(_stream),
        "stream_unary": grpc.stream_unary_rpc_method_handler(_unary),
        "stream_stream": grpc.stream_stream_rpc_method_handler(_stream),
        "public": grpc.unary_unary_rpc_method_handler(_public),
    }
    interceptor = BearerInterceptor(verifier, public={"/test.Who/public"})
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[interceptor])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Who", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


Call = Callable[..., bytes]


@pytest.fixture(params=["well", "down"])
def call(request: pytest.FixtureRequest) -> Iterator[Call]:
    server, port = _serve(ISSUER.verifier() if request.param == "well" else Verifier(Down(), ISSUER.policy))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call(kind: str, token: str | None = None, *, method: str | None = None) -> bytes:
            metadata = [("authorization", f"Bearer {token}")] if token is not None else []
            given: Any = b"" if kind.startswith("unary") else iter([b""])
            answer: Any = getattr(channel, kind)(f"/test.Who/{method or kind}")(given, metadata=metadata, timeout=10)
            return bytes(answer) if kind.endswith("unary") else b"".join(answer)

        yield call
    server.stop(None).wait()


def _refused(call: Call, *arguments: str, **options: str) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call(*arguments, **options)
    error: Any = refused.value
    return error.code(), error.details()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["well"], indirect=True)
def test_a_call_with_a_good_token_gets_through_with_its_claims_and_no_other_does(call: Call, kind: str) -> None:
    assert call(kind, ISSUER.token("oAlice")) == b"oAlice"
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    assert _refused(call, kind) == (unauthenticated, "missing")
    assert _refused(call, kind, ISSUER.expired_token()) == (unauthenticated, "expired")
    assert _refused(call, kind, ISSUER.forged_token()) == (unauthenticated, "invalid")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["down"], indirect=True)
def test_while_it_cannot_be_told_a_call_is_unavailable(call: Call, kind: str) -> None:
    assert _refused(call, kind, ISSUER.token()) == (grpc.StatusCode.UNAVAILABLE, "keys_unavailable")


@pytest.mark.parametrize("call", ["well"], indirect=True)
def test_what_is_public_is_called_by_anybody_and_what_is_not_there_is_unimplemented(call: Call) -> None:
    assert call("unary_unary", method="public") == b"anybody"
    assert _refused(call, "unary_unary", ISSUER.token(), method="other")[0] is grpc.StatusCode.UNIMPLEMENTED
