"""A client for the Redis at an address. No wait for it is without an end."""

from __future__ import annotations

from typing import Any, Final

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from authsvc.store.redisurl import RedisAddress

# A login has WECHAT_TIMEOUT behind it already: who waits for the store is told soon.
_CONNECT_S: Final = 2
_ANSWER_S: Final = 3


def redis_client(address: RedisAddress) -> Any:
    """A client that has not connected yet, but for that of a Cluster, which asks for its nodes.

    Raises: RedisError, OSError.
    """
    usual: dict[str, Any] = {
        "socket_connect_timeout": _CONNECT_S,
        "socket_timeout": _ANSWER_S,
        "username": address.username,
        "password": address.password,
        # With RESP3 the library would no longer look whether a kept connection is still one before it uses it.
        "protocol": 2,
    }
    tls: dict[str, Any] = {"ssl": True} if address.tls else {}
    tls |= {name: value for name, value in address.options.items() if name.startswith("ssl_")}
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]  # type: ignore[no-untyped-call]
        # Once more after it has looked where the slots are now.
        return RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 1), **usual, **tls)
    usual |= {"retry": Retry(NoBackoff(), 0), "db": address.database}
    if address.kind is None:
        ((host, port),) = address.hosts
        return Redis(host=host, port=port, **usual, **tls)
    of_sentinels = {
        "socket_connect_timeout": _CONNECT_S,
        "socket_timeout": _CONNECT_S,
        "retry": Retry(NoBackoff(), 0),
        "username": address.options.get("sentinel_username"),
        "password": address.options.get("sentinel_password"),
    }
    sentinel: Any = Sentinel(list(address.hosts), sentinel_kwargs=of_sentinels | tls)  # type: ignore[no-untyped-call]
    return sentinel.master_for(address.service, **usual, **tls)
