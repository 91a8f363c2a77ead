"""The side stores that the contract is tried on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from authsvc.store.memory import MemoryStore
from authsvc.store.open import open_store, prepare_store
from authsvc.store.protocol import Store
from authsvc.store.schema import METADATA
from authsvc.store.server import server_engine
from tests.support.databases import MARIADB, POSTGRESQL, REDIS, database, redis_place
from tests.support.redis_fleet import redis_cluster

PURGED = ["memory", "sqlite", "postgresql", "mariadb"]  # the others end rows by their own clock


@pytest.fixture(params=[*PURGED, "redis", "redis_cluster"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with closing(_named(request)) as it:
        yield it


@pytest.fixture(params=PURGED)
def purging_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with closing(_named(request)) as it:
        yield it


def _named(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(f"{request.param}_store")
    return store


@pytest.fixture
def memory_store() -> Store:
    return MemoryStore()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Store:
    return _prepared(f"sqlite:///{tmp_path}/store.db")


@pytest.fixture
def postgresql_store(postgresql: str) -> Store:
    return _emptied(postgresql)


@pytest.fixture
def mariadb_store(mariadb: str) -> Store:
    return _emptied(mariadb)


@pytest.fixture
def redis_store() -> Iterator[Store]:
    with redis_place(REDIS) as url:
        yield _prepared(url)


@pytest.fixture
def redis_cluster_store(cluster: str) -> Iterator[Store]:
    with redis_place(cluster) as url:
        yield _prepared(url)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    with redis_cluster() as fleet:
        yield fleet.url


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    with database(POSTGRESQL) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb() -> Iterator[str]:
    with database(MARIADB) as url:
        yield url


def _prepared(url: str) -> Store:
    prepare_store(url)
    return open_store(url)


def _emptied(url: str) -> Store:
    """Emptied and not made anew: a database takes half a second."""
    store = _prepared(url)
    engine = server_engine(make_url(url))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Lines of the audit log withstand whoever is not an administrator.
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for table in METADATA.sorted_tables:
            connection.exec_driver_sql(f"TRUNCATE TABLE {table.name}")
    engine.dispose()
    return store
