"""Where a Redis is: one server, one that Sentinels watch, or a Cluster. Valkey alike.

redis://user:password@host:6379/0            rediss:// for TLS
redis+sentinel://user:password@host:26379,host2:26379/service/0
redis+cluster://user:password@host:6379,host2:6379
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from authsvc.errors import SettingsError

DEFAULT_PREFIX: Final = "authsvc:"

_FORM: Final = re.compile(r"(?P<name>redis|valkey)(?P<tls>s?)(\+(?P<kind>sentinel|cluster))?")
_PORTS: Final = {None: 6379, "cluster": 6379, "sentinel": 26379}
_PREFIX: Final = re.compile(r"[0-9A-Za-z_.:-]{1,64}")
# Each is a file or a name; what may be secret has a place of its own in the URL.
_OPTIONS: Final = ("prefix", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sentinel_username", "sentinel_password")

_FORMS: Final = (
    "AUTHSVC_STORE is not redis://user:password@host:6379/0 (rediss:// for TLS), "
    "redis+sentinel://host:26379,host:26379/service/0 or redis+cluster://host:6379,host:6379"
)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    kind: str | None  # None: one server
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    service: str | None  # that the Sentinels watch
    database: int
    username: str | None
    password: str | None = field(repr=False)
    prefix: str
    options: Mapping[str, str] = field(repr=False)

    @property
    def shown(self) -> str:
        """Without what is secret."""
        kind = f"+{self.kind}" if self.kind else ""
        who = f"{self.username or ''}:***@" if self.password else f"{self.username}@" if self.username else ""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        place = {"sentinel": f"/{self.service}/{self.database}", "cluster": ""}.get(
            self.kind or "", f"/{self.database}"
        )
        prefix = f"?prefix={self.prefix}" if self.prefix != DEFAULT_PREFIX else ""
        return f"redis{'s' if self.tls else ''}{kind}://{who}{hosts}{place}{prefix}"


def is_redis(url: str) -> bool:
    return _FORM.fullmatch(url.partition("://")[0]) is not None


def redis_address(url: str) -> RedisAddress:
    """Raises: SettingsError, which does not repeat the URL."""
    try:
        return _parsed(url)
    except ValueError:
        raise SettingsError([_FORMS]) from None


def need_driver() -> None:
    """Raises: SettingsError if redis-py is not installed."""
    if find_spec("redis") is None:
        raise SettingsError(["AUTHSVC_STORE is redis, whose driver is missing: pip install 'authsvc[redis]'"])


def _parsed(url: str) -> RedisAddress:
    """Raises: ValueError."""
    if not url.isprintable():
        raise ValueError
    scheme, _, rest = url.partition("://")
    form = _FORM.fullmatch(scheme)
    if form is None:
        raise ValueError
    # Several hosts are no URL for the standard library: it gets one, and the others are looked at here.
    netloc = rest.partition("?")[0].partition("/")[0]
    login, _, hosts = netloc.rpartition("@")
    parts = urlsplit(f"redis://{login}@host{rest.removeprefix(netloc)}")
    kind = form["kind"]
    names = [unquote(name) for name in parts.path.strip("/").split("/") if name]
    service = names.pop(0) if kind == "sentinel" and names else None
    database = int(names.pop(0)) if names else 0
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    prefix = options.pop("prefix", DEFAULT_PREFIX)
    good = (
        not names
        and not parts.fragment
        and database >= 0
        and (kind == "sentinel") is (service is not None)
        and (kind != "cluster" or database == 0)
        and options.keys() <= set(_OPTIONS)
        # Who names a certificate and forgets the s would send the password in clear.
        and (form["tls"] or not any(name.startswith("ssl_") for name in options))
        and _PREFIX.fullmatch(prefix)
    )
    addresses = tuple(_host(host, _PORTS[kind]) for host in hosts.split(","))
    if not good or (kind is None and len(addresses) != 1):
        raise ValueError
    return RedisAddress(
        kind=kind,
        tls=bool(form["tls"]),
        hosts=addresses,
        service=service,
        database=database,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        prefix=prefix,
        options=options,
    )


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"redis://{text}")
    if not parts.hostname or parts.username is not None or parts.path or parts.query or parts.fragment:
        raise ValueError
    return parts.hostname, port if parts.port is None else parts.port
