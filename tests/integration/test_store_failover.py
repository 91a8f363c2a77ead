"""Redis on several servers of which one dies: what can go on goes on, and all of it comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import pytest
import redis

from authsvc.errors import StoreUnavailable
from authsvc.store import Store, open_store, prepare_store
from tests.support.redis_fleet import Fleet, redis_cluster, redis_with_sentinel
from tests.support.servers import until
from tests.support.users import NOW, login, user_id

SOON_S: Final = 30
# 3 s for an answer and 2 s for a connection, twice in a cluster, which is asked again where the slots are.
CEILING_S: Final = 3 * 2 * (3 + 2) + 2
USERS: Final = 30


@pytest.fixture
def cluster() -> Iterator[Fleet]:
    with redis_cluster() as it:
        yield it


@pytest.fixture
def sentinel() -> Iterator[Fleet]:
    with redis_with_sentinel() as it:
        yield it


def opened(fleet: Fleet) -> closing[Store]:
    prepare_store(fleet.url)
    return closing(open_store(fleet.url))


def put(store: Store, n: int, sid: str) -> bool:
    began_at_s = time.monotonic()
    try:
        store.put_login(login(sid, openid=f"oUser{n}", at=NOW + len(sid)), unionid=None)
    except StoreUnavailable:
        assert time.monotonic() - began_at_s < CEILING_S
        return False
    return True


def kept(store: Store, n: int) -> list[str]:
    return [row.sid for row in store.logins(user_id(openid=f"oUser{n}"), now=NOW)]


def test_a_node_of_a_cluster_that_dies_takes_its_own_users_alone_and_gives_them_back(cluster: Fleet) -> None:
    with opened(cluster) as store:
        assert all(put(store, n, "before") for n in range(USERS))
        for server in cluster.servers:
            with redis.Redis(port=server.port) as node:
                node.config_set("cluster-require-full-coverage", "no")
        with cluster.servers[0].dead():
            went_on = {n for n in range(USERS) if put(store, n, "meanwhile")}
            assert 0 < len(went_on) < USERS
        until(
            lambda: all(put(store, n, f"after-{time.monotonic_ns()}") for n in range(USERS)),
            within_s=SOON_S,
            what="all",
        )
        for n in range(USERS):
            assert "before" in kept(store, n) or len(kept(store, n)) == 3
            assert ("meanwhile" in kept(store, n)) <= (n in went_on)


def test_when_sentinels_make_another_server_the_primary_logins_go_on_there(sentinel: Fleet) -> None:
    primary = sentinel.servers[0]
    with opened(sentinel) as store:
        assert all(put(store, n, "before") for n in range(USERS))
        with redis.Redis(port=primary.port) as client:
            assert client.wait(1, SOON_S * 1000) == 1, "the replica has it"
        primary.kill()
        assert put(store, 0, "meanwhile") is False
        until(
            lambda: put(store, 0, f"after-{time.monotonic_ns()}"), within_s=SOON_S, what="another primary takes logins"
        )
        assert all(kept(store, n) == ["before"] for n in range(1, USERS))
        assert all(put(store, n, "and-on") for n in range(1, USERS))
