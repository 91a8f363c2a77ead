"""Looks an installation over: each check by itself and bounded, each finding with what was seen and the mend.

Nothing is made, changed or rotated, and no running service is needed. What is looked at is handed in.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from authsvc.clock import Clock
from authsvc.diagnoses import (
    CLOCK_ODD_S,
    PURGED_WITHIN_S,
    Finding,
    Verdict,
    broken,
    members,
    of_app,
    of_census,
    of_clock,
    of_disk,
    of_jwks,
    of_mode,
    of_sealed,
    of_service,
    ok,
    shown_keys,
    told,
    warning,
)
from authsvc.errors import (
    AuthsvcError,
    CannotListen,
    KeysError,
    SettingsError,
    StoreUnavailable,
    WeChatError,
    WeChatTimeout,
)
from authsvc.http.limits import IN_MEMORY
from authsvc.keyfiles import KeyFolder
from authsvc.keyreport import problems as problems_of_times
from authsvc.keyset import Keyset, Purpose
from authsvc.looks import Answer, Disk, NoAnswer, NotTrusted
from authsvc.sealing import START_BYTES
from authsvc.settings import KeySettings, OperatorSettings, Settings
from authsvc.store import FORWARDING_HEADER_SEEN, Store, store_address
from authsvc.users import Users, check_owner
from authsvc.wechat import App
from authsvc.wiring import check_not_revived, check_rotate_every

BOUND_S: Final = 15.0
"""After so long a check is not waited for any more. Its looks have limits of their own, below this."""

LOOK_S: Final = 5
"""How long a host is waited for; the way to WeChat no longer than AUTHSVC_WECHAT_TIMEOUT either."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What there is to look at. Every look ends by itself within seconds, or is given up by the doctor."""

    clock: Clock
    settings: Callable[[], Settings]  # raises SettingsError
    operator_settings: Callable[[], OperatorSettings]  # raises SettingsError
    keys: Callable[[KeySettings], KeyFolder]
    sandbox_url: Callable[[], str | None]  # where it answers, if it runs
    service_url: Callable[[Settings], str]
    access_token: Callable[[App, str, str | None, float], object]  # from URL or fallback in s; raises WeChatError
    ask_wechat: Callable[[str, float], Answer]  # a URL, within seconds; raises NoAnswer
    ask: Callable[[str, float], Answer]
    check_store: Callable[[str], None]
    open_store: Callable[[str], Store]
    disk: Callable[[Path], Disk]  # raises OSError
    free_address: Callable[[str, int], object]  # raises CannotListen
    ping_redis: Callable[[str], None]  # raises NoAnswer


def examine(around: Surroundings, *, bound_s: float = BOUND_S) -> list[Finding]:
    """Every check, in one order; those behind the first at once, so that it takes no longer than the slowest."""
    doctor = _Doctor(around)
    found = _bounded({"configuration": doctor.configuration}, bound_s=bound_s)
    checks: dict[str, _Check] = {
        "keys": doctor.keys,
        "clock": doctor.clock,
        "wechat": doctor.wechat,
        "store": doctor.store,
        "disk": doctor.disk,
        "limits": doctor.limits,
        "listener": doctor.listener,
        "issuer": doctor.issuer,
    }
    return found + _bounded(checks, bound_s=bound_s)


# ---- running checks -----------------------------------------------------------------------------

_Check = Callable[[], Iterator[Finding]]


def _bounded(checks: Mapping[str, _Check], *, bound_s: float) -> list[Finding]:
    runs = [_Run(name, check) for name, check in checks.items()]
    for run in runs:
        # A thread that hangs, in a file system that is gone for one, keeps nobody from ending the process.
        threading.Thread(target=run, name=f"doctor-{run.name}", daemon=True).start()
    ends_at = time.monotonic() + bound_s
    return [finding for run in runs for finding in run.until(ends_at, bound_s=bound_s)]


class _Run:
    """A check in a thread of its own. What it has found before it fails, or hangs, counts."""

    def __init__(self, name: str, check: _Check) -> None:
        self.name = name
        self._check = check
        self._found: list[Finding] = []
        self._ended = threading.Event()

    def __call__(self) -> None:
        for finding in _each(self.name, self._check):
            self._found.append(finding)
        self._ended.set()

    def until(self, ends_at: float, *, bound_s: float) -> list[Finding]:
        if self._ended.wait(max(ends_at - time.monotonic(), 0)):
            return self._found
        hangs = broken(self.name, f"this check has not ended within {bound_s:g} s", "see what hangs: disk, network")
        return [*self._found, hangs]


def _each(name: str, *checks: _Check) -> Iterator[Finding]:
    """What each of them finds. One that fails is a finding too, and stops no other one."""
    for check in checks:
        try:
            yield from check()
        except SettingsError as error:
            for problem in error.problems:
                yield told(name, problem)
        except AuthsvcError as error:
            yield told(name, str(error))
        except Exception as error:  # noqa: BLE001 - the other checks have to go on
            # The type alone: nobody knows what is in the message of an error that was not foreseen.
            yield broken(name, f"this check failed itself ({type(error).__name__})", "please report it")


def _not_looked_at(name: str) -> Finding:
    return warning(name, "not looked at, because the configuration cannot be used", "mend that first")


# ---- the checks ---------------------------------------------------------------------------------

_NOT_SO_MEANT: Final = (
    "change it, if it is not so meant, in the environment or .env; authsvc config shows what is in force"
)
_MAKE_RUN: Final = "make run makes it"

# For so long, apps are asked for one after the other.
_APPS_WITHIN_S: Final = 8.0

_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - to say so
_KID: Final = re.compile(r"[0-9A-Za-z_-]{43}")
_HEADER: Final = re.compile(r"[0-9A-Za-z-]{1,64}")


class _Doctor:
    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._settings: Settings | None = None
        self._operator: OperatorSettings | None = None

    # ---- configuration ----

    def configuration(self) -> Iterator[Finding]:
        try:
            settings = self._settings = self._around.settings()
        except SettingsError as error:
            for problem in error.problems:
                verdict = Verdict.WARNING if problem in error.warnings else Verdict.BROKEN
                yield told("configuration", problem, verdict, "set it right in the environment or .env")
            # Keys and store are of use to look at all the same.
            with contextlib.suppress(SettingsError):  # which says nothing that was not said just now
                self._operator = self._around.operator_settings()
            return
        appids = tuple(settings.apps)
        self._operator = OperatorSettings(settings.keys, settings.store_url, settings.store_openid, appids)
        for said in settings.warnings:
            yield told("configuration", said, Verdict.WARNING, _NOT_SO_MEANT)
        if not settings.warnings:
            kind = "the sandbox" if settings.sandbox else f"{len(appids)} app{'s' if len(appids) > 1 else ''}"
            yield ok("configuration", f"{kind}, issuer {settings.issuer}")

    # ---- keys ----

    def keys(self) -> Iterator[Finding]:
        if self._operator is None:
            yield _not_looked_at("keys")
            return
        wanted = self._operator.keys
        folder, now = self._around.keys(wanted), self._around.clock.now()
        if wanted.sandbox and not folder.is_initialised():
            yield warning("keys", f"the sandbox has no keys in {folder.path} yet", _MAKE_RUN)
            return
        failure = _failure(lambda: folder.load(now=now))
        try:
            found = folder.inspect(now=now)
        except KeysError as error:
            yield told("keys", str(error))
            return
        verdict = Verdict.WARNING if failure is None else Verdict.BROKEN
        said = [told("keys", problem, verdict) for problem in found.problems]
        of_times = problems_of_times(found.keyset, now=now, rotate_every_s=wanted.rotate_every_s)
        said += [told("keys", problem, verdict) for problem in of_times]
        if failure is not None and told("keys", failure) not in said:
            said.insert(0, told("keys", failure))
        said += list(_each("keys", lambda: self._policy(found.keyset, wanted, folder)))
        if found.strays:
            strays = ", ".join(found.strays)
            said.append(
                warning("keys", f"private parts in {folder.path} that no key has: {strays}", "move them away, safely")
            )
        yield from said
        if failure is None and all(finding.verdict is Verdict.OK for finding in said):
            yield ok("keys", shown_keys(found.keyset, folder.path, now=now))

    def _policy(self, keyset: Keyset, wanted: KeySettings, folder: KeyFolder) -> Iterator[Finding]:
        """What `serve` would refuse to start with."""
        purpose = Purpose.SANDBOX if wanted.sandbox else Purpose.PRODUCTION
        if keyset.purpose is not purpose:
            yield broken("keys", f"the keys in {folder.path} are for {keyset.purpose}, not {purpose}", "AUTHSVC_KEYS")
        if wanted.group_read and wanted.rotate_every_s:
            yield ok("keys", "the folder is read-only here (AUTHSVC_KEYS_GROUP_READ): nothing here rotates by itself")
        lifecycle = keyset.lifecycle
        if self._settings is not None:
            raised = keyset.with_lifetimes(
                token_ttl_s=self._settings.token_ttl_s,
                session_key_ttl_s=self._settings.session_key_ttl_s,
                now=self._around.clock.now(),
            )
            lifecycle = raised.lifecycle
            if raised is not keyset and wanted.group_read:
                yield broken(
                    "keys",
                    "AUTHSVC_TOKEN_TTL or AUTHSVC_SESSION_KEY_TTL is longer than the key folder knows, and it is "
                    "read-only here",
                    "a shorter one, or start once where the folder can be written",
                )
        if not wanted.group_read:
            check_rotate_every(lifecycle, wanted.rotate_every_s)

    def _keyset(self) -> Keyset | None:
        """The manifest, if it can be read; the check of the keys says why not."""
        if self._operator is None:
            return None
        try:
            return self._around.keys(self._operator.keys).keyset()
        except KeysError:
            return None

    # ---- clock ----

    def clock(self) -> Iterator[Finding]:
        yield from _each("clock", self._clock_beside_wechat, self._clock_beside_keys)

    def _clock_beside_wechat(self) -> Iterator[Finding]:
        if self._settings is None:
            yield _not_looked_at("clock")
            return
        urls = self._wechat_urls(self._settings)
        if not urls:
            yield ok("clock", "the sandbox does not run, so there is no other clock to compare this one with")
        for url in urls:
            before = self._around.clock.now()
            try:
                answer = self._around.ask_wechat(f"{url}/", self._wechat_within_s(self._settings))
            except NotTrusted as error:
                yield broken(
                    "clock",
                    f"{_host(url)}, asked for the time: {error}",
                    "look at the clock first: by a wrong one no certificate is good; else find out who answers there "
                    "in WeChat's place",
                )
            except NoAnswer as error:
                yield warning(
                    "clock", f"{_host(url)} does not tell the time: {error}", "see wechat; is DNS or a firewall amiss?"
                )
            else:
                yield of_clock(answer.date, _host(url), before=before, after=self._around.clock.now())
                return

    def _clock_beside_keys(self) -> Iterator[Finding]:
        keyset = self._keyset()
        behind_s = 0 if keyset is None else keyset.updated_at - self._around.clock.now()
        if keyset is None or behind_s <= CLOCK_ODD_S:
            return
        verdict = Verdict.BROKEN if behind_s > keyset.lifecycle.skew_s else Verdict.WARNING
        yield Finding("clock", verdict, f"{behind_s:,} s behind the last change of the keys", "set the clock (NTP)")

    # ---- WeChat ----

    def wechat(self) -> Iterator[Finding]:
        settings = self._settings
        if settings is None:
            yield _not_looked_at("wechat")
            return
        urls = self._wechat_urls(settings)
        if not urls:
            yield ok("wechat", "the sandbox does not run, so nothing was asked")
            return
        ends_at = self._around.clock.monotonic() + _APPS_WITHIN_S
        apps = list(settings.apps.values())
        while apps:
            if self._around.clock.monotonic() >= ends_at:
                yield warning("wechat", f"{len(apps)} apps were not asked for: the others took too long", "ask again")
                return
            app = apps.pop(0)
            refusals: list[WeChatError | None] = []
            for secret in app.secrets:
                refusals.append(self._refusal(settings, app.appid, secret, urls))
                if isinstance(refusals[-1], WeChatTimeout):
                    break  # the others would wait for nothing too
            yield from of_app(app.appid, refusals, several=len(app.secrets) > 1)
            if isinstance(refusals[-1], WeChatTimeout):
                if apps:
                    yield warning("wechat", f"{len(apps)} more apps were not asked for", "mend the way to WeChat")
                return

    def _refusal(self, settings: Settings, appid: str, secret: str, urls: list[str]) -> WeChatError | None:
        url, fallback_url = urls[0], urls[1] if len(urls) > 1 else None
        try:
            self._around.access_token(App(appid, (secret,)), url, fallback_url, self._wechat_within_s(settings))
        except WeChatError as error:
            return error
        return None

    def _wechat_urls(self, settings: Settings) -> list[str]:
        if settings.sandbox:
            url = self._around.sandbox_url()
            return [] if url is None else [url]
        return [url for url in (settings.wechat_url, settings.wechat_fallback_url) if url is not None]

    @staticmethod
    def _wechat_within_s(settings: Settings) -> float:
        return min(settings.wechat_timeout_s, LOOK_S)

    # ---- store ----

    def store(self) -> Iterator[Finding]:
        if self._operator is None:
            yield _not_looked_at("store")
            return
        url = self._operator.store_url
        address = store_address(url)
        if address.is_missing and self._operator.keys.sandbox:
            yield warning("store", f"the sandbox has no side store {address.shown} yet", _MAKE_RUN)
            return
        if address.is_missing:
            yield broken(
                "store",
                f"there is no side store {address.shown}",
                "put it back: bans lie in it; if there has never been one, authsvc serve makes it; else, is this the "
                "working folder of the service?",
            )
            return
        if address.file is not None:
            yield from of_mode(address.file, address.file.stat().st_mode & 0o777)
        try:
            self._around.check_store(url)
        except StoreUnavailable as error:
            yield told("store", str(error), mend=_NO_STORE_MEND)
            return
        store = self._around.open_store(url)
        try:
            yield from _each(
                "store",
                lambda: self._writes(store, address.shown),
                lambda: self._belongs(store),
                lambda: self._rows(store),
                lambda: self._forwarding(store),
            )
        finally:
            store.close()

    def _writes(self, store: Store, shown: str) -> Iterator[Finding]:
        try:
            store.ping()
        except StoreUnavailable as error:
            yield told("store", f"{shown} takes no write, so nobody can log in: {error}", mend=_STORE_MEND)
        else:
            yield ok("store", f"{shown} takes a write, and has the form that this version wants")

    def _belongs(self, store: Store) -> Iterator[Finding]:
        assert self._operator is not None
        now = self._around.clock.now()
        folder = self._around.keys(self._operator.keys)
        try:
            keyring = folder.load(now=now)
        except KeysError:
            yield warning("store", "whose it is cannot be told without the keys", "mend the keys first")
            return
        check_not_revived(keyring.keyset, store, folder.path)
        users = Users(keys=lambda: keyring, hashed=self._operator.store_openid == "hash")
        try:
            check_owner(store, users, now=now)
        except SettingsError as error:
            if not self._operator.keys.sandbox:
                raise
            yield warning("store", error.problems[0].partition(";")[0], "make run takes it over")

    def _rows(self, store: Store) -> Iterator[Finding]:
        assert self._operator is not None
        now = self._around.clock.now()
        try:
            counted = store.census(now=now - PURGED_WITHIN_S, start_bytes=START_BYTES)
        except StoreUnavailable as error:
            yield warning("store", f"its rows cannot be counted in this time: {error}", "authsvc store status waits")
            return
        yield from of_census(counted)
        keyset = self._keyset()
        if keyset is not None:
            yield from of_sealed(counted, keyset, now=now, rotate_every_s=self._operator.keys.rotate_every_s)

    def _forwarding(self, store: Store) -> Iterator[Finding]:
        if self._settings is None or self._settings.trusted_proxies:
            return
        found = store.shared(FORWARDING_HEADER_SEEN, now=self._around.clock.now())
        if found is None:
            yield ok("proxy", "AUTHSVC_TRUSTED_PROXIES is 0, and no request with a header of a proxy was noted")
            return
        name = found.value.decode("ascii", errors="replace")
        yield warning(
            "proxy",
            f"requests come with {name if _HEADER.fullmatch(name) else 'a header of a proxy'}, and "
            "AUTHSVC_TRUSTED_PROXIES is 0: behind a proxy all clients look like one",
            "AUTHSVC_TRUSTED_PROXIES=1, or as many as each add an address; if there is none, somebody makes that up",
        )

    # ---- disk ----

    def disk(self) -> Iterator[Finding]:
        if self._operator is None:
            yield _not_looked_at("disk")
            return
        file = store_address(self._operator.store_url).file
        folders = {} if file is None else {"the side store": file.parent}
        if not self._operator.keys.group_read:
            folders["the keys"] = self._operator.keys.path.absolute()
        seen: set[int] = set()
        for what, folder in folders.items():
            try:
                disk = self._around.disk(folder)
            except OSError as error:
                yield broken("disk", f"the folder of {what} cannot be looked at: {error.strerror}", f"see {folder}")
                continue
            if disk.device not in seen:
                yield of_disk(disk, folder)
            seen.add(disk.device)

    # ---- rate limits ----

    def limits(self) -> Iterator[Finding]:
        settings = self._settings
        if settings is None:
            yield _not_looked_at("limits")
        elif settings.login_limit is None:
            yield ok("limits", "AUTHSVC_LOGIN_RATE is off: this service refuses nobody who logs in too often")
        elif settings.limits_url == IN_MEMORY:
            divided = f": the rate is divided by the {settings.workers} workers" if settings.workers > 1 else ""
            yield ok("limits", f"counted in the memory of each worker{divided}")
        else:
            try:
                self._around.ping_redis(settings.limits_url)
            except NoAnswer as error:
                yield broken("limits", f"the Redis of AUTHSVC_LIMITS_URL: {error}", "start it, or mend the URL")
            else:
                yield ok("limits", "the Redis of AUTHSVC_LIMITS_URL answers")

    # ---- where it listens ----

    def listener(self) -> Iterator[Finding]:
        settings = self._settings
        if settings is None:
            yield _not_looked_at("listener")
            return
        where = f"{settings.host} port {settings.port}"
        where += " (every interface of this machine)" if settings.host in _EVERYWHERE else ""
        try:
            self._around.free_address(settings.host, settings.port)
        except CannotListen as error:
            yield from self._taken(settings, where, told("listener", str(error)))
        else:
            yield ok("listener", f"{where} is free: no service runs here")

    def _taken(self, settings: Settings, where: str, cannot: Finding) -> Iterator[Finding]:
        try:
            ready = self._ready(settings)
        except NoAnswer as error:
            yield broken("listener", f"{cannot.seen}; asked there: {error}", f"see who has it, or {cannot.mend}")
            return
        if ready is None:
            yield broken("listener", f"{where} is taken by something that is no authsvc", f"end it, or {cannot.mend}")
            return
        findings = list(of_service(ready, where, self._keyset(), now=self._around.clock.now()))
        if any(finding.verdict is not Verdict.OK for finding in findings):
            # A rotation may have come in between: what is amiss is so a second time.
            again = self._ready(settings)
            if again is not None:
                findings = list(of_service(again, where, self._keyset(), now=self._around.clock.now()))
        yield from findings

    def _ready(self, settings: Settings) -> Mapping[str, Any] | None:
        """What /readyz says; None if that is no authsvc. Raises: NoAnswer."""
        url = self._around.service_url(settings)
        health = self._around.ask(f"{url}/healthz", LOOK_S)
        if health.status != 200 or members(health) != {"status": "ok"}:
            return None
        found = members(self._around.ask(f"{url}/readyz", LOOK_S))
        is_ours = found.get("code") == "keys_unusable" or (
            type(found.get("generation")) is int and _KID.fullmatch(str(found.get("kid")))
        )
        return found if is_ours else None

    # ---- the issuer ----

    def issuer(self) -> Iterator[Finding]:
        settings = self._settings
        if settings is None:
            yield _not_looked_at("issuer")
            return
        try:
            answer = self._around.ask(f"{settings.issuer}/.well-known/jwks.json", LOOK_S)
        except NoAnswer as error:
            if settings.sandbox:
                yield ok("issuer", f"{settings.issuer} does not answer: the sandbox's service does not run")
                return
            yield warning(
                "issuer",
                f"{settings.issuer} cannot be reached from here: {error}",
                "look from where the verifiers are; they read the keys there",
            )
            return
        yield of_jwks(answer, settings.issuer, self._keyset(), now=self._around.clock.now())


# What a driver says of a wrong password, as of a host that is down, is the name of an error.
_NO_STORE_MEND: Final = "are host, database, user and password in AUTHSVC_STORE right, is it up, may this user read it?"
_STORE_MEND: Final = "is the database up, its disk full, may this user write? The log of the database says more"


def _failure(act: Callable[[], object]) -> str | None:
    try:
        act()
    except KeysError as error:
        return str(error)
    return None


def _host(url: str) -> str:
    return urlsplit(url).netloc
