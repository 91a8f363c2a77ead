"""The side store on a database server: PostgreSQL, MySQL, MariaDB. No wait for it is without an end."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine

from authsvc.errors import SettingsError

# A login has WECHAT_TIMEOUT behind it already: who waits for the store is told soon.
_CONNECT_S: Final = 2
_ANSWER_S: Final = 3
_PATIENT_S: Final = 30
_POOL_WAIT_S: Final = 3.0

# For each worker process. A put takes a millisecond or two, so that a few serve all threads.
_CONNECTIONS: Final = 8

_DRIVERS: Final = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}


# Of MySQL's driver, which takes an unknown one for a fault of the program.
_MYSQL_OPTIONS: Final = ("ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_cert", "ssl_verify_identity")
# That are set here.
_OURS: Final = ("connect_timeout", "tcp_user_timeout", "options", "client_encoding")


def check_options(url: URL) -> None:
    """Raises: SettingsError for options in the URL that the driver does not take, or that are not the operator's."""
    given = set(url.query)
    bad = given & set(_OURS) if url.get_backend_name() == "postgresql" else given - set(_MYSQL_OPTIONS)
    if bad:
        raise SettingsError([f"AUTHSVC_STORE: the option {', '.join(sorted(bad))} cannot be set in the URL"])


def is_server(url: URL) -> bool:
    """Whether it names an engine that is spoken to here, by any of the names that SQLAlchemy has for it."""
    backend, _, driver = url.drivername.partition("+")
    return backend in _DRIVERS and driver in ("", _DRIVERS[backend])


def server_engine(url: URL, *, patient: bool = False) -> Engine:
    """An engine for SqlStore. `patient`: for changes of the schema, which wait for one another.

    Raises: SettingsError if the driver is not installed.
    """
    backend = url.get_backend_name()
    driver = _DRIVERS[backend]
    if find_spec(driver) is None:
        raise SettingsError([f"AUTHSVC_STORE is {backend}, whose driver is missing: pip install 'authsvc[{backend}]'"])
    arguments = _postgresql if backend == "postgresql" else _mysql
    waits_s = _PATIENT_S if patient else _ANSWER_S
    engine = create_engine(
        url.set(drivername=f"{backend}+{driver}"),
        # MySQL's own default locks gaps, and first logins that meet in one are a deadlock.
        isolation_level="READ COMMITTED",
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_S,
        # After a restart or a failover the first request after it finds out, and not at its own expense.
        pool_pre_ping=True,
        connect_args=arguments(waits_s=waits_s),
        hide_parameters=True,
    )
    if backend == "postgresql":
        _bound_answers(engine, within_s=waits_s + 1)  # after the server's own limit, which says more
    return engine


def _bound_answers(engine: Engine, *, within_s: float) -> None:
    # The driver is an extra.
    from authsvc.store.postgresql import connect

    def do_connect(_dialect: Any, _record: Any, _arguments: Any, named: dict[str, Any]) -> Any:
        return connect(named, answer_within_s=within_s)

    event.listen(engine, "do_connect", do_connect)


def _postgresql(*, waits_s: int) -> dict[str, Any]:
    milliseconds = waits_s * 1000
    return {
        "connect_timeout": _CONNECT_S,
        "client_encoding": "utf8",
        # Also where nobody says that the connection is gone, as after a failover.
        "tcp_user_timeout": milliseconds,
        "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds - 1000}",
        # A pooler between us may hand each transaction to another server process.
        "prepare_threshold": None,
    }


def _mysql(*, waits_s: int) -> dict[str, Any]:
    return {
        "connect_timeout": _CONNECT_S,
        "read_timeout": waits_s,
        "write_timeout": waits_s,
        "charset": "utf8mb4",
        "init_command": f"SET SESSION innodb_lock_wait_timeout={waits_s - 1}, lock_wait_timeout={waits_s - 1}",
    }
