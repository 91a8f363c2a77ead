"""The keys of an issuer over HTTP: fetched before they are needed, and kept while nothing better can be had.

One thread of its own does every fetch, so that there is one at a time, nobody who verifies waits for the network unless
a key is missing, and no lock is held meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import random
import secrets
import stat
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from authsvc import durable
from authsvc.clock import Clock, SystemClock
from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import KeysUnavailable
from authsvc.jwk import BadJwk
from authsvc.keyset import VERIFIER_LEAST_FRESH_S
from authsvc.tokens import JwkSet, VerificationKey
from authsvc.verifier.fetch import Fetched, Fetcher, FetchFailed, checked_url, is_loopback
from authsvc.verifier.sources import MAX_JWKS_BYTES, Asked, Loud, parse_jwks

TIMEOUT_S: Final = 3.0
COOL_DOWN_S: Final = 30
MAX_STALE_S: Final = 3_600

_DISCOVERY: Final = "/.well-known/openid-configuration"

# What Cache-Control says is believed within these bounds, and the next fetch is due when that part of it is over.
_LEAST_FRESH_S: Final = VERIFIER_LEAST_FRESH_S
_MOST_FRESH_S: Final = 3_600
_FRESH_IF_UNSAID_S: Final = 300
_REFRESH_AT: Final = 0.8
_JITTER: Final = 0.1

_AGAIN_AFTER_S: Final = (1.0, 2.0, 5.0, 10.0)  # failures, one after the other; then every cool-down
_CLOCK_OFF_S: Final = 60
_OLDEST_COPY_S: Final = 30 * 86_400
# A key is in the JWKS of every host before, or at the worst so long after, it signs: reload + replication + skew of the
# default policy (keys/README.md).
_EVERYWHERE_AFTER_S: Final = 185
_MAX_WAITING: Final = 8  # for the answer about an unknown kid
_COPY_FORMAT: Final = "authsvc-jwks-copy/1"

_log = logging.getLogger("authsvc.verifier")


class Fetching(Protocol):
    """A Fetcher, or what a test plays for one."""

    def get(self, url: str, *, within_s: float, etag: str | None = None, past_caches: bool = False) -> Fetched:
        """Raises: FetchFailed."""

    def close(self) -> None:
        """Let go of the connection; `get` opens another one."""

    def abandon(self) -> None:
        """The same in the child of a fork, without waiting for anything."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A JWKS as it was fetched. Swapped whole, so readers take no lock. Times are of the monotonic clock."""

    keys: JwkSet
    body: bytes
    etag: tuple[str, str] | None  # of which URL, and what
    as_of: int  # Unix seconds: when the issuer itself last said so
    fetched_at: float
    fresh_until: float


class RemoteKeys:
    """The keys behind the URL of a JWKS. Thread-safe, and safe over fork(2): the child has a thread of its own.

    Nothing is fetched before the first question. After that the keys are refreshed when four fifths of their `max-age`
    are over, whether anybody asks or not, for as long as this object lives. For an unknown kid they are fetched at most
    once in `cool_down_s`, whether that succeeds or not. While the host cannot be reached the last good keys serve on
    for `max_stale_s` after their `max-age`, and a warning says so each minute. With `kept_in` they are kept in that
    file too (0600), for a start while the host is down; what lies there is trusted, so nobody else may write it.
    """

    _fetcher: Fetching

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        cool_down_s: float = COOL_DOWN_S,
        max_stale_s: float = MAX_STALE_S,
        kept_in: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
        new_fetcher: Callable[[], Fetching] = Fetcher,
        start_thread: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """`timeout_s` is over a whole fetch. Raises: ValueError for a URL that is neither https nor http to loopback.

        The last three are for tests: 0 to 1, what fetches, made anew after a fork, and what runs the thread.
        """
        checked_url(url)
        for name, seconds in (("timeout_s", timeout_s), ("cool_down_s", cool_down_s), ("max_stale_s", max_stale_s)):
            if not math.isfinite(seconds) or seconds < 0 or (name == "timeout_s" and seconds == 0):
                raise ValueError(f"{name} is a number of seconds")
        self._url = url
        self._source = url.partition("?")[0]
        self._timeout_s = timeout_s
        self._cool_down_s = cool_down_s
        self._max_stale_s = max_stale_s
        self._kept_in = Path(kept_in) if kept_in is not None else None
        self._clock = clock or SystemClock()
        self._new_fetcher = new_fetcher
        self._start_thread = start_thread or _start_daemon
        self._jitter = jitter
        self._loud = Loud(self._clock)
        self._copy: _Copy | None = None
        self._usable_until = float("-inf")
        self._failures = 0
        self._is_closed = False
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._begin_anew()
        self._read_copy()
        _SURVIVORS.add(self)
        _watch_forks()

    def _begin_anew(self) -> None:
        """Everything that a thread, a lock or a connection of the parent process has to do with."""
        if self._finalizer is not None:
            self._finalizer.detach()
            self._fetcher.abandon()
        self._fetcher = self._new_fetcher()
        self._changed = threading.Condition()
        self._is_started = self._is_closed
        self._under_way: Future[bool] | None = None
        self._wanted: Future[bool] | None = None
        self._waiting = 0
        self._due_at = float("-inf")
        self._ask_again_at = float("-inf")
        self._writer = secrets.token_hex(8)
        # The thread does not keep us alive; when we go, so does it, and the connection.
        self._finalizer = weakref.finalize(self, _let_go, self._changed, self._fetcher)
        self._finalizer.atexit = False

    # ---- for who verifies ----

    @property
    def epoch(self) -> object:
        if not self._is_started:
            self._start()
        copy = self._copy
        return copy.keys if copy is not None and self._clock.monotonic() < self._usable_until else None

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        keys = self.epoch
        return keys.find(unverified_kid, now=now) if isinstance(keys, JwkSet) else None

    def ask(self, *, issued_at: int) -> Asked | None:
        """None if the keys at hand are of a time when every host of the issuer had the key of such a token.

        Raises: KeysUnavailable if the budget is spent: `retry_after_s` says when it is not.
        """
        keys, copy = self.epoch, self._copy
        if keys is not None and copy is not None and issued_at < copy.as_of - _EVERYWHERE_AFTER_S:
            return None
        with self._changed:
            now = self._clock.monotonic()
            if self._is_closed:
                raise KeysUnavailable("this source of keys is closed", retry_after_s=60)
            if self._under_way is None and self._wanted is None:
                # A fetch that is due anyway, such as the first of all, is on nobody's account.
                is_due = now >= self._due_at
                if not is_due and now < self._ask_again_at:
                    again_at = min(self._ask_again_at, self._due_at) if self._failures else self._ask_again_at
                    raise KeysUnavailable(
                        f"the keys of {self._source} were asked for a moment ago",
                        retry_after_s=max(math.ceil(again_at - now), 1),
                    )
                if not is_due:
                    self._ask_again_at = now + self._cool_down_s
                self._wanted = Future()
                self._waiting = 0
                self._changed.notify_all()
            has_keys = now < self._usable_until
            self._waiting += 1
            if has_keys and self._waiting > _MAX_WAITING:
                # Whoever sends forged tokens is not to have every worker thread wait with him.
                raise KeysUnavailable(f"others wait for the keys of {self._source}", retry_after_s=1)
            wait_s = 2 * self._timeout_s + 1
            if self._wanted is not None:
                return Asked(self._wanted, is_ours=True, wait_s=wait_s)
            assert self._under_way is not None
            # It may have been answered before the question; where there were no keys at all it settles that too.
            return Asked(self._under_way, is_ours=self._copy is None, wait_s=wait_s)

    def close(self) -> None:
        """Fetch nothing any more. What is at hand can still be used, until it is stale."""
        with self._changed:
            self._is_started = self._is_closed = True
            wanted, self._wanted = self._wanted, None
            self._changed.notify_all()
            if self._under_way is None:
                self._fetcher.close()
        if wanted is not None:
            wanted.set_exception(KeysUnavailable("this source of keys was closed", retry_after_s=60))

    # ---- the thread that fetches ----

    def _start(self) -> None:
        with self._changed:
            if self._is_started:
                return
            try:
                self._start_thread(functools.partial(_keep_fresh, weakref.ref(self), self._changed))
            except RuntimeError:  # no more threads, or the end of the interpreter
                raise KeysUnavailable("no thread can be had to fetch keys", retry_after_s=1) from None
            self._is_started = True

    def _left_s(self) -> float:
        """How long there is nothing to fetch. Under the lock."""
        return 0.0 if self._wanted is not None else self._due_at - self._clock.monotonic()

    def fetch(self) -> None:
        """Fetch the keys once, now. For the thread, and for tests that have none."""
        with self._changed:
            is_asked_for = self._wanted is not None
            answer = self._under_way = self._wanted or Future()
            self._wanted = None
            now = self._clock.monotonic()
            if now < self._usable_until:
                # Those who need no other key do not wait, should it take longer than what is left of these.
                self._usable_until = max(self._usable_until, now + self._timeout_s + 1)
            has_failed_before = self._failures > 0
        fetched, problem = None, None
        try:
            fetched = self._fetched(self._fetcher, now + self._timeout_s, past_caches=is_asked_for)
            self._copy = self._taken(fetched)
        except (FetchFailed, BadJwk, ValueError) as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whoever waits has to be told
            problem = f"an unexpected {type(error).__name__}"
        if problem is not None and self._copy is not None:
            # The etag goes: it may be what the host does not like, or of an answer that was none.
            self._copy = replace(self._copy, etag=None)
        with self._changed:
            self._schedule(has_failed=problem is not None)
            retry_after_s = max(math.ceil(self._due_at - self._clock.monotonic()), 1)
            self._under_way = None
            self._waiting = 0
            if self._is_closed:
                self._fetcher.close()
        if fetched is not None and problem is None:
            answer.set_result(fetched.age_s == 0)
        else:
            why = f"the keys of {self._source} cannot be had: {problem}"
            answer.set_exception(KeysUnavailable(why, retry_after_s=retry_after_s))
        # Last, and without the lock: a log may go over a network, and a disk may hang.
        self._say(problem, fetched, has_failed_before=has_failed_before)
        if problem is None:
            self._keep()

    def _fetched(self, fetcher: Fetching, ends_at: float, *, past_caches: bool) -> Fetched:
        """What the host answers, within what is left until `ends_at` of the monotonic clock."""
        known = self._copy.etag if self._copy is not None else None
        etag = known[1] if known is not None and known[0] == self._url else None
        within_s = max(ends_at - self._clock.monotonic(), 0.001)
        fetched = fetcher.get(self._url, within_s=within_s, etag=etag, past_caches=past_caches)
        if fetched.body is None and etag is None:
            raise FetchFailed("304 for what was never fetched")
        return fetched if fetched.body is not None else replace(fetched, etag=etag)

    def _taken(self, fetched: Fetched) -> _Copy:
        now, wall = self._clock.monotonic(), self._clock.now()
        fresh_s = _FRESH_IF_UNSAID_S if fetched.fresh_s is None else fetched.fresh_s
        fresh_until = now + min(max(fresh_s, _LEAST_FRESH_S), _MOST_FRESH_S)
        etag = (self._url, fetched.etag) if fetched.etag else None
        # A cache passes on the Date that the host has said (RFC 9110, 6.6.1).
        as_of = min(wall - fetched.age_s, wall if fetched.date is None else fetched.date)
        old = self._copy
        if old is not None and fetched.body in (None, old.body):
            # The same keys, and so the same epoch.
            return _Copy(old.keys, old.body, etag, as_of, now, fresh_until)
        body = fetched.body or b""
        return _Copy(parse_jwks(body), body, etag, as_of, now, fresh_until)

    def _schedule(self, *, has_failed: bool) -> None:
        now = self._clock.monotonic()
        if has_failed:
            self._failures += 1
            number = self._failures - 1
            again_s = _AGAIN_AFTER_S[number] if number < len(_AGAIN_AFTER_S) else self._cool_down_s
            self._due_at = now + min(again_s, self._cool_down_s)
            if self._copy is not None:
                self._usable_until = self._copy.fresh_until + self._max_stale_s
        elif self._copy is not None:
            self._failures = 0
            self._usable_until = self._copy.fresh_until
            # Not all verifiers of an issuer at the same moment.
            early = 1 - _JITTER + 2 * _JITTER * self._jitter()
            self._due_at = now + (self._copy.fresh_until - now) * _REFRESH_AT * early

    def _say(self, problem: str | None, fetched: Fetched | None, *, has_failed_before: bool) -> None:
        now, copy = self._clock.monotonic(), self._copy
        if problem is None and copy is not None and fetched is not None:
            for why in sorted(set(copy.keys.passed_over)) if fetched.body is not None else ():
                self._loud.say(f"a key of %s is passed over: {why}", self._source)
            off_s = abs(fetched.date - self._clock.now()) if fetched.date is not None and not fetched.age_s else 0
            if off_s > _CLOCK_OFF_S:
                message = "this clock and that of %s differ by %s s: tokens are refused too soon or too late"
                self._loud.say(message, self._source, off_s)
        if problem is None:
            if has_failed_before:
                with contextlib.suppress(Exception):
                    _log.warning("the keys of %s can be had again", self._source)
        elif copy is None:
            self._loud.say("the keys of %s cannot be had: %s", self._source, problem, level=logging.ERROR)
        elif now >= self._usable_until:
            message = "the keys of %s cannot be had, and those at hand are %s s old, too old to be relied upon: %s"
            self._loud.say(message, self._source, round(now - copy.fetched_at), problem, level=logging.ERROR)
        else:
            message = "the keys of %s cannot be had; those at hand are %s s old and serve for %s s more: %s"
            age_s, left_s = round(now - copy.fetched_at), round(self._usable_until - now)
            self._loud.say(message, self._source, age_s, left_s, problem)

    # ---- the copy on disk ----

    def _keep(self) -> None:
        copy = self._copy
        if self._kept_in is None or copy is None:
            return
        document = {
            "format": _COPY_FORMAT,
            "source": self._source,
            "as_of": copy.as_of,
            "fetched_at": self._clock.now(),
            "fresh_s": round(copy.fresh_until - copy.fetched_at),
            "jwks": copy.body.decode("utf-8"),
        }
        try:
            data = json.dumps(document, ensure_ascii=False).encode("utf-8")
            durable.replace(self._kept_in.parent, self._kept_in.name, data, writer=self._writer)
        except OSError as error:
            self._loud.say("the keys of %s cannot be kept in %s: %s", self._source, self._kept_in, error.strerror)

    def _read_copy(self) -> None:
        """What an earlier process has kept; stale, it serves only when the host turns out not to answer."""
        if self._kept_in is None:
            return
        try:
            document = parse_json_object(_read_own(self._kept_in))
            if (document["format"], document["source"]) != (_COPY_FORMAT, self._source):
                raise ValueError("of another issuer, or another version")
            as_of, fetched_at, fresh_s = (document[name] for name in ("as_of", "fetched_at", "fresh_s"))
            if any(type(time) is not int for time in (as_of, fetched_at, fresh_s)) or not 0 <= fresh_s <= _MOST_FRESH_S:
                raise ValueError("with times that are none")
            age_s = self._clock.now() - fetched_at
            if not -_CLOCK_OFF_S <= age_s <= _OLDEST_COPY_S or as_of > fetched_at + _CLOCK_OFF_S:
                raise ValueError("from the future, or too old")
            body = document["jwks"].encode("utf-8")
            at = self._clock.monotonic() - max(age_s, 0)
            self._copy = _Copy(parse_jwks(body), body, None, as_of, at, at + fresh_s)
            self._usable_until = self._copy.fresh_until
        except FileNotFoundError:
            pass
        except (OSError, NotCanonical, BadJwk, KeyError, ValueError, TypeError, AttributeError) as error:
            why = error if isinstance(error, ValueError | OSError) else type(error).__name__
            self._loud.say("the keys kept in %s cannot be used (%s)", self._kept_in, why)


class IssuerKeys(RemoteKeys):
    """The keys of an issuer, from the JWKS that its metadata names (OpenID Connect Discovery 1.0, 4; RFC 8414, 3)."""

    def __init__(self, issuer: str, **options: Any) -> None:
        """`options`: those of RemoteKeys. Raises: ValueError for an issuer with a query, or with a slash at its end."""
        parts = checked_url(issuer)
        if parts.query or issuer.endswith("/"):
            raise ValueError("an issuer is a URL without query, and without a slash at its end")
        self._is_loopback = is_loopback(str(parts.hostname))
        self._is_discovered = False
        super().__init__(issuer, **options)

    def _fetched(self, fetcher: Fetching, ends_at: float, *, past_caches: bool) -> Fetched:
        if not self._is_discovered:
            self._url = self._discovered(fetcher, ends_at)
        self._is_discovered = False  # after a failure: they may have moved
        fetched = super()._fetched(fetcher, ends_at, past_caches=past_caches)
        self._is_discovered = True
        return fetched

    def _discovered(self, fetcher: Fetching, ends_at: float) -> str:
        within_s = max(ends_at - self._clock.monotonic(), 0.001)
        body = fetcher.get(self._source + _DISCOVERY, within_s=within_s).body
        try:
            metadata = parse_json_object(body or b"")
        except NotCanonical:
            raise FetchFailed("its metadata is no JSON object") from None
        if metadata.get("issuer") != self._source:
            # RFC 8414, 3.3: else one issuer could speak for another.
            raise FetchFailed("its metadata is of another issuer")
        url = metadata.get("jwks_uri")
        try:
            parts = checked_url(url) if isinstance(url, str) else None
        except ValueError:
            parts = None
        if parts is None or (parts.scheme == "http" and not self._is_loopback):
            raise FetchFailed("its metadata names no https URL for its keys")
        return str(url)


_SURVIVORS: Final[weakref.WeakSet[RemoteKeys]] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_begin_all_anew)


def _begin_all_anew() -> None:
    for keys in list(_SURVIVORS):
        keys._begin_anew()


def _keep_fresh(keys_ref: weakref.ref[RemoteKeys], changed: threading.Condition) -> None:
    """The thread. It holds the keys only while it fetches: when nobody has them any more, it ends."""
    while True:
        with changed:
            keys = keys_ref()
            if keys is None or keys._is_closed:
                return
            left_s = keys._left_s()
            if left_s > 0:
                del keys
                # Ours may have been the last hold on it, and what wakes us then has been and gone.
                if keys_ref() is not None:
                    changed.wait(left_s)
                continue
        try:
            keys.fetch()
        except Exception as error:  # noqa: BLE001 - such as of a handler of the log
            with contextlib.suppress(Exception):
                _log.error("the keys of %s: an unexpected %s", keys._source, type(error).__name__)
        del keys


def _let_go(changed: threading.Condition, fetcher: Fetching) -> None:
    fetcher.close()
    with changed:
        changed.notify_all()


def _read_own(path: Path) -> bytes:
    """Raises: OSError, ValueError unless it is a file that nobody but us, or root, can have written."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
            raise ValueError("others may have written it")
        return file.read(2 * MAX_JWKS_BYTES)


def _start_daemon(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="authsvc-jwks", daemon=True).start()
