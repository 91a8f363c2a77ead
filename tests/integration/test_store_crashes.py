"""SIGKILL of the whole service in the midst of logins: what was answered is kept, and nothing lies there in clear.

`make test` takes a few moments for it, `make soak` fifty.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql

from authsvc.sandbox.server import SandboxServer
from tests.support.databases import POSTGRESQL, database
from tests.support.servers import (
    KEY_MARKER,
    Clients,
    OwnServer,
    PostgresqlServer,
    RedisServer,
    Tried,
    kill_at_once,
    marked_wechat,
    own_server,
    until,
    without_their_key,
)
from tests.support.service import APPID, Service, service

# Seconds from the first token of a stream to the kill.
MOMENTS: Final = (0.05, 0.6, 0.3)
FEW_MOMENTS: Final = (0.1, 0.5)
MANY_MOMENTS: Final = tuple(0.8 * number / 50 for number in range(50))

_KEY_TEXT: Final = base64.b64encode(KEY_MARKER)
SPELLINGS: Final = {
    "raw": KEY_MARKER,
    "base64": _KEY_TEXT,
    "hex": KEY_MARKER.hex().encode(),
    "hex of base64": _KEY_TEXT.hex().encode(),
    "base64 of base64": base64.b64encode(_KEY_TEXT),
}


@pytest.fixture
def wechat() -> Iterator[SandboxServer]:
    with marked_wechat() as it:
        yield it


# ---- side stores --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    url: str
    contents: Callable[[], dict[str, bytes]]  # by name: all that it holds, beside the files in the service's folder
    names: frozenset[str]  # of what has to be among it all
    server: OwnServer | None = None  # that is killed along with the service


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _tables(url: str) -> dict[str, bytes]:
    """Every row of every table, as COPY writes it: with bytes in hex."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        names = [str(row[0]) for row in cursor.fetchall()]
        found = {}
        for name in names:
            with cursor.copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(name))) as rows:
                found[f"table {name}"] = b"".join(bytes(block) for block in rows)
    return found


@contextlib.contextmanager
def _sqlite() -> Iterator[Backend]:
    yield Backend("sqlite:///authsvc.db", dict, frozenset({"authsvc.db", "authsvc.db-wal", "authsvc.db-shm"}))


@contextlib.contextmanager
def _postgresql() -> Iterator[Backend]:
    with database(POSTGRESQL) as url:
        yield Backend(url, lambda: _tables(url), frozenset({"table users", "table logins"}))


@contextlib.contextmanager
def _killed_along(kind: type[OwnServer]) -> Iterator[Backend]:
    with own_server(kind) as server:
        yield Backend(server.url, lambda: _files(server.folder), frozenset(), server)


BACKENDS: Final[dict[str, Callable[[], AbstractContextManager[Backend]]]] = {
    "SQLite": _sqlite,
    "PostgreSQL": _postgresql,
    "PostgreSQL, killed along": partial(_killed_along, PostgresqlServer),
    "Redis, killed along": partial(_killed_along, RedisServer),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with BACKENDS[request.param]() as it:
        yield it


# ---- what has to hold ---------------------------------------------------------------------------


def _killed_in_the_midst(
    it: Service, wechat: SandboxServer, backend: Backend, *, name: str, after_s: float
) -> list[Tried]:
    """Those that had their token when the service, and what is to be killed with it, died."""
    clients = Clients(it.url, wechat, name=name, threads=8, pause_s=0, timeout_s=30)
    with clients.at_work():
        until(lambda: bool(clients.answered), within_s=30, what="a login is answered")
        time.sleep(after_s)
        server = backend.server
        killed_at_s = kill_at_once(it.process, *([] if server is None else [server.process]))
    tried = clients.tried
    assert {one.status for one in tried} == {200, None}, "each login is answered with a token, or not at all"
    under_way = [one for one in tried if one.status is None and one.began_at_s < killed_at_s]
    assert under_way, "the kill came between two logins"
    return clients.answered


def _check_nothing_in_clear(found: Mapping[str, bytes], wechat: SandboxServer, answered: Sequence[Tried]) -> None:
    openids = [wechat.model.openid(APPID, one.user) for one in answered]
    held = any(openid.encode() in text for text in found.values() for openid in openids)
    assert held, "what is looked through does hold the logins"
    (session_key,) = wechat.model.session_keys(APPID, openids[-1])
    assert session_key.startswith(_KEY_TEXT.decode()), "every key begins with what is looked for"
    in_clear = [(name, how) for name, text in found.items() for how, start in SPELLINGS.items() if start in text]
    assert in_clear == []


def _check_outlives(moments: Sequence[float], backend: Backend, wechat: SandboxServer, folder: Path) -> None:
    """The same folder again and again, so that what one kill leaves is what the next one meets."""
    answered: list[Tried] = []
    for number, after_s in enumerate(moments):
        with service(folder, wechat_url=wechat.url, STORE=backend.url, WORKERS="2") as it:
            answered += _killed_in_the_midst(it, wechat, backend, name=f"kill-{number}", after_s=after_s)
        found = {**_files(folder), **backend.contents()}
        assert found.keys() >= backend.names
        _check_nothing_in_clear(found, wechat, answered)
        if backend.server is not None:
            backend.server.start()
    with service(folder, wechat_url=wechat.url, STORE=backend.url, WORKERS="2") as it:
        assert without_their_key(it, wechat, answered) == []
        assert it.check(it.token("afterwards"))["is_login"] is True


def test_what_was_answered_before_a_kill_is_kept_and_no_session_key_lies_in_clear(
    backend: Backend, wechat: SandboxServer, tmp_path: Path
) -> None:
    _check_outlives(FEW_MOMENTS if backend.server else MOMENTS, backend, wechat, tmp_path)


@pytest.mark.soak
def test_what_was_answered_before_any_kill_is_kept_and_no_session_key_lies_in_clear(
    backend: Backend, wechat: SandboxServer, tmp_path: Path
) -> None:
    _check_outlives(MANY_MOMENTS, backend, wechat, tmp_path)
