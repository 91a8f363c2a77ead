"""A database server that dies or hangs under the load of logins, and comes back: the service says so, and goes on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from authsvc.sandbox.server import SandboxServer
from tests.support.servers import (
    Clients,
    OwnServer,
    PostgresqlServer,
    RedisServer,
    Tried,
    marked_wechat,
    own_server,
    until,
    without_their_key,
)
from tests.support.service import Service, service

SERVERS: Final[tuple[type[OwnServer], ...]] = (PostgresqlServer, RedisServer)

# A login waits 3 s at most for an answer of the store, and 2 s for a new connection; for a free one it need not wait,
# as there are fewer clients than connections.
CEILING_S: Final = 3 * (3 + 2) + 2
GONE_FOR_S: Final = 2.0
WELL_FOR_S: Final = 1.0


@pytest.fixture(params=SERVERS, ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest) -> Iterator[OwnServer]:
    with own_server(request.param) as it:
        yield it


@pytest.fixture
def wechat() -> Iterator[SandboxServer]:
    with marked_wechat() as it:
        yield it


@pytest.fixture
def it(tmp_path: Path, wechat: SandboxServer, server: OwnServer) -> Iterator[Service]:
    with service(tmp_path, wechat_url=wechat.url, STORE=server.url, WORKERS="2") as running:
        yield running


class Watch:
    """A thread that asks one thing all the time, and fails with the first answer that is not as it should be."""

    def __init__(self, url: str, is_right: Callable[[dict[str, Any]], bool]) -> None:
        self._url = url
        self._is_right = is_right
        self._enough = threading.Event()
        self.answers = 0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(self._watch)
            try:
                yield
            finally:
                self._enough.set()
            watching.result()

    def _watch(self) -> None:
        with requests.Session() as session:
            while not self._enough.wait(0.02):
                reply = session.get(self._url, timeout=CEILING_S)
                assert (reply.status_code, self._is_right(reply.json())) == (200, True), reply.text
                self.answers += 1


def _is_answered(one: Tried) -> bool:
    return one.status is not None


def _is_in(one: Tried) -> bool:
    return one.status == 200


def _was_told(one: Tried) -> bool:
    told = (one.status, one.said, one.content_type) == (503, "store_unavailable", "application/problem+json")
    return told and one.retry_after is not None and int(one.retry_after) > 0


def _until_each(clients: Clients, has: Callable[[Tried], bool], *, since_s: float, what: str) -> None:
    """Until each client has had this with a login that began since then."""

    def all_have() -> bool:
        return all(any(has(one) and one.began_at_s >= since_s for one in tried) for tried in clients.by_thread)

    until(all_have, within_s=CEILING_S, what=what)


def _check_outage(outage: AbstractContextManager[None], it: Service, wechat: SandboxServer) -> None:
    token = it.token("logged-in-before")
    checklogin = Watch(f"{it.url}/checklogin?token={token}", lambda said: said.get("is_login") is True)
    readyz = Watch(f"{it.url}/readyz", lambda said: said.get("status") == "ready")
    clients = Clients(it.url, wechat, name="user", threads=6, pause_s=0.02, timeout_s=CEILING_S)
    with checklogin.kept(), readyz.kept(), clients.at_work():
        _until_each(clients, _is_in, since_s=0, what="logins work")
        begins_at_s = time.monotonic()
        with outage:
            gone_at_s, answers_before = time.monotonic(), checklogin.answers
            _until_each(clients, _is_answered, since_s=gone_at_s, what="logins are answered while the database is gone")
            said = requests.get(f"{it.url}/readyz", timeout=CEILING_S).json()
            assert said.get("store") == "unavailable", said
            time.sleep(max(0.0, gone_at_s + GONE_FOR_S - time.monotonic()))
            ends_at_s, answers_then = time.monotonic(), checklogin.answers
        back_at_s = time.monotonic()
        _until_each(clients, _is_in, since_s=back_at_s, what="logins work again")
        well_at_s = time.monotonic()
        time.sleep(WELL_FOR_S)
    assert answers_then > answers_before, "checklogin answers while the database is gone"
    tried = clients.tried
    assert [one for one in tried if not (_is_in(one) or _was_told(one))] == []
    assert max(one.took_s for one in tried) < CEILING_S
    while_gone = [one for one in tried if gone_at_s <= one.began_at_s and one.ended_at_s <= ends_at_s]
    assert [one for one in while_gone if not _was_told(one)] == []
    while_there = [one for one in tried if one.ended_at_s < begins_at_s or one.began_at_s > well_at_s]
    assert [one for one in while_there if not _is_in(one)] == []
    assert without_their_key(it, wechat, clients.answered) == []
    assert "Traceback" not in it.output()


def test_while_the_database_is_dead_logins_are_told_so_in_time_and_nothing_else_is_lost(
    server: OwnServer, it: Service, wechat: SandboxServer
) -> None:
    _check_outage(server.dead(), it, wechat)


def test_while_the_database_hangs_logins_are_told_so_in_time_and_nothing_else_is_lost(
    server: OwnServer, it: Service, wechat: SandboxServer
) -> None:
    _check_outage(server.hanging(), it, wechat)
