"""The verifier against an issuer over real HTTP, well-behaved and not; threads, asyncio and forks for real."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from authsvc import IssuerKeys, KeysUnavailable, RemoteKeys, TokenError, Verifier
from authsvc.encoding import base64url_decode, base64url_encode, canonical_json, parse_json_object
from authsvc.verifier.fetch import Fetched, Fetcher, FetchFailed
from authsvc.verifier.sources import MAX_JWKS_BYTES
from tests.support.clock import NOW
from tests.support.crash import in_child
from tests.support.issuer import JWKS_PATH, METADATA_PATH, Issuer, issuer_over_http, send
from tests.support.keys import AUDIENCE, CLAIMS, keyring
from tests.support.tls import certificate

TIMEOUT_S = 0.5
NEXT = keyring(made_at=NOW - 1)


_OPEN = contextlib.ExitStack()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuer_over_http() as issuer, _OPEN:
        yield issuer


def _verifier(issuer: Issuer, *, timeout_s: float = TIMEOUT_S, **options: object) -> Verifier:
    keys = IssuerKeys(issuer.url, timeout_s=timeout_s, **options)
    return _OPEN.enter_context(Verifier(keys, issuer.policy))


def _keys(issuer: Issuer) -> RemoteKeys:
    """Keys that are fetched when the test says so."""
    keys = RemoteKeys(issuer.url + JWKS_PATH, timeout_s=TIMEOUT_S, start_thread=lambda _: None)
    _OPEN.callback(keys.close)
    return keys


def _fetcher(tls: ssl.SSLContext | None = None) -> Callable[[str], Fetched]:
    fetcher = Fetcher(tls=tls)
    _OPEN.callback(fetcher.close)
    return partial(fetcher.get, within_s=TIMEOUT_S if tls is None else 5)


def _outcome(verify: Callable[[], object]) -> str:
    try:
        verify()
    except (TokenError, KeysUnavailable) as error:
        return error.code
    return "ok"


def _outcome_of(verifier: Verifier, token: str) -> str:
    return _outcome(lambda: verifier.verify(token))


_NUMBERS = itertools.count()


# ---- a good issuer ------------------------------------------------------------------------------


def test_one_line_and_the_issuers_url_are_enough(issuer: Issuer) -> None:
    verifier = _OPEN.enter_context(Verifier(issuer.url, audience=AUDIENCE))
    claims = verifier.verify(issuer.token())
    assert (claims.openid, claims.appid) == (CLAIMS.openid, CLAIMS.appid)
    assert [path for path, _ in issuer.seen] == [METADATA_PATH, JWKS_PATH]
    with pytest.raises(TokenError):
        verifier.verify(issuer.token()[:-4] + "AAAA")


def test_its_connection_is_kept_and_its_etag_is_sent(issuer: Issuer) -> None:
    keys = _keys(issuer)
    kid = issuer.ring.signing_key(now=NOW).kid
    for _ in range(3):
        keys.fetch()
        time.sleep(TIMEOUT_S + 0.1)  # each has its own deadline
    assert keys.find(kid, now=NOW) is not None
    assert issuer.connections == 1
    assert ["If-None-Match" in headers for _, headers in issuer.seen] == [False, True, True]
    issuer.ring = NEXT
    keys.fetch()
    assert keys.find(kid, now=NOW) is None
    assert issuer.connections == 1


def test_a_kept_connection_that_the_host_has_closed_is_opened_anew(issuer: Issuer) -> None:
    def once(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, issuer.jwks)
        handler.close_connection = True  # without a word

    issuer.answer = once
    fetcher = _fetcher()
    for _ in range(3):
        assert fetcher(issuer.url + JWKS_PATH).body == issuer.jwks
        time.sleep(0.05)
    assert issuer.connections == 3


def test_keys_are_fetched_in_the_background_before_they_are_stale(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("authsvc.verifier.remote._LEAST_FRESH_S", 1)
    issuer.max_age_s = 1
    verifier = _verifier(issuer)
    ends_at = time.monotonic() + 4
    while time.monotonic() < ends_at:
        verifier.verify(issuer.token())
        time.sleep(0.01)
    assert issuer.fetches >= 4
    issuer.answer = lambda _: time.sleep(0.4)  # and a slow host is not waited for either
    for _ in range(100):
        assert _outcome(lambda: verifier.verify(issuer.token())) == "ok"
        time.sleep(0.01)


def test_a_rotation_is_followed_when_the_first_token_under_the_new_key_comes(issuer: Issuer) -> None:
    verifier = _verifier(issuer)
    old = issuer.token()
    verifier.verify(old)
    issuer.ring = NEXT
    assert verifier.verify(issuer.token()).openid == CLAIMS.openid
    assert _outcome(lambda: verifier.verify(old)) == "keys_unavailable"  # its key is gone, and the budget is spent


# ---- over TLS -----------------------------------------------------------------------------------


def test_over_tls_the_host_has_to_prove_who_it_is(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, host="127.0.0.1")
    with issuer_over_http(tls=server) as issuer:
        trusting = _fetcher(client)
        for _ in range(2):
            assert trusting(issuer.url + JWKS_PATH).body == issuer.jwks
        assert issuer.connections == 1
        with pytest.raises(FetchFailed, match="certificate"):
            _fetcher()(issuer.url + JWKS_PATH)
        with pytest.raises(FetchFailed, match="certificate"):
            trusting(issuer.url.replace("127.0.0.1", "localhost") + JWKS_PATH)


# ---- a bad one ----------------------------------------------------------------------------------


def _drip(handler: BaseHTTPRequestHandler, start: bytes) -> None:
    handler.wfile.write(start)
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def _raw(handler: BaseHTTPRequestHandler, answer: bytes) -> None:
    handler.wfile.write(answer)
    handler.close_connection = True


def _flood(handler: BaseHTTPRequestHandler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


GOOD_SET = json.dumps(keyring().jwks(now=NOW)).encode()

MISBEHAVIOUR: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    "500": lambda h: send(h, 500, b"oops"),
    "404": lambda h: send(h, 404, b"{}"),
    "500 with keys": lambda h: send(h, 500, GOOD_SET),
    "302 with keys": lambda h: send(h, 302, GOOD_SET, {"Location": "/other"}),
    "HTML": lambda h: send(h, 200, b"<html>hello</html>", {"Content-Type": "text/html"}),
    "an empty set": lambda h: send(h, 200, b'{"keys": []}'),
    "an empty body": lambda h: send(h, 200, b""),
    "204": lambda h: send(h, 204, b""),
    "huge": lambda h: send(h, 200, b'{"keys": [' + b" " * (MAX_JWKS_BYTES * 4) + b"]}"),
    "a redirect": lambda h: send(h, 302, b"", {"Location": JWKS_PATH + "?elsewhere"}),
    "a redirect for good": lambda h: send(h, 308, b"", {"Location": "/other"}),
    "silence": lambda h: time.sleep(TIMEOUT_S * 6),
    "dripping headers": lambda h: _drip(h, b"HTTP/1.1 200 OK\r\nX-Slow: "),
    "a dripping body": lambda h: _drip(h, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
    "a flood of 100": _flood,
    "cut short": lambda h: _raw(h, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"),
    "no HTTP": lambda h: _raw(h, b"SSH-2.0-OpenSSH_9.2\r\n"),
    "compressed": lambda h: send(h, 200, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
    "closed at once": lambda h: h.connection.shutdown(socket.SHUT_RDWR),
    "a 304 nobody asked for": lambda h: send(h, 304, b""),
}


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_a_misbehaving_issuer_takes_no_good_keys_away(issuer: Issuer, what: str) -> None:
    keys = _keys(issuer)
    keys.fetch()
    verifier = Verifier(keys, issuer.policy)
    issuer.answer = MISBEHAVIOUR[what]
    with contextlib.suppress(OSError):
        asked = keys.ask(issued_at=int(time.time()))
        keys.fetch()
    assert asked is not None
    assert isinstance(asked.answer.exception(0) or KeysUnavailable("304", retry_after_s=1), KeysUnavailable)
    assert _outcome(lambda: verifier.verify(issuer.token())) == "ok"


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_without_good_keys_a_misbehaving_issuer_logs_nobody_out_and_keeps_nobody_waiting(
    issuer: Issuer, what: str
) -> None:
    issuer.answer = MISBEHAVIOUR[what]
    verifier = _verifier(issuer)
    began = time.monotonic()
    assert _outcome(lambda: verifier.verify(issuer.token())) == "keys_unavailable"
    assert time.monotonic() - began < 3 * TIMEOUT_S + 2, "a fetch ends at its timeout"
    began = time.monotonic()
    for _ in range(20):
        assert _outcome(lambda: verifier.verify(issuer.token())) == "keys_unavailable"
    assert time.monotonic() - began < 3 * TIMEOUT_S + 2
    assert _outcome(lambda: verifier.verify(issuer.token(exp=1))) == "invalid"


def test_an_issuer_that_is_not_there_logs_nobody_out() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        issuer = Issuer(url=url)
        assert _outcome(lambda: _verifier(issuer).verify(issuer.token())) == "keys_unavailable"


def test_an_address_that_swallows_everything_leaves_the_others_their_share(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(issuer.url.rpartition(":")[2])
    with socket.socket() as swallows:
        swallows.bind(("127.0.0.1", 0))
        swallows.listen(0)
        with socket.create_connection(swallows.getsockname()):  # its queue is full: nobody else gets an answer
            addresses = [
                (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
                for address in (swallows.getsockname(), ("127.0.0.1", port))
            ]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
            assert _fetcher()(f"http://localhost:{port}{JWKS_PATH}").body == issuer.jwks


def test_a_host_that_takes_the_connection_and_no_request_is_left_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(FetchFailed, match="in time"):
            _fetcher()(url)
        assert time.monotonic() - began < 3 * TIMEOUT_S + 2


def test_when_the_issuer_goes_down_its_last_good_keys_serve_on_and_then_it_comes_back() -> None:
    with issuer_over_http() as issuer:
        port = int(issuer.url.rpartition(":")[2])
        keys = _keys(issuer)
        verifier = Verifier(keys, issuer.policy)
        keys.fetch()
        token = issuer.token()
    keys.fetch()
    assert keys._failures == 1
    assert verifier.verify(token).openid == CLAIMS.openid
    with issuer_over_http(port=port):
        keys.fetch()
        assert keys._failures == 0
        assert verifier.verify(token).openid == CLAIMS.openid


# ---- many at once -------------------------------------------------------------------------------


def _unknown(issuer: Issuer, number: int) -> str:
    """A token under a kid that is nobody's, cheaply: what comes before the signature check is all that is looked at."""
    header, payload, signature = issuer.token().split(".")
    members = parse_json_object(base64url_decode(header)) | {"kid": f"{number:043d}"}
    return ".".join((base64url_encode(canonical_json(members)), payload, signature))


@pytest.mark.parametrize("state", ["well", "down"])
def test_a_thousand_random_kids_from_fifty_threads_cost_no_more_than_the_budget(issuer: Issuer, state: str) -> None:
    verifier = _verifier(issuer)
    good = issuer.token()
    verifier.verify(good)
    if state == "down":
        issuer.answer = MISBEHAVIOUR["500"]
    tokens = [_unknown(issuer, number) for number in range(1_000)]
    outcomes: Counter[str] = Counter()
    waits: list[float] = []

    def check(token: str) -> None:
        outcomes[_outcome(lambda: verifier.verify(token))] += 1
        began = time.monotonic()
        assert _outcome(lambda: verifier.verify(good)) == "ok"
        waits.append(time.monotonic() - began)

    before = issuer.fetches
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(check, tokens))
    assert sum(outcomes.values()) == 1_000
    assert set(outcomes) <= {"invalid", "keys_unavailable"}
    # One for the kids; when that failed, the thread tries again after 1, 2 and 5 s by itself.
    assert issuer.fetches - before <= (1 if state == "well" else 3)
    assert outcomes["keys_unavailable"] >= 900


def test_a_known_key_waits_for_nobody_while_a_fetch_hangs(issuer: Issuer) -> None:
    verifier = _verifier(issuer)
    good = issuer.token()
    verifier.verify(good)
    issuer.answer = MISBEHAVIOUR["silence"]
    waiting = threading.Thread(target=lambda: _outcome(lambda: verifier.verify(_unknown(issuer, 1))))
    waiting.start()
    time.sleep(0.1)
    began = time.monotonic()
    for _ in range(100):
        verifier.verify(issuer.token())
    is_hanging = waiting.is_alive()
    waiting.join()
    assert is_hanging or time.monotonic() - began > TIMEOUT_S


def test_in_asyncio_a_thousand_wait_for_one_fetch_without_a_thread_each(issuer: Issuer) -> None:
    verifier = _verifier(issuer, timeout_s=10)  # the issuer has a thread of this very process
    tokens = [issuer.token() for _ in range(20)] * 50

    async def everybody() -> int:
        before = threading.active_count()
        await asyncio.gather(*(verifier.verify_async(token) for token in tokens))
        return threading.active_count() - before

    assert asyncio.run(everybody()) <= 5  # of the issuer, and ours
    # Who looked a moment before the keys came may ask a moment after.
    assert issuer.fetches <= 2


# ---- fork ---------------------------------------------------------------------------------------


def test_a_fork_during_a_name_lookup_does_not_cut_the_child_off(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup knows no timeout, so it has a thread of its own; the child has no such thread."""
    looking, release = threading.Event(), threading.Event()
    getaddrinfo = socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        if not release.is_set():
            looking.set()
            release.wait(10)
        return getaddrinfo(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    verifier = _verifier(issuer)
    waiting = threading.Thread(target=lambda: _outcome(lambda: verifier.verify(issuer.token())))
    waiting.start()
    looking.wait(10)
    token = issuer.token()

    def in_the_child() -> str:
        release.set()
        return _outcome_of(verifier, token)

    assert in_child(in_the_child) == "ok"
    release.set()
    waiting.join()


def test_the_children_of_a_fork_verify_with_the_keys_at_hand_and_fetch_their_own_afterwards(issuer: Issuer) -> None:
    verifier = _verifier(issuer)
    verifier.verify(issuer.token())
    under_next = issuer.token(ring=NEXT)
    token = issuer.token()
    for _ in range(3):
        assert in_child(partial(_outcome_of, verifier, token)) == "ok"
    issuer.ring = NEXT
    assert in_child(partial(_outcome_of, verifier, under_next)) == "ok"


def test_a_fork_while_an_answer_is_read_leaves_no_child_hanging(issuer: Issuer) -> None:
    """A thread of the parent is in the middle of a read, and holds what closing the connection would wait for."""
    reading = threading.Event()

    def stalls(handler: BaseHTTPRequestHandler) -> None:
        _raw(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 50)
        handler.wfile.flush()
        reading.set()
        time.sleep(TIMEOUT_S)

    issuer.answer = stalls
    verifier = _verifier(issuer)
    waiting = threading.Thread(target=_outcome_of, args=(verifier, issuer.token()))
    waiting.start()
    reading.wait(10)
    time.sleep(0.1)
    issuer.answer = None
    assert in_child(partial(_outcome_of, verifier, issuer.token())) == "ok"
    waiting.join()


def test_a_fork_in_the_middle_of_everything_leaves_no_child_hanging(issuer: Issuer) -> None:
    verifier = _verifier(issuer, cool_down_s=0.01)
    verifier.verify(issuer.token())
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            _outcome(lambda: verifier.verify(_unknown(issuer, next(_NUMBERS))))
            _outcome(lambda: verifier.verify(issuer.token()))

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            assert in_child(partial(_outcome_of, verifier, issuer.token())) == "ok"
            found = in_child(partial(_outcome_of, verifier, _unknown(issuer, number)))
            assert found in ("invalid", "keys_unavailable")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
