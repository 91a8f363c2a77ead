"""The gateway alone: who gets a thread, when, and with which request."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from wsgiref.validate import validator

import pytest
from structlog.testing import capture_logs
from werkzeug.exceptions import RequestTimeout

from authsvc.errors import BadRequest, Overloaded
from authsvc.http.bodies import WhenThere
from authsvc.http.gateway import Gateway
from tests.support.processes import until

SOON_S: Final = 10
MOST: Final = 100
LONG: Final = 10_000


class Fields:
    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        self._items = list(items)

    def keys(self) -> list[str]:
        return list(dict(self._items))

    def items(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self._items if value.isascii()]


class Request:
    """As granian hands it over."""

    http_version = "1.1"
    server = "127.0.0.1:8080"
    authority: str | None = None

    def __init__(self, method: str, target: str, *fields: tuple[str, str], client: str = "192.0.2.1:50000") -> None:
        self.method = method
        self.path, _, self.query_string = target.partition("?")
        self.client = client
        self.headers = Fields([("host", "login.example.com"), *fields])


class Exchange:
    """granian's end, with a body that is there as soon as `arrive` says so."""

    def __init__(self, *chunks: bytes, ends: Exception | None = None) -> None:
        self._chunks = chunks
        self._ends = ends
        self._has_come = asyncio.Event()
        self._future: Future | None = None
        self.reads = 0
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self._answered = threading.Event()
        self.is_read = threading.Event()
        self.is_given_up = threading.Event()

    def arrive(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._future is not None:
            future, self._future = self._future, None
            future.is_there()
        loop.call_soon_threadsafe(self._has_come.set)

    def __call__(self) -> Future:
        self._future = Future(b"".join(self._chunks), self._ends, begun=self.is_read, given_up=self.is_given_up)
        return self._future

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.is_read.set()
        await self._has_come.wait()
        for chunk in self._chunks:
            self.reads += 1
            yield chunk
        if self._ends is not None:
            yield b""  # all that granian says of an error
        yield b""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if self.answer is None:
            self.answer = status, dict(headers), body
        self._answered.set()

    def answered(self) -> tuple[int, dict[str, str], bytes]:
        assert self._answered.wait(SOON_S), "nobody answered"
        assert self.answer is not None
        return self.answer


class Future:
    """granian's, of a body that says how long it is."""

    def __init__(
        self, body: bytes, ends: Exception | None, *, begun: threading.Event, given_up: threading.Event
    ) -> None:
        self._body = body
        self._ends = ends
        self._begun = begun
        self._given_up = given_up
        self._then: Callable[[Any], object] | None = None

    def add_done_callback(self, callback: Callable[[Any], object], *, context: None) -> None:
        assert isinstance(callback, WhenThere), "or it waits for the thread of the loop"
        del context
        self._then = callback
        self._begun.set()

    def is_there(self) -> None:
        assert self._then is not None
        self._then(self)

    def result(self) -> bytes:
        if self._ends is not None:
            raise self._ends
        return self._body

    def cancel(self) -> bool:
        self._given_up.set()
        return True

    def cancelled(self) -> bool:
        return False  # it was there before it was given up, or this is not asked


class App:
    """Notes what it is asked; says what it read."""

    def __init__(self) -> None:
        self.environs: list[dict[str, Any]] = []
        self.raised: list[Exception] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        self.environs.append(environ)
        try:
            body = environ["wsgi.input"].read()
        except (BadRequest, Overloaded, RequestTimeout) as error:
            self.raised.append(error)
            body = b"unreadable"
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]


@contextmanager
def gateway(app: Callable[..., Any], **how: Any) -> Iterator[tuple[Gateway, asyncio.AbstractEventLoop]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    it = Gateway(app, threads=2, longest_body=lambda path: LONG if path == "/long" else MOST, **how)
    it.begin(loop)
    try:
        yield it, loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SOON_S)
        loop.close()


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def post(path: str, length: int) -> Request:
    return Request("POST", path, ("content-length", str(length)))


# ---- the body comes first -----------------------------------------------------------------------


def test_the_app_is_called_when_all_of_the_body_is_there_and_not_before() -> None:
    app = App()
    with gateway(app) as (it, loop):
        it.take(post("/login", 5), exchange := Exchange(b"he", b"llo"))
        assert exchange.is_read.wait(SOON_S)
        assert not app.environs
        exchange.arrive(loop)
        assert exchange.answered() == (200, {"Content-Type": "text/plain"}, b"hello")


def test_requests_go_on_while_more_bodies_are_slow_than_there_are_threads() -> None:
    app = App()
    with gateway(app) as (it, loop):
        slow = [Exchange(b"x") for _ in range(50)]
        for exchange in slow:
            it.take(post("/login", 1), exchange)
        it.take(Request("GET", "/healthz"), well := Exchange())
        it.take(post("/login", 2), quick := Exchange(b"ok"))
        quick.arrive(loop)
        assert well.answered()[0] == 200
        assert quick.answered()[2] == b"ok"
        for exchange in slow:
            exchange.arrive(loop)
        assert [exchange.answered()[2] for exchange in slow] == [b"x"] * 50


def test_a_body_that_does_not_come_in_time_is_an_error_for_whoever_reads_it() -> None:
    app = App()
    with gateway(app, body_within_s=0) as (it, _):
        it.take(post("/login", 5), exchange := Exchange())
        exchange.answered()
    assert [type(error) for error in app.raised] == [RequestTimeout]
    assert exchange.is_given_up.is_set()


def test_a_body_that_comes_when_its_time_is_over_does_not_have_the_request_answered_twice() -> None:
    app = App()
    with gateway(app, body_within_s=0) as (it, loop):
        it.take(post("/login", 5), exchange := Exchange(b"hello"))
        exchange.answered()
        exchange.arrive(loop)
        it.take(Request("GET", "/healthz"), after := Exchange())
        after.answered()
    assert [environ["PATH_INFO"] for environ in app.environs] == ["/login", "/healthz"]


@pytest.mark.parametrize("ends", [None, RuntimeError("RSGI transport is closed")], ids=["whole", "cut short"])
def test_a_request_that_is_over_is_forgotten_without_the_garbage_collector(ends: Exception | None) -> None:
    # It does not see into granian's objects: what holds itself by way of one of them is held for ever.
    with gateway(lambda _environ, _start_response: [b""]) as (it, loop), no_garbage_collector():
        it.take(post("/login", 5), exchange := Exchange(b"hello", ends=ends))
        exchange.arrive(loop)
        exchange.answered()
        held = weakref.ref(exchange)
        del exchange
        until(lambda: held() is None, within_s=SOON_S)


def test_a_body_without_a_length_that_does_not_come_in_time_is_an_error_for_whoever_reads_it() -> None:
    app = App()
    amiss: list[Any] = []
    with gateway(app, body_within_s=0.3) as (it, loop):
        loop.set_exception_handler(lambda _loop, context: amiss.append(context))
        it.take(Request("POST", "/login", ("transfer-encoding", "chunked")), exchange := Exchange())
        exchange.answered()
        until(lambda: not asyncio.all_tasks(loop), within_s=SOON_S)
    assert [type(error) for error in app.raised] == [RequestTimeout]
    assert not amiss


def test_a_body_that_ends_too_early_is_a_bad_request_for_whoever_reads_it() -> None:
    app = App()
    for request in (post("/login", 5), Request("POST", "/login", ("transfer-encoding", "chunked"))):
        with gateway(app) as (it, loop):
            it.take(request, exchange := Exchange(b"he", ends=RuntimeError("RSGI transport is closed")))
            exchange.arrive(loop)
            exchange.answered()
    assert [str(error)[:22] for error in app.raised if isinstance(error, BadRequest)] == ["the body was cut short"] * 2


def test_any_other_error_of_a_body_is_for_whoever_reads_it_too() -> None:
    found: list[str] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except ZeroDivisionError as error:
            found.append(str(error))
        start_response("200 OK", [])
        return [b""]

    with gateway(app) as (it, loop):
        it.take(post("/login", 5), exchange := Exchange(ends=ZeroDivisionError("of granian's")))
        exchange.arrive(loop)
        exchange.answered()
    assert found == ["of granian's"]


def test_of_a_body_that_says_that_it_is_too_long_nothing_is_read() -> None:
    app = App()
    with gateway(app) as (it, _):
        it.take(post("/login", MOST + 1), exchange := Exchange())
        assert exchange.answered()[2] == b""
    assert not exchange.is_read.is_set()
    assert app.environs[0]["CONTENT_LENGTH"] == str(MOST + 1), "or the app could not refuse it"


def test_a_length_with_more_zeros_before_it_than_python_reads_is_a_length() -> None:
    app = App()
    with gateway(app) as (it, loop):
        it.take(Request("POST", "/login", ("content-length", f"{'0' * 5_000}5")), exchange := Exchange(b"hello"))
        exchange.arrive(loop)
        assert exchange.answered()[2] == b"hello"


def test_of_a_body_without_a_length_little_more_is_read_than_the_path_takes() -> None:
    app = App()
    with gateway(app) as (it, loop):
        it.take(Request("POST", "/login", ("transfer-encoding", "chunked")), exchange := Exchange(*[b"x" * 40] * 1_000))
        exchange.arrive(loop)
        assert MOST < len(exchange.answered()[2]) < MOST + 80
    assert exchange.reads == 3


def test_a_body_without_a_length_reaches_the_app_whole() -> None:
    app = App()
    with gateway(app) as (it, loop):
        it.take(Request("POST", "/login", ("transfer-encoding", "chunked")), exchange := Exchange(b"he", b"llo"))
        exchange.arrive(loop)
        assert exchange.answered()[2] == b"hello"


def test_long_bodies_beyond_what_a_worker_holds_are_refused_and_short_ones_are_not() -> None:
    app = App()
    with gateway(app, most_held=2 * LONG) as (it, loop):
        held = [Exchange(b"x" * LONG) for _ in range(2)]
        for exchange in held:
            it.take(post("/long", LONG), exchange)
            assert exchange.is_read.wait(SOON_S)
        it.take(post("/long", LONG), refused := Exchange())
        refused.answered()
        assert [type(error) for error in app.raised] == [Overloaded]
        it.take(post("/login", 2), short := Exchange(b"ok"))
        short.arrive(loop)
        assert short.answered()[2] == b"ok"
        for exchange in held:
            exchange.arrive(loop)
            exchange.answered()
        it.take(post("/long", LONG), later := Exchange(b"y" * LONG))
        later.arrive(loop)
        assert later.answered()[2] == b"y" * LONG, "room that is free again"


def long_post(user: str) -> Request:
    return Request("POST", "/long", ("content-length", str(LONG)), ("authorization", user))


def known(headers: Mapping[str, str]) -> str | None:
    return headers.get("HTTP_AUTHORIZATION")


def test_bodies_of_strangers_that_never_come_leave_those_of_known_senders_their_room() -> None:
    app = App()
    with gateway(app, most_held=2 * LONG, sender_of=known) as (it, loop):
        for _ in range(2):
            it.take(post("/long", LONG), held := Exchange())
            assert held.is_read.wait(SOON_S)
        it.take(post("/long", LONG), refused := Exchange())
        assert refused.answered()[2] == b"unreadable"
        it.take(long_post("somebody"), his := Exchange(b"x" * LONG))
        his.arrive(loop)
        assert his.answered()[2] == b"x" * LONG


def test_one_sender_cannot_take_the_room_of_all() -> None:
    app = App()
    with gateway(app, most_held=4 * LONG, most_of_a_sender=2 * LONG, sender_of=known) as (it, loop):
        held = [Exchange(b"x" * LONG) for _ in range(2)]
        for exchange in held:
            it.take(long_post("greedy"), exchange)
            assert exchange.is_read.wait(SOON_S)
        it.take(long_post("greedy"), refused := Exchange())
        assert refused.answered()[2] == b"unreadable"
        assert [type(error) for error in app.raised] == [Overloaded]
        it.take(long_post("modest"), other := Exchange(b"y" * LONG))
        other.arrive(loop)
        assert other.answered()[2] == b"y" * LONG
        for exchange in held:
            exchange.arrive(loop)
            exchange.answered()
        it.take(long_post("greedy"), later := Exchange(b"z" * LONG))
        later.arrive(loop)
        assert later.answered()[2] == b"z" * LONG, "room that is free again"
        assert not it._bodies._held, "senders come and go, and are forgotten"


def test_senders_together_have_no_more_than_their_room() -> None:
    app = App()
    with gateway(app, most_held=2 * LONG, most_of_a_sender=2 * LONG, sender_of=known) as (it, _):
        for user in ("one", "two"):
            it.take(long_post(user), held := Exchange())
            assert held.is_read.wait(SOON_S)
        it.take(long_post("three"), refused := Exchange())
        assert refused.answered()[2] == b"unreadable"


def test_nobody_asks_who_sends_a_short_body() -> None:
    asked: list[object] = []
    with gateway(App(), sender_of=asked.append) as (it, loop):
        it.take(post("/long", 2), exchange := Exchange(b"ok"))
        exchange.arrive(loop)
        assert exchange.answered()[2] == b"ok"
    assert asked == []


@pytest.mark.parametrize("long", [("x-long", "x" * LONG), ("x" * LONG, "1")], ids=["value", "name"])
def test_long_headers_are_held_as_long_bodies_are(long: tuple[str, str]) -> None:
    app = App()
    with gateway(app, most_held=2 * LONG) as (it, _):
        fields = ("content-length", "1"), long
        it.take(Request("POST", "/login", *fields), held := Exchange(b"x"))
        assert held.is_read.wait(SOON_S)
        it.take(Request("POST", "/login", *fields), refused := Exchange())
        refused.answered()
    assert [type(error) for error in app.raised] == [Overloaded]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_a_body_is_read_of_a_post_alone(method: str) -> None:
    app = App()
    with gateway(app) as (it, _):
        it.take(Request(method, "/login", ("content-length", "5")), exchange := Exchange())
        assert exchange.answered()[2] == b""
    assert not exchange.is_read.is_set()


# ---- threads ------------------------------------------------------------------------------------


def test_no_thread_is_begun_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Barrier(3)

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        started.wait(SOON_S)
        start_response("200 OK", [])
        return [b""]

    with gateway(app) as (it, _):
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
        both = [Exchange(), Exchange()]
        for exchange in both:
            it.take(Request("GET", "/"), exchange)
        started.wait(SOON_S)
        assert [exchange.answered()[0] for exchange in both] == [200, 200]


def test_a_gateway_that_cannot_have_its_threads_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    begun: list[threading.Thread] = []

    def start_two(thread: threading.Thread) -> None:
        if len(begun) == 2:
            no_more_threads(thread)
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start"):
        Gateway(App(), threads=3, longest_body=lambda _path: MOST)
    assert len(begun) == 2


def no_more_threads(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# ---- what the app sees --------------------------------------------------------------------------


def environ_of(request: Request) -> dict[str, Any]:
    app = App()
    with gateway(app) as (it, _):
        it.take(request, exchange := Exchange())
        exchange.answered()
    return app.environs[0]


def test_an_app_that_holds_the_server_to_pep_3333_finds_nothing() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read(3)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"good"]

    with gateway(validator(app)) as (it, loop), capture_logs() as logs:
        it.take(post("/login?a=b", 3), exchange := Exchange(b"abc"))
        exchange.arrive(loop)
        assert exchange.answered()[2] == b"good"
    assert not logs


def test_a_request_is_told_as_it_came() -> None:
    environ = environ_of(Request("GET", "/a?b=%20c", ("content-type", "text/plain"), ("x-request-id", "r-1")))
    assert {name: environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING")} == {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b=%20c",
    }
    assert environ["CONTENT_TYPE"] == "text/plain"
    assert environ["HTTP_X_REQUEST_ID"] == "r-1"
    assert environ["HTTP_HOST"] == "login.example.com"
    assert "HTTP_CONTENT_TYPE" not in environ


def test_characters_beyond_ascii_are_told_as_bytes() -> None:
    environ = environ_of(Request("GET", "/é?ü"))
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/é"
    assert environ["QUERY_STRING"].encode("latin-1").decode() == "ü"


@pytest.mark.parametrize(
    ("client", "address"), [("192.0.2.1:50000", "192.0.2.1"), ("[2001:db8::1]:50000", "2001:db8::1")]
)
def test_the_address_of_the_client_is_told_without_its_port(client: str, address: str) -> None:
    environ = environ_of(Request("GET", "/", client=client))
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (address, "50000")


def test_a_field_that_comes_twice_is_told_with_both_values() -> None:
    environ = environ_of(Request("GET", "/", ("authorization", "Bearer a"), ("authorization", "Bearer b")))
    assert environ["HTTP_AUTHORIZATION"] == "Bearer a,Bearer b"


def test_an_underscore_does_not_make_a_field_another_one() -> None:
    environ = environ_of(Request("GET", "/", ("x-forwarded-for", "192.0.2.9"), ("x_forwarded_for", "198.51.100.1")))
    assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.9"


def test_the_host_of_a_whole_url_counts_and_not_the_one_that_the_field_names() -> None:
    request = Request("GET", "/")
    request.authority = "evil.example"
    assert environ_of(request)["HTTP_HOST"] == "evil.example"


def test_a_value_that_is_not_ascii_is_there_and_is_none_that_anybody_takes() -> None:
    environ = environ_of(Request("GET", "/", ("x-forwarded-for", "\xff, 192.0.2.9"), ("x_a", "1")))
    assert environ["HTTP_X_FORWARDED_FOR"].encode("latin-1").decode() == "\ufffd"


# ---- answers ------------------------------------------------------------------------------------


def test_what_can_be_answered_at_once_does_not_reach_the_app() -> None:
    def at_once(method: str, path: str, query: str, *, headers: dict[str, str]) -> Any:
        return ([("X-Way", "short")], f"{method} {query} {headers['HTTP_HOST']}".encode()) if path == "/a" else None

    app = App()
    with gateway(app, at_once=at_once) as (it, _):
        it.take(Request("GET", "/a?b"), short := Exchange())
        assert short.answer == (200, {"X-Way": "short"}, b"GET b login.example.com")
        it.take(Request("GET", "/b"), long := Exchange())
        assert long.answered()[1] == {"Content-Type": "text/plain"}
    assert [environ["PATH_INFO"] for environ in app.environs] == ["/b"]


def test_whoever_is_answered_while_the_worker_leaves_is_told_to_close_the_connection() -> None:
    def at_once(_method: str, path: str, _query: str, *, headers: dict[str, str]) -> Any:
        del headers
        return ([], b"") if path == "/a" else None

    with gateway(App(), at_once=at_once) as (it, loop):
        it.leave()
        for request in (Request("GET", "/a"), Request("GET", "/b"), post("/login", 1)):
            it.take(request, exchange := Exchange(b"x"))
            exchange.arrive(loop)
            assert exchange.answered()[1]["Connection"] == "close"


def test_a_body_has_little_time_once_the_worker_leaves() -> None:
    app = App()
    with gateway(app, body_within_s=3 * SOON_S, body_at_end_within_s=0.1) as (it, loop):
        it.take(post("/login", 1), before := Exchange(b"x"))
        assert before.is_read.wait(SOON_S)
        loop.call_soon_threadsafe(it.leave)
        before.answered()
        it.take(post("/login", 1), after := Exchange(b"x"))
        after.answered()
    assert [type(error) for error in app.raised] == [RequestTimeout] * 2


def test_what_the_app_answers_with_is_closed() -> None:
    class Closing(io.BytesIO):
        is_done = threading.Event()

        def close(self) -> None:
            self.is_done.set()

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Closing(b"answer")

    with gateway(app) as (it, _):
        it.take(Request("GET", "/"), exchange := Exchange())
        assert exchange.answered()[2] == b"answer"
        assert Closing.is_done.is_set()


def test_an_error_of_the_app_is_a_500_and_a_line_in_the_log() -> None:
    def app(_environ: dict[str, Any], _start_response: Callable[..., Any]) -> list[bytes]:
        raise ValueError("SECRETMARKER")

    with gateway(app) as (it, loop), capture_logs() as logs:
        for request in (Request("GET", "/"), post("/login", 1)):
            it.take(request, exchange := Exchange(b"x"))
            exchange.arrive(loop)
            assert exchange.answered() == (500, {"Connection": "close"}, b"")
    assert [line["event"] for line in logs] == ["unexpected_error"] * 2


def test_an_error_on_the_short_way_does_not_reach_the_thread_of_the_server() -> None:
    def at_once(_method: str, _path: str, _query: str, *, headers: dict[str, str]) -> Any:
        raise ValueError(headers["HTTP_HOST"])

    with gateway(App(), at_once=at_once) as (it, _), capture_logs() as logs:
        it.take(Request("GET", "/"), exchange := Exchange())
    assert exchange.answer == (500, {"Connection": "close"}, b"")
    assert [line["event"] for line in logs] == ["unexpected_error"]
