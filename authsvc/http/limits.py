"""How often one client may log in (Flask-Limiter)."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from threading import Lock, Timer
from typing import Any, Final
from urllib.parse import urlsplit

import limits
from flask import Flask
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from authsvc.errors import SettingsError
from authsvc.http.clients import client_address

IN_MEMORY: Final = "memory://"

# Not a Cluster: where that is down, no worker could start.
_SCHEMES: Final = ("redis", "rediss", "redis+sentinel", "valkey", "valkeys", "valkey+sentinel")

_OUR_MEMORY: Final = "authsvc-memory"
_LIMITED: Final = "login.log_in"
_PREFIX: Final = "authsvc-limits"
# A limiter that hangs must not make a login hang.
_REDIS_TIMEOUT_S: Final = 0.5
_REDIS_OPTIONS: Final[dict[str, Any]] = {"socket_connect_timeout": _REDIS_TIMEOUT_S, "socket_timeout": _REDIS_TIMEOUT_S}

# Two of a client who comes again and again; some 60 MB. Whoever has the addresses to fill them has as many times the
# rate anyway, and gains nothing when the oldest are forgotten.
_MAX_COUNTERS: Final = 100_000

# Whoever has one address of them mostly has all (RFC 6177).
_IPV6_NETWORK_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class LoginLimit:
    """What one worker lets a client do: `rate` as in "300 per 1 minute", counted at `url`."""

    rate: str
    url: str = field(repr=False)  # may hold a password


def login_limit(rate: str, url: str, *, workers: int) -> LoginLimit | None:
    """None if nothing is limited ("off").

    In memory each worker counts for itself, so each has its part of the rate: connections are spread over all of them.
    Raises: SettingsError.
    """
    where = _url_for_limits(url)
    if rate == "off":
        return None
    try:
        (found,) = limits.parse_many(rate)
    except ValueError:
        raise SettingsError(['AUTHSVC_LOGIN_RATE is not of the form 300/minute, nor "off"']) from None
    if found.amount < 1:
        raise SettingsError(["AUTHSVC_LOGIN_RATE lets nobody log in"])
    amount = math.ceil(found.amount / workers) if url == IN_MEMORY else found.amount
    return LoginLimit(f"{amount} per {found.multiples} {found.GRANULARITY.name}", where)


def install_login_limit(app: Flask, limit: LoginLimit) -> None:
    """Who asks too often gets a RateLimitExceeded (429).

    While a Redis does not answer, each worker counts in its own memory.
    """
    from flask_limiter import Limiter  # here: commands that read settings would load it for nothing

    limiter = Limiter(
        client_network,
        app=app,
        storage_uri=f"{_OUR_MEMORY}://" if limit.url == IN_MEMORY else limit.url,
        storage_options={} if limit.url == IN_MEMORY else _REDIS_OPTIONS,
        # Two counters of a client, and no burst of twice the rate where two windows meet.
        strategy="sliding-window-counter",
        key_prefix=_PREFIX,
        in_memory_fallback_enabled=limit.url != IN_MEMORY,
    )
    if limit.url != IN_MEMORY:
        limiter._fallback_limiter = SlidingWindowCounterRateLimiter(MemoryCounters())  # it has no option for that
    limited: Any = limiter.limit(limit.rate)(app.view_functions[_LIMITED])
    app.view_functions[_LIMITED] = limited


class MemoryCounters(MemoryStorage):
    """A bounded number of counters, for one rate.

    `limits` itself walks over all of its counters every 10 ms while clients log in, to forget those that are over. With
    one rate they are over in the order in which they were made, so here each login looks at the two oldest.
    """

    STORAGE_SCHEME = [_OUR_MEMORY]  # noqa: RUF012 - as the library has it

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: str) -> None:
        super().__init__(uri, wrap_exceptions, **options)
        self.timer.cancel()
        self.timer = _NoTimer(0, lambda: None)
        self.expirations: OrderedDict[str, float] = OrderedDict()
        self._lock = Lock()

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        with self._lock:  # what follows is no one step, and its own locks are one a counter
            is_within = super().acquire_sliding_window_entry(key, limit, expiry, amount)
            # One is added at most, so those that are over become fewer.
            for oldest in list(islice(self.expirations, 2)):
                self.get(oldest)  # which forgets it if it is over
            if len(self.expirations) > _MAX_COUNTERS:
                self.clear(next(iter(self.expirations)))
            return is_within


class _NoTimer(Timer):
    """In place of the one for the upkeep: under way already, it is never started."""

    def is_alive(self) -> bool:
        return True


def client_network() -> str:
    """The address of the client; of IPv6 the network that it is in."""
    try:
        address = ipaddress.ip_address(client_address())
    except ValueError:
        return "unknown"
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))


def _url_for_limits(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if url != IN_MEMORY and not (scheme in _SCHEMES and find_spec("redis") and _is_whole(url)):
        raise SettingsError(
            [
                "AUTHSVC_LIMITS_URL is neither memory:// nor the URL of a Redis, alone or behind Sentinels (with "
                "authsvc[redis] installed)"
            ]
        )
    return scheme.replace("valkey", "redis", 1) + separator + rest  # both are asked through redis-py


def _is_whole(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # An unescaped "#" or "/" in a password ends up here.
        return bool(parts.hostname) and not parts.fragment and (parts.port or 1) > 0
    except ValueError:
        return False
