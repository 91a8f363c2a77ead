"""Real database servers: those on their standard ports, or at the addresses that the environment names."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import pytest
from redis.exceptions import RedisError
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from authsvc.store.redisclient import redis_client
from authsvc.store.redisurl import redis_address


@dataclass(frozen=True)
class Server:
    name: str
    variable: str
    usual: str

    @property
    def url(self) -> URL:
        """Of a database that is there, for making others."""
        return make_url(os.environ.get(self.variable, self.usual))


POSTGRESQL = Server(
    "PostgreSQL", "AUTHSVC_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres?connect_timeout=5"
)
MARIADB = Server("MariaDB", "AUTHSVC_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/test?connect_timeout=5")
SERVERS = (POSTGRESQL, MARIADB)
REDIS = os.environ.get("AUTHSVC_TEST_REDIS", "redis://127.0.0.1:6379/0")


def _missing(name: str, variable: str) -> NoReturn:
    complaint = f"{name.upper()} IS MISSING: the side store was not tested on it (see {variable})"
    if os.environ.get("CI"):
        pytest.fail(complaint)
    pytest.skip(complaint)


@contextlib.contextmanager
def redis_place(url: str) -> Iterator[str]:
    """The URL of a place of its own in a Redis: a prefix that no other test has."""
    address = redis_address(url)
    prefix = f"authsvc-test-{secrets.token_hex(6)}:"
    try:
        client = redis_client(address)
        client.ping()
    except (RedisError, OSError):
        _missing("Redis", "AUTHSVC_TEST_REDIS")
    try:
        yield f"{url}?prefix={prefix}"
    finally:
        for key in list(client.scan_iter(match=f"{prefix}*", count=10_000)):
            client.delete(key)
        client.close()


@contextlib.contextmanager
def database(server: Server) -> Iterator[str]:
    """The URL of an empty database of its own, for as long as it is wanted. Without the server the test is skipped
    aloud, and with CI=true it fails."""
    name = f"authsvc_test_{secrets.token_hex(6)}"
    engine = create_engine(server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    except OperationalError:
        _missing(server.name, server.variable)
    url = server.url.set(drivername=server.url.get_backend_name(), database=name, query={})
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            force = " WITH (FORCE)" if server is POSTGRESQL else ""
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
