"""What `/metrics` tells (prometheus-client). Each worker counts in files of its own, and reads those of all.

prometheus-client decides on that when it is first imported, so this module is imported by workers alone, with
PROMETHEUS_MULTIPROC_DIR set. Every label has a bounded set of values: none comes from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from authsvc.clock import Clock
from authsvc.errors import KeysError
from authsvc.http.metricsfolder import take_up_room
from authsvc.keyring import Keyring
from authsvc.keyset import Kind
from authsvc.store import Store
from authsvc.wechat import KNOWN_ERRCODES

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER: Final = "(other)"

_WECHAT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 5.0, 10.0, 30.0, 60.0)
_STORE_BUCKETS_S: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 3.0)


_P = ParamSpec("_P")


def _never_failing(note: Callable[_P, None]) -> Callable[_P, None]:
    @wraps(note)
    def noted(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with suppress(Exception):  # whatever is wrong with the files, it is no reason to refuse anybody
            note(*args, **kwargs)

    return noted


class Metrics:
    """Thread-safe. `folder` is where the workers count; None: this process counts in memory, for itself.

    Nothing that is noted fails: a login is not lost for a figure. Raises: OSError if there is no room in the folder.
    """

    content_type: Final = CONTENT_TYPE_LATEST

    def __init__(self, folder: Path | None, *, keys: Callable[[], Keyring], rotate_every_s: int, clock: Clock) -> None:
        self._folder = folder
        self._keys = _KeyCollector(keys, rotate_every_s, clock)
        own = self._own = CollectorRegistry()
        self._requests = Counter(
            "authsvc_http_requests", "Answered requests.", ["route", "method", "status"], registry=own
        )
        self._logins = Counter(
            "authsvc_logins", "Attempts to log in, by what became of them.", ["code", "wechat_errcode"], registry=own
        )
        self._issued = Counter("authsvc_tokens_issued", "Tokens given out.", registry=own)
        self._accepted = Counter("authsvc_tokens_accepted", "Tokens found good by this service.", registry=own)
        self._refused = Counter("authsvc_tokens_refused", "Tokens refused by this service.", ["reason"], registry=own)
        self._wechat = Histogram(
            "authsvc_wechat_call_seconds",
            "What calls to WeChat took, a second one at its fallback host or after its -1 included.",
            ["call"],
            buckets=_WECHAT_BUCKETS_S,
            registry=own,
        )
        self._down = Gauge(
            "authsvc_wechat_down",
            "1 while a worker takes WeChat for down, and answers most requests without asking it.",
            ["call"],
            multiprocess_mode="livemax",
            registry=own,
        )
        # Each of these finds the same child again and again, and prometheus-client's own way to it takes as long as
        # counting does. There are few: see the labels.
        self._request_of = cache(self._requests.labels)
        self._refused_for = cache(self._refused.labels)
        self._store = Histogram(
            "authsvc_store_seconds",
            "What the side store took.",
            ["operation"],
            buckets=_STORE_BUCKETS_S,
            registry=own,
        )

        if folder is not None:
            # Each kind's file is made now: in the midst of a login is no time to find that there is no room for it.
            self._wechat.labels("jscode2session")
            self._down.labels("jscode2session")
            take_up_room(folder)

    @_never_failing
    def note_request(self, route: str, method: str, status: int) -> None:
        self._request_of(route, method if method in _METHODS else _OTHER, status).inc()

    @_never_failing
    def note_login(self, code: str, wechat_errcode: int | None) -> None:
        """`code` as in the table of problems, or "ok"."""
        errcode = "" if wechat_errcode is None else str(wechat_errcode) if wechat_errcode in KNOWN_ERRCODES else _OTHER
        self._logins.labels(code, errcode).inc()
        if code == "ok":
            self._issued.inc()

    @_never_failing
    def note_token(self, refused_for: str | None) -> None:
        """`refused_for`: a TokenError's code."""
        if refused_for is None:
            self._accepted.inc()
        else:
            self._refused_for(refused_for).inc()

    @_never_failing
    def note_wechat(self, call: str, took_s: float | None, is_down: bool) -> None:
        """`took_s`: None if WeChat was not asked."""
        if took_s is not None:
            self._wechat.labels(call).observe(took_s)
        self._down.labels(call).set(is_down)

    def timed(self, store: Store) -> Store:
        return cast(Store, _TimedStore(store, self._store))

    def text(self) -> bytes:
        """In the text format of Prometheus, of all workers together."""
        registry = self._own
        if self._folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        keys = CollectorRegistry()
        keys.register(self._keys)
        return generate_latest(registry) + generate_latest(keys)


class _KeyCollector(Collector):
    """Looked up when somebody asks: all workers have the same keys."""

    def __init__(self, keys: Callable[[], Keyring], rotate_every_s: int, clock: Clock) -> None:
        self._keys = keys
        self._rotate_every_s = rotate_every_s
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        keyset, now = self._keys().keyset, self._clock.now()
        yield GaugeMetricFamily("authsvc_keys_generation", "Rises with every change of the keys.", keyset.generation)
        try:
            age_s = now - (keyset.active(Kind.SIGNING, now=now).activate_at or now)
        except KeysError:
            return  # with a clock that was set back
        yield GaugeMetricFamily("authsvc_signing_key_age_seconds", "For how long the active key has signed.", age_s)
        if self._rotate_every_s:
            yield GaugeMetricFamily(
                "authsvc_next_rotation_seconds",
                "Until the next rotation; below 0 it is overdue.",
                self._rotate_every_s - age_s,
            )


class _TimedStore:
    """A Store whose every call is measured, the failed ones too."""

    def __init__(self, store: Store, histogram: Histogram) -> None:
        self._store = store
        self._histogram = histogram

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        @_never_failing
        def observe(took_s: float) -> None:
            self._histogram.labels(name).observe(took_s)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                observe(time.perf_counter() - began)

        setattr(self, name, timed)  # found without this the next time
        return timed
