"""Real database servers: those on their standard ports, or at the addresses that the environment names."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool


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
        complaint = f"{server.name.upper()} IS MISSING: the side store was not tested on it (see {server.variable})"
        if os.environ.get("CI"):
            pytest.fail(complaint)
        pytest.skip(complaint)
    url = server.url.set(drivername=server.url.get_backend_name(), database=name, query={})
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            force = " WITH (FORCE)" if server is POSTGRESQL else ""
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
