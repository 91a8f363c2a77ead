"""Redis on several servers, which a test starts: a Cluster of three, and a primary with a replica and a Sentinel."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import redis

from tests.support.servers import OwnServer, RedisServer, own_server, until

_SOON_S: Final = 30
_SERVICE: Final = "main"


class _ClusterNode(RedisServer):
    name = "Redis Cluster"

    @property
    def arguments(self) -> list[str]:
        # The port for one another is 10,000 above: below those that the kernel gives to clients, too.
        return [*super().arguments, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]


class _Sentinel(RedisServer):
    name = "Redis Sentinel"

    @property
    def arguments(self) -> list[str]:
        return ["sentinel.conf", "--sentinel", "--bind", "127.0.0.1", "--port", str(self.port)]

    def prepare(self) -> None:
        (self.folder / "sentinel.conf").touch()  # it keeps there what it knows


@dataclass
class Fleet:
    url: str
    servers: list[OwnServer]


@contextlib.contextmanager
def redis_cluster() -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(own_server(_ClusterNode)) for _ in range(3)]
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        made = subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"],
            capture_output=True,
            text=True,
            timeout=_SOON_S,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        for server in servers:
            until(
                lambda server=server: _says(server, "cluster", "cluster_state") == "ok",  # type: ignore[misc]
                within_s=_SOON_S,
                what="every node knows that the cluster is whole",
            )
        yield Fleet(f"redis+cluster://{','.join(addresses)}", servers)


@contextlib.contextmanager
def redis_with_sentinel() -> Iterator[Fleet]:
    """The primary first, then its replica, then the Sentinel, which makes a replica the primary after a second."""
    with contextlib.ExitStack() as stack:
        primary, replica = (stack.enter_context(own_server(RedisServer)) for _ in range(2))
        sentinel = stack.enter_context(own_server(_Sentinel))
        with _client(replica) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        until(
            lambda: _says(replica, "replication", "master_link_status") == "up",
            within_s=_SOON_S,
            what="the replica has what the primary has",
        )
        with _client(sentinel) as client:
            client.execute_command("SENTINEL", "MONITOR", _SERVICE, "127.0.0.1", primary.port, 1)
            for name, value in (("down-after-milliseconds", 1_000), ("failover-timeout", 3_000)):
                client.execute_command("SENTINEL", "SET", _SERVICE, name, value)
        until(lambda: _knows_replica(sentinel), within_s=_SOON_S, what="the Sentinel knows the replica")
        yield Fleet(f"redis+sentinel://127.0.0.1:{sentinel.port}/{_SERVICE}/0", [primary, replica, sentinel])


@contextlib.contextmanager
def _client(server: OwnServer) -> Iterator[Any]:
    client = redis.Redis(port=server.port)
    try:
        yield client
    finally:
        client.close()


def _says(server: OwnServer, section: str, name: str) -> object:
    with _client(server) as client:
        if section == "cluster":
            return client.cluster("INFO")[name]
        return client.info(section).get(name)


def _knows_replica(server: OwnServer) -> bool:
    with _client(server) as client:
        return bool(client.sentinel_slaves(_SERVICE))
