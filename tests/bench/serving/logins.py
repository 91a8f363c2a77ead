"""`POST /login`, by clients of our own.

wrk mixes the latency of refusals into that of logins, and a client that it plays does not wait after a refusal.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Final, Self

from tests.bench.serving.contenders import Server, WeChat
from tests.bench.serving.load import Run, amiss, content_length, status_of
from tests.bench.serving.machine import cpu_of

WARM_S: Final = 0.3
_FIRST_WITHIN_S: Final = 2.0  # each client's first answer: until then threads and connections to WeChat come to be
_FASTEST_PER_S: Final = 4_000  # nobody is; so many codes are made ready
_END_WITHIN_S: Final = 10.0
_EACH_TOKEN: Final = 97  # of so many one is looked at
_LOOKED_AT: Final = 5


class Crowd:
    """Clients that log in without a pause, each with one login after the other, within the block."""

    def __init__(self, server: Server, wechat: WeChat, clients: int, *, seconds: float) -> None:
        self.server = server
        self.errors: Counter[str] = Counter()
        self.codes = wechat.codes(int(_FASTEST_PER_S * (_FIRST_WITHIN_S + WARM_S + seconds)))
        self.done: list[tuple[float, float]] = []  # when it ended and how long it took, in seconds
        self.refused: list[float] = []  # when
        self.tokens: list[str] = []
        self.answered = 0  # clients, once at least
        self.is_over = False
        self._wechat = wechat
        self._clients = clients
        self._connected = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._exchanges_before = self._wechat.exchanges()
        self._thread.start()
        self._connected.wait(_END_WITHIN_S)
        give_up_at = time.monotonic() + _FIRST_WITHIN_S
        while self.answered < self._clients and time.monotonic() < give_up_at:
            time.sleep(0.02)
        time.sleep(WARM_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.is_over = True
        self._thread.join(2 * _END_WITHIN_S)
        asked = self._wechat.exchanges() - self._exchanges_before
        if asked != len(self.done):
            self.errors[f"WeChat was asked {asked} times for {len(self.done)} logins"] += 1
        for token in self.tokens[:: max(1, len(self.tokens) // _LOOKED_AT)][:_LOOKED_AT]:
            wrong = amiss(self.server, token, is_login=True)[1]
            if wrong is not None:
                self.errors[f"the token of a login: {wrong}"] += 1

    def said(self) -> tuple[str, ...]:
        """The errors."""
        return tuple(f"{name} × {count}" for name, count in self.errors.items())

    def take(self, latency_s: float, answer: bytes) -> None:
        """The body of an answer with status 200."""
        try:
            token = json.loads(answer)["token"]
        except (ValueError, KeyError, TypeError):
            self.errors["no token in an answer"] += 1
            return
        if len(self.done) % _EACH_TOKEN == 0:
            self.tokens.append(token)
        self.done.append((time.perf_counter(), latency_s))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        made = [
            loop.create_connection(lambda: _Client(self, loop), "127.0.0.1", self.server.port)
            for _ in range(self._clients)
        ]
        clients = []
        for connected in await asyncio.gather(*made, return_exceptions=True):
            if isinstance(connected, BaseException):
                self.errors[f"no connection: {type(connected).__name__}"] += 1
            else:
                clients.append(connected[1])
        self._connected.set()
        while not self.is_over:
            await asyncio.sleep(0.02)
        give_up_at = time.monotonic() + _END_WITHIN_S
        while any(client.is_waiting for client in clients) and time.monotonic() < give_up_at:
            await asyncio.sleep(0.02)
        for client in clients:
            if client.is_waiting:
                self.errors[f"no answer within {_END_WITHIN_S:.0f} s"] += 1
            client.leave()


class _Client(asyncio.Protocol):
    def __init__(self, crowd: Crowd, loop: asyncio.AbstractEventLoop) -> None:
        self._crowd = crowd
        self._loop = loop
        self._code = ""
        self._received = b""
        self._asked_at = 0.0
        self._is_leaving = False
        self._was_answered = False
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._log_in()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, gap, body = self._received.partition(b"\r\n\r\n")
        if not gap:
            return
        try:
            if len(body) < content_length(head):
                return
            status = status_of(head)
        except ValueError:
            self._crowd.errors["not HTTP"] += 1
            self._transport.abort()
            return
        self._received = b""
        self.is_waiting = False
        if not self._was_answered:
            self._was_answered = True
            self._crowd.answered += 1
        if status == 200:
            self._crowd.take(time.perf_counter() - self._asked_at, body)
            self._log_in()
        elif status == 503 and b'"overloaded"' in body:
            # Beyond its places the service says so at once: no error, and no login. WeChat has not seen the code.
            self._crowd.refused.append(time.perf_counter())
            self._loop.call_later(_retry_after_s(head) * random.uniform(1, 1.5), self._ask)
        else:
            self._crowd.errors[f"login answered {status} {_code_of(body)}".rstrip()] += 1
            self._log_in()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_leaving:
            self._crowd.errors["a connection was lost"] += 1
            self.is_waiting = False

    def leave(self) -> None:
        self._is_leaving = True
        self._transport.close()

    def _log_in(self) -> None:
        if not self._crowd.codes:
            self._crowd.errors["there were too few codes"] += 1
            return
        self._code = "" if self._crowd.is_over else self._crowd.codes.popleft()
        self._ask()

    def _ask(self) -> None:
        if self._crowd.is_over or self._transport.is_closing():
            return
        body = f'{{"code":"{self._code}"}}'
        self._asked_at = time.perf_counter()
        self.is_waiting = True
        self._transport.write(
            (
                f"POST /login HTTP/1.1\r\nHost: 127.0.0.1:{self._crowd.server.port}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            ).encode("ascii")
        )


def _retry_after_s(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"retry-after":
            return int(value)
    return 1


def _code_of(body: bytes) -> str:
    """Of a problem of ours; empty for whatever else it is."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def _share(start: float, end: float, began: float, ended: float) -> float:
    """How much of a login was between these two times."""
    return max(0.0, min(end, ended) - max(start, began)) / (end - start)


def log_in(server: Server, wechat: WeChat, clients: int, *, seconds: float) -> Run:
    with Crowd(server, wechat, clients, seconds=seconds) as crowd:
        client_before = time.process_time()
        began = time.perf_counter()
        with cpu_of(server.pids) as took, cpu_of([wechat.process.pid]) as at_wechat:
            time.sleep(seconds)
        ended = time.perf_counter()
        client_s = time.process_time() - client_before + at_wechat.cpu_s
    latencies = sorted(latency for at, latency in crowd.done if began <= at <= ended)
    refused = sum(began <= at <= ended for at in crowd.refused)
    if len(latencies) < 2:
        return Run(0, 0, 0, None, 0, errors=("hardly a login came to its end", *crowd.said()))
    return Run(
        # Shares of those that begin before or end after it, too: who waits 100 ms each ends nine or ten in a second.
        per_s=sum(_share(at - latency, at, began, ended) for at, latency in crowd.done) / (ended - began),
        p50_ms=statistics.median(latencies) * 1000,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000,
        cpu_us=took.each_us(len(latencies)),
        client_share=client_s / (ended - began),
        refused_per_s=refused / (ended - began),
        errors=crowd.said(),
    )
