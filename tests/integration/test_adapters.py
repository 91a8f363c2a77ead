"""The adapters in their frameworks: good tokens get in with their claims, others get what RFC 6750 says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.validate import validator

import django
import fastapi
import pytest
import requests
import uvicorn
import websockets.exceptions
import websockets.sync.client
from django.conf import settings as django_settings
from django.http import HttpRequest, JsonResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from flask import Flask
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from authsvc import Claims, Verifier
from authsvc.testing import APPID, FakeIssuer
from authsvc.verifier import asgi, wsgi
from authsvc.verifier import flask as for_flask
from tests.support.keys import Down

ISSUER = FakeIssuer()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["cache-control"] == "no-store"
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        return found


Ask = Callable[..., Answer]
"""GET /me (or another path) with these headers."""


# ---- one app for each framework -----------------------------------------------------------------


def _flask_app(verifier: Verifier) -> Flask:
    app = Flask("users-own")
    for_flask.use_verifier(app, verifier)

    @app.get("/me")
    @for_flask.login_required
    def me() -> dict[str, str]:
        return {"openid": for_flask.current_claims.openid, "appid": for_flask.current_claims.appid}

    @app.get("/public")
    def public() -> dict[str, str]:
        return {}

    return app


@contextlib.contextmanager
def _in_flask(verifier: Verifier) -> Iterator[Ask]:
    client = _flask_app(verifier).test_client()

    def ask(target: str = "/me", **headers: str) -> Answer:
        reply = client.get(target, headers=headers)
        return Answer(reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, reply.data)

    yield ask


def _wsgi_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    claims = environ.get(wsgi.CLAIMS)
    start_response("200 OK", [("Content-Type", "application/json")])
    if not isinstance(claims, Claims):
        return [b"{}"]
    return [json.dumps({"openid": environ["REMOTE_USER"], "appid": claims.appid}).encode()]


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _asker(url: str) -> Ask:
    def ask(target: str = "/me", **headers: str) -> Answer:
        reply = requests.get(url + target, headers=headers, timeout=10)
        return Answer(reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, reply.content)

    return ask


@contextlib.contextmanager
def _in_wsgi(verifier: Verifier) -> Iterator[Ask]:
    app = wsgi.BearerMiddleware(validator(_wsgi_app), verifier, public={"/public"})
    server: WSGIServer = make_server("127.0.0.1", 0, validator(app), handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield _asker(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def _served(app: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


async def _me(request: Request) -> JSONResponse:
    assert request.user.is_authenticated
    assert request.user.display_name == request.user.identity
    return JSONResponse({"openid": request.user.identity, "appid": request.state.claims.appid})


@requires("authenticated")
async def _required(request: Request) -> JSONResponse:
    return JSONResponse({"openid": request.user.identity})


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.state.claims.openid)
    await websocket.close()


async def _public(request: Request) -> JSONResponse:
    return JSONResponse({})


def _starlette_app(verifier: Verifier) -> asgi.ASGIApp:
    routes = [
        Route("/me", _me),
        Route("/required", _required),
        Route("/public", _public),
        WebSocketRoute("/echo", _echo),
    ]
    return asgi.BearerMiddleware(Starlette(routes=routes), verifier, public={"/public"})


@contextlib.contextmanager
def _in_starlette(verifier: Verifier) -> Iterator[Ask]:
    with _served(_starlette_app(verifier)) as address:
        yield _asker(f"http://{address}")


def _current_claims(request: fastapi.Request) -> Claims:
    claims: Claims = request.state.claims
    return claims


def _fastapi_app(verifier: Verifier) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    app.add_middleware(asgi.BearerMiddleware, verifier=verifier, public={"/public", "/docs", "/openapi.json"})

    @app.get("/me")
    async def me(claims: Annotated[Claims, fastapi.Depends(_current_claims)]) -> dict[str, str]:
        return {"openid": claims.openid, "appid": claims.appid}

    @app.get("/public")
    async def public() -> dict[str, str]:
        return {}

    return app


@contextlib.contextmanager
def _in_fastapi(verifier: Verifier) -> Iterator[Ask]:
    with _served(_fastapi_app(verifier)) as address:
        yield _asker(f"http://{address}")


def _django_me(request: HttpRequest) -> JsonResponse:
    claims: Claims = request.claims  # type: ignore[attr-defined]
    return JsonResponse({"openid": claims.openid, "appid": claims.appid})


async def _django_me_async(request: HttpRequest) -> JsonResponse:
    return _django_me(request)


class _DjangoView(View):
    def get(self, request: HttpRequest) -> JsonResponse:
        return _django_me(request)


class _DjangoAsyncView(View):
    async def get(self, request: HttpRequest) -> JsonResponse:
        return _django_me(request)


def _django_public(request: HttpRequest) -> JsonResponse:
    return JsonResponse({})


urlpatterns: list[Any] = []


def _set_up_django() -> None:
    if not django_settings.configured:
        django_settings.configure(
            ROOT_URLCONF=__name__,
            MIDDLEWARE=["authsvc.verifier.django.bearer_middleware"],
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="of a test",
        )
        django.setup()
        from authsvc.verifier.django import login_required

        urlpatterns.extend(
            [
                path("me", login_required(_django_me)),
                path("me-async", login_required(_django_me_async)),
                path("me-class", login_required(_DjangoView.as_view())),
                path("me-dispatch", method_decorator(login_required, name="dispatch")(_DjangoAsyncView).as_view()),
                path("public", _django_public),
            ]
        )


@contextlib.contextmanager
def _in_django(verifier: Verifier) -> Iterator[Ask]:
    _set_up_django()
    django_settings.AUTHSVC_VERIFIER = verifier

    def ask(target: str = "/me", **headers: str) -> Answer:
        reply = Client().get(target, headers=headers)
        return Answer(reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, reply.content)

    yield ask


@contextlib.contextmanager
def _in_async_django(verifier: Verifier) -> Iterator[Ask]:
    _set_up_django()
    django_settings.AUTHSVC_VERIFIER = verifier

    def ask(target: str = "/me", **headers: str) -> Answer:
        async def get() -> Any:
            return await AsyncClient().get("/me-async" if target == "/me" else target, headers=headers)

        reply = asyncio.run(get())
        return Answer(reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, reply.content)

    yield ask


FRAMEWORKS = {
    "Flask": _in_flask,
    "WSGI": _in_wsgi,
    "Starlette": _in_starlette,
    "FastAPI": _in_fastapi,
    "Django": _in_django,
    "Django, async": _in_async_django,
}


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Callable[[Verifier], Any]:
    found: Callable[[Verifier], Any] = FRAMEWORKS[request.param]
    return found


@pytest.fixture
def ask(framework: Callable[[Verifier], Any]) -> Iterator[Ask]:
    with framework(ISSUER.verifier()) as ask:
        yield ask


# ---- what holds for all of them -----------------------------------------------------------------


@pytest.mark.parametrize("word", ["Bearer", "bearer", "BEARER"])
def test_with_a_good_token_the_view_runs_and_has_the_claims(ask: Ask, word: str) -> None:
    answer = ask(Authorization=f"{word} {ISSUER.token('oAlice')}")
    assert (answer.status, json.loads(answer.body)) == (200, {"openid": "oAlice", "appid": APPID})


def test_without_a_token_there_is_a_challenge_and_no_error(ask: Ask) -> None:
    for headers in ({}, {"Authorization": "Basic dXNlcjpwYXNz"}, {"Authorization": "Bearer "}):
        answer = ask(**headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.problem["code"] == "missing"


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (lambda: ISSUER.expired_token(), "expired"),
        (lambda: ISSUER.forged_token(), "invalid"),
        (lambda: ISSUER.token(audience="other"), "invalid"),
        (lambda: FakeIssuer().token(), "invalid"),
        (lambda: "undefined", "malformed"),
        (lambda: f"{ISSUER.token()}, Bearer {ISSUER.token()}", "malformed"),
        (lambda: f"{ISSUER.token()}, Basic dXNlcjpwYXNz", "malformed"),
    ],
    ids=["expired", "forged", "another audience", "another issuer", "no token", "two tokens", "two schemes"],
)
def test_a_token_that_is_not_good_is_401_and_says_why(ask: Ask, token: Callable[[], str], code: str) -> None:
    answer = ask(Authorization=f"Bearer {token()}")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == f'Bearer error="invalid_token", error_description="{code}"'
    assert answer.problem["code"] == code
    assert b"eyJ" not in answer.body


def test_while_it_cannot_be_told_the_answer_is_503_and_when_to_come_back(
    framework: Callable[[Verifier], Any],
) -> None:
    with framework(Verifier(Down(), ISSUER.policy)) as ask:
        answer = ask(Authorization=f"Bearer {ISSUER.token()}")
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert answer.problem["code"] == "keys_unavailable"
        assert "www-authenticate" not in answer.headers


def test_what_is_public_is_reached_without_a_token(ask: Ask) -> None:
    assert ask("/public").status == 200


# ---- what one framework has more ----------------------------------------------------------------


def test_in_flask_claims_outside_of_a_protected_view_are_a_mistake_that_is_told() -> None:
    app = _flask_app(ISSUER.verifier())
    with app.test_request_context(), pytest.raises(RuntimeError, match="login_required"):
        assert for_flask.current_claims.openid


def test_in_flask_claims_do_not_outlive_their_request() -> None:
    app = _flask_app(ISSUER.verifier())

    @app.get("/whose")
    def whose() -> dict[str, str]:
        return {"openid": for_flask.current_claims.openid}

    app.testing = True
    with app.app_context():
        client = app.test_client()
        assert client.get("/me", headers=ISSUER.authorization("oAlice")).status_code == 200
        with pytest.raises(RuntimeError, match="login_required"):
            client.get("/whose")


def test_in_flask_an_app_without_a_verifier_says_what_is_missing() -> None:
    app = Flask("users-own")
    app.testing = True
    app.get("/me")(for_flask.login_required(lambda: "in"))
    with pytest.raises(RuntimeError, match="use_verifier"):
        app.test_client().get("/me")


def test_in_wsgi_the_answer_to_head_has_no_body() -> None:
    said: list[str] = []
    app = wsgi.BearerMiddleware(_wsgi_app, ISSUER.verifier())
    environ = {"REQUEST_METHOD": "HEAD", "PATH_INFO": "/me"}
    assert list(app(environ, lambda status, _headers, _error=None: said.append(status) or bytes)) == []  # type: ignore[func-returns-value]
    assert said == ["401 Unauthorized"]


def test_in_asgi_what_has_no_token_that_can_be_read_gets_nowhere_and_a_websocket_is_told_when_to_come_back() -> None:
    async def app(*_: object) -> None:
        pytest.fail("it got through")

    async def refused(scope_type: str, verifier: Verifier) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {}

        scope = {"type": scope_type, "path": "/", "headers": [(b"authorization", f"Bearer {ISSUER.token()}".encode())]}
        if verifier is good:
            scope["headers"] = []
        await asgi.BearerMiddleware(app, verifier)(scope, receive, send)
        return sent

    good, down = ISSUER.verifier(), Verifier(Down(), ISSUER.policy)
    assert asyncio.run(refused("webtransport", good))[0]["status"] == 401
    assert asyncio.run(refused("websocket", good)) == [{"type": "websocket.close", "code": 1008}]
    assert asyncio.run(refused("websocket", down)) == [{"type": "websocket.close", "code": 1013}]


def test_in_wsgi_a_public_path_has_no_claims_whatever_is_sent() -> None:
    with _in_wsgi(ISSUER.verifier()) as ask:
        assert ask("/public", Authorization=f"Bearer {ISSUER.token()}").body == b"{}"
        assert ask("/public/").status == 401, "to the letter"


def test_in_starlette_its_own_decorator_works_and_a_websocket_is_opened_with_a_good_token_alone() -> None:
    with _served(_starlette_app(ISSUER.verifier())) as address:
        assert _asker(f"http://{address}")("/required", **ISSUER.authorization("oAlice")).status == 200
        url = f"ws://{address}/echo"
        with websockets.sync.client.connect(url, additional_headers=ISSUER.authorization("oAlice")) as opened:
            assert opened.recv() == "oAlice"
        for headers in ({}, {"Authorization": f"Bearer {ISSUER.expired_token()}"}):
            with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
                websockets.sync.client.connect(url, additional_headers=headers)
            assert refused.value.response.status_code == 403


@pytest.mark.parametrize("target", ["/me", "/me-async", "/me-class", "/me-dispatch"])
@pytest.mark.parametrize("server", ["WSGI", "ASGI"])
def test_in_django_every_kind_of_view_is_protected_under_either_kind_of_server(target: str, server: str) -> None:
    _set_up_django()
    django_settings.AUTHSVC_VERIFIER = ISSUER.verifier()

    def status(headers: dict[str, str]) -> int:
        if server == "WSGI":
            return int(Client().get(target, headers=headers).status_code)

        async def get() -> int:
            return int((await AsyncClient().get(target, headers=headers)).status_code)

        return asyncio.run(get())

    assert [status(headers) for headers in ({}, ISSUER.authorization())] == [401, 200]


def test_in_django_a_view_without_the_middleware_lets_nobody_in() -> None:
    _set_up_django()
    from authsvc.verifier.django import login_required

    answer = login_required(_django_me)(HttpRequest())
    assert answer.status_code == 401
