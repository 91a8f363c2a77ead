"""What `/metrics` tells (prometheus-client). Each worker counts in files of its own, and reads those of all.

Where those are is for the whole process, so this module is imported by workers alone, with PROMETHEUS_MULTIPROC_DIR
set. Every label has a bounded set of values: none comes from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from authsvc.clock import Clock
from authsvc.errors import KeysError
from authsvc.http.metricsfolder import files_of, take_place, take_up_room
from authsvc.keyreport import next_step
from authsvc.keyring import Keyring
from authsvc.keyset import Kind
from authsvc.store import Store
from authsvc.wechat import KNOWN_ERRCODES

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER: Final = "(other)"

_WECHAT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 5.0, 10.0, 30.0, 60.0)
_STORE_BUCKETS_S: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 3.0)


_log = structlog.get_logger("authsvc.http")

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
        if folder is not None:
            place = take_place(folder)
            _remove_torn(folder, place)
            values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
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
            take_up_room(folder, place)

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
            registry.register(_FileCollector(self._folder))
        keys = CollectorRegistry()
        keys.register(self._keys)
        return generate_latest(registry) + generate_latest(keys)


class _FileCollector(Collector):
    """Of all that counts in a folder: prometheus-client's own fails as a whole at a file that is torn."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        files = list(self._folder.glob("*.db"))
        try:
            return _merged(files)
        except Exception:  # noqa: BLE001 - whatever is in such a file
            return _merged([path for path in files if _is_whole(path)])


def _merged(files: Iterable[Path]) -> Iterable[Metric]:
    found: Iterable[Metric] = MultiProcessCollector.merge([str(path) for path in files])  # type: ignore[no-untyped-call]
    return found


def _is_whole(path: Path) -> bool:
    try:
        _merged([path])
    except Exception:  # noqa: BLE001 - see above
        return False
    return True


def _remove_torn(folder: Path, place: str) -> None:
    """Of a worker that was killed as it made its files, or of a disk: one that goes on with them could not start."""
    for path in files_of(folder, place):
        if not _is_whole(path):
            path.unlink(missing_ok=True)
            _log.warning("figures_lost", problem=f"{path} could not be read, and what it counted is gone")


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
            active = keyset.active(Kind.SIGNING, now=now)
        except KeysError:
            return  # with a clock that was set back
        age_s = now - (active.activate_at or now)
        yield GaugeMetricFamily("authsvc_signing_key_age_seconds", "For how long the active key has signed.", age_s)
        # Not always by the timer: one that is under way comes when verifiers know its key.
        step = next_step(active, keyset, now=now, rotate_every_s=self._rotate_every_s)
        if step is not None and step.at is not None:
            yield GaugeMetricFamily(
                "authsvc_next_rotation_seconds", "Until the next rotation; below 0 it is overdue.", step.at - now
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
