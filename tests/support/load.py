"""Clients that ask a service all the time, and write down what went wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

_PAUSE_S: Final = 0.002
_ANSWER_WITHIN_S: Final = 20


@dataclass
class Load:
    url: str
    done: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def keep_asking(self) -> None:
        """Of one connection as many times as the service lets it."""
        connection: http.client.HTTPConnection | None = None
        while not self.is_over.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(*self.address, timeout=_ANSWER_WITHIN_S)
                    connection.connect()
            except ConnectionRefusedError:
                self._refused()
                connection = None
                continue
            try:
                connection.request("GET", "/checklogin?token=none")
                reply = connection.getresponse()
                reply.read()
                self._note("kept", reply.status)
                closes = reply.will_close
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"kept: {type(error).__name__}")
                closes = True
            if closes:
                connection.close()
                connection = None
            time.sleep(_PAUSE_S)

    def ask_anew(self) -> None:
        """Each time on a connection of its own."""
        while not self.is_over.is_set():
            self._ask("new", b"GET /checklogin?token=none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            time.sleep(_PAUSE_S)

    def log_in(self, mint: Callable[[], str]) -> None:
        while not self.is_over.is_set():
            body = json.dumps({"code": mint()}).encode()
            head = (
                f"POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            )
            self._ask("login", head.encode() + b"Connection: close\r\n\r\n" + body)

    def _ask(self, what: str, request: bytes) -> None:
        try:
            connection = socket.create_connection(self.address, timeout=_ANSWER_WITHIN_S)
        except ConnectionRefusedError:
            self._refused()
            return
        with connection:
            try:
                connection.sendall(request)
                answer = b""
                while piece := connection.recv(65_536):
                    answer += piece
            except OSError as error:
                self.failed.append(f"{what}: {type(error).__name__}")
            else:
                self._note(what, int(answer[9:12] or b"0"))

    def _note(self, what: str, status: int) -> None:
        if status == 200:
            self.done[what] += 1
        else:
            self.failed.append(f"{what}: status {status}")

    def _refused(self) -> None:
        self.done["refused"] += 1
        time.sleep(0.05)


@contextlib.contextmanager
def load(url: str, *, mint: Callable[[], str]) -> Iterator[Load]:
    """Four clients that keep their connections, four that do not, and two that log in; until the end of the block."""
    it = Load(url)
    work = [it.keep_asking] * 4 + [it.ask_anew] * 4 + [lambda: it.log_in(mint)] * 2
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    try:
        yield it
    finally:
        it.is_over.set()
        for thread in threads:
            thread.join()
