"""The one place that builds everything: settings in, a service out."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final

import structlog
from flask import Flask

from authsvc.audit import KeyAudit
from authsvc.claims import Policy
from authsvc.clock import Clock, SystemClock
from authsvc.codes import Codes
from authsvc.errors import KeysError, StoreUnavailable
from authsvc.failures import Failures
from authsvc.http.app import create_app
from authsvc.http.metricsfolder import count_in
from authsvc.http.services import Services, UsersAtWork
from authsvc.keeper import LOOK_EVERY_S, KeyKeeper, Rotation, offset_of
from authsvc.keyfiles import MANIFEST, Change, KeyFolder
from authsvc.keyreport import problems
from authsvc.keyring import Keyring
from authsvc.keyset import Keyset, Kind, Lifecycle, Purpose
from authsvc.login import LoggedIn, Login, TokenTerms
from authsvc.retention import Purger
from authsvc.sealing import sealed_start
from authsvc.session import Session
from authsvc.settings import DEFAULT_ALG, KeySettings, Settings
from authsvc.spans import NO_SPANS, Spans
from authsvc.store import Store, open_store, prepare_store
from authsvc.tokens import VerificationKey
from authsvc.tokenshare import StoredTokens
from authsvc.users import Users, adopt, check_owner, take_over
from authsvc.verifier import Verifier
from authsvc.wechat import AccessTokens, WeChatClient, new_session

if TYPE_CHECKING:
    from authsvc.http.metrics import Metrics

_log = structlog.get_logger("authsvc.keys")

_SAY_EVERY_LOOKS: Final = 60
_STORE_WAIT_S: Final = 5
_REMEMBERED_TOKENS: Final = 10_000  # of each worker: some 12 MB
_MAX_KEPT_KEYS: Final = 500  # of each kind: about half of what the manifest's own limit leaves room for


@dataclass(frozen=True, slots=True)
class Prepared:
    """What there is before the first worker: the keys, and what was done or is worth knowing."""

    keyring: Keyring
    clock_offset: float  # seconds, see keeper
    said: tuple[str, ...]
    audit: KeyAudit


def open_keys(settings: KeySettings) -> KeyFolder:
    return KeyFolder(settings.path, group_read=settings.group_read, passphrase=settings.passphrase)


def prepare(settings: Settings, *, clock: Clock) -> Prepared:
    """Once, before any worker: check the keys, bring the store up to date.

    In the sandbox missing keys are made; production keys never are: an issuer whose keys silently changed would
    log everybody out. Raises: KeysError, StoreUnavailable, SettingsError.
    """
    said = []
    folder = open_keys(settings.keys)
    if settings.sandbox:
        _make_sandbox_folder(settings.keys.path.parent)
        if init_keys(settings.keys, Lifecycle(), clock=clock):
            said.append(f"made the sandbox's own keys in {folder.path}")
    now = clock.now()
    keyring = folder.load(now=now)
    _check_purpose(keyring, settings, folder.path)
    lifetimes = {"token_ttl_s": settings.token_ttl_s, "session_key_ttl_s": settings.session_key_ttl_s}
    raised = keyring.keyset.with_lifetimes(**lifetimes, now=now)
    if not settings.keys.group_read:
        check_rotate_every(raised.lifecycle, settings.keys.rotate_every_s)
    if raised is not keyring.keyset:
        # Before the first token of that life is signed: a later rotation keeps the old key for as long.
        try:
            folder.change(
                lambda keyset, _: keyset.with_lifetimes(**lifetimes, now=now), now=now, random_bytes=os.urandom
            )
        except KeysError as error:
            raise KeysError(
                "AUTHSVC_TOKEN_TTL or AUTHSVC_SESSION_KEY_TTL is longer than the key folder knows, and that cannot be "
                f"noted: {error}; mend: a shorter one, or start once where the folder can be written"
            ) from None
        keyring = folder.load(now=now, known=keyring)
        said.append("noted the longer lifetime of tokens or rows in the manifest")
    said += _said_of_keys(keyring, settings.keys, now=now)
    said += prepare_store(settings.store_url)
    store = open_store(settings.store_url)
    try:
        check_not_revived(keyring.keyset, store, folder.path)
        store.note_revoked_keys({key.id: key.revoked_at for key in keyring.keyset.keys if key.revoked_at is not None})
        users = Users(keys=lambda: keyring, hashed=settings.store_openid == "hash")
        adopt(store, users, now=now)
        if settings.sandbox:
            take_over(store, users)  # its keys and its store are thrown away one by one; nobody's ban is in there
        check_owner(store, users, now=now)
    finally:
        store.close()
    return Prepared(keyring, offset_of(clock), tuple(said), KeyAudit(keyring.keyset, is_shared=True))


def init_keys(settings: KeySettings, lifecycle: Lifecycle, *, clock: Clock) -> bool:
    """Make the first keys; False if there are keys already. Raises: KeysError."""
    return open_keys(settings).init(
        alg=settings.alg or DEFAULT_ALG,
        purpose=Purpose.SANDBOX if settings.sandbox else Purpose.PRODUCTION,
        lifecycle=lifecycle,
        now=clock.now(),
        random_bytes=os.urandom,
    )


def check_rotate_every(lifecycle: Lifecycle, rotate_every_s: int) -> None:
    """Raises: KeysError if keys were made so much faster than they end that the folder would choke on them."""
    least_s = -(-max(lifecycle.sealing_retention_s, lifecycle.signing_retention_s) // _MAX_KEPT_KEYS)
    if 0 < rotate_every_s < least_s:
        raise KeysError(
            f"AUTHSVC_ROTATE_EVERY={rotate_every_s} is too short: what keys sign or seal lives so long that more than "
            f"{_MAX_KEPT_KEYS} of a kind would have to be kept; mend: at least {least_s}, or 0 for rotation by hand"
        )


def build_app(settings: Settings, *, inherited: Prepared | None, metrics_folder: Path | None) -> Flask:
    """The WSGI app of one worker process, with connections and a keeper of its own.

    `metrics_folder`: where all workers count for /metrics; None: there is no such route.

    A worker that takes the place of a dead one begins with the `inherited` keys, and stays with them if it cannot
    read the folder; if they are known not to be the last ones, it does not return before it can.
    Raises: KeysError without `inherited` keys, StoreUnavailable.
    """
    clock = SystemClock()
    folder = open_keys(settings.keys)
    store = open_store(settings.store_url)
    keeper = KeyKeeper(
        folder,
        inherited.keyring if inherited else folder.load(now=clock.now()),
        clock=clock,
        rotation=Rotation(settings.keys.rotate_every_s, settings.keys.alg, os.urandom),
        remember=store.note_revoked_keys,
        clock_offset=inherited.clock_offset if inherited else None,
        audit=inherited.audit if inherited else None,
    )
    keeper.look()
    wait_for_fit_keys(keeper, folder, store, sleep=time.sleep)
    keeper.start()
    # A worker is a process of multiprocessing, which passes over atexit.
    Finalize(None, keeper.stop, exitpriority=10)
    Purger(store, clock=clock, random_bytes=os.urandom, sleep=time.sleep).start()
    spans = _spans() if settings.spans else NO_SPANS
    Finalize(None, spans.stop, exitpriority=5)
    metrics = _metrics(metrics_folder, keeper.current, settings, clock)
    if metrics is not None:
        store = metrics.timed(store)
    services = build_services(
        settings,
        clock=clock,
        keys=keeper.current,
        keys_are_current=lambda: keeper.problem is None,
        store=store,
        metrics=metrics,
        spans=spans,
    )
    return create_app(services)


def _metrics(folder: Path | None, keys: Callable[[], Keyring], settings: Settings, clock: Clock) -> Metrics | None:
    if folder is None:
        return None
    try:
        count_in(folder)
        from authsvc.http.metrics import Metrics  # not before: see there

        return Metrics(folder, keys=keys, rotate_every_s=settings.keys.rotate_every_s, clock=clock)
    except OSError as error:
        _log.error("no_metrics", problem=f"{folder} cannot be written to: {error.strerror}")
        return None


def _spans() -> Spans:
    try:
        from authsvc.otel import start_spans  # an extra

        return start_spans()
    except Exception as error:  # noqa: BLE001 - logins do without, whatever is wrong with a variable
        _log.error("no_spans", problem="OpenTelemetry cannot be set up as its variables say", exc_info=error)
        return NO_SPANS


def wait_for_fit_keys(keeper: KeyKeeper, folder: KeyFolder, store: Store, *, sleep: Callable[[float], None]) -> None:
    """Return when nothing is known against the keys that a new worker would begin with.

    Until then the other workers answer. It would be no help to them if this one failed: the server takes that for a
    crash loop, and ends them all.
    """
    looks = 0
    while True:
        try:
            if keeper.problem is not None:
                _check_not_behind(keeper.current().keyset, folder, keeper.problem)
            # Also where nothing is amiss: the service may have started before a revocation, and the folder have gone
            # back to a state in between.
            check_not_revived(keeper.current().keyset, store, folder.path)
        except KeysError as error:
            if looks % _SAY_EVERY_LOOKS == 0:
                _log.error("worker_waits", problem=str(error))
        else:
            return
        looks += 1
        sleep(LOOK_EVERY_S)
        keeper.look()


def settle_revocation(change: Change, store_url: str, *, sleep: Callable[[float], None]) -> int | None:
    """Tell the side store which keys are revoked, and delete the rows under revoked sealing keys.

    After a revocation it deletes twice, with the time in between that a worker takes to see the new manifest: until
    then it may have sealed under a burnt key. Returns the number of rows; None if no sealing key is revoked.
    Raises: StoreUnavailable.
    """
    burnt = [key for key in change.after.keys if key.revoked_at is not None]
    starts = [sealed_start(key.id) for key in burnt if key.kind is Kind.SEALING]
    prepare_store(store_url)
    store = open_store(store_url)
    try:
        store.note_revoked_keys({key.id: key.revoked_at for key in burnt if key.revoked_at is not None})
        if not starts:
            return None
        dropped = sum(map(store.drop_sealed, starts))
        if change.is_one:
            sleep(change.after.lifecycle.reload_s)
            dropped += sum(map(store.drop_sealed, starts))
        return dropped
    finally:
        store.close()


def check_not_revived(keyset: Keyset, store: Store, path: Path) -> None:
    """Raises: KeysError if the store knows keys as revoked that the folder takes for good: an old backup of it."""
    try:
        known = store.revoked_keys()
    except StoreUnavailable:
        return  # nothing is known against it
    revived = [key.id for key in keyset.keys if key.revoked_at is None and key.id in known]
    if revived:
        raise KeysError(
            f"{path / MANIFEST} is from an old backup: it has keys that were revoked since ({', '.join(revived)}); "
            "mend: restore a newer one, or revoke them again: authsvc keys revoke KID, or --all"
        )


def build_services(
    settings: Settings,
    *,
    clock: Clock,
    keys: Callable[[], Keyring],
    keys_are_current: Callable[[], bool],
    store: Store,
    metrics: Metrics | None,
    spans: Spans,
) -> Services:
    users = Users(keys=keys, hashed=settings.store_openid == "hash")
    wechat = WeChatClient(
        new_session(connections=settings.wechat_in_flight),
        url=settings.wechat_url,
        fallback_url=settings.wechat_fallback_url,
        timeout_s=settings.wechat_timeout_s,
        observe=None if metrics is None else metrics.note_wechat,
        spans=spans,
    )
    login = Login(
        apps=settings.apps,
        wechat=wechat,
        store=store,
        users=users,
        keys=keys,
        # Beyond what WeChat may take there is the store, which waits for a lock.
        codes=Codes[LoggedIn](wait_s=settings.wechat_timeout_s + _STORE_WAIT_S, monotonic=clock.monotonic),
        terms=TokenTerms(
            issuer=settings.issuer,
            audience=settings.audience,
            typ=settings.typ,
            token_ttl_s=settings.token_ttl_s,
            session_key_ttl_s=settings.session_key_ttl_s,
            with_unionid=settings.with_unionid,
        ),
        clock=clock,
        random_bytes=os.urandom,
    )
    session = Session(
        apps=settings.apps,
        wechat=wechat,
        access_tokens=AccessTokens(
            wechat,
            share=StoredTokens(store, keys=keys, clock=clock, random_bytes=os.urandom),
            timeout_s=settings.wechat_timeout_s,
            clock=clock,
            sleep=time.sleep,
        ),
        store=store,
        users=users,
        keys=keys,
        decrypt_window_s=settings.decrypt_window_s,
        failures=Failures(monotonic=clock.monotonic),
        clock=clock,
        random_bytes=os.urandom,
    )
    places = BoundedSemaphore(settings.wechat_in_flight)
    # Half of the threads that never wait for WeChat: the rest is for what waits for nothing, as the JWKS.
    work_places = (settings.threads - settings.wechat_in_flight) // 2
    # With TYP=JWT, tokens of the stricter type that were issued before the switch are still good.
    policy = Policy(
        settings.issuer, settings.audience, typ=tuple({"at+jwt", settings.typ}), appids=tuple(settings.apps)
    )
    return Services(
        login=login,
        session=session,
        verifier=Verifier(_CurrentKeys(keys), policy, remember=_REMEMBERED_TOKENS, clock=clock),
        keys=keys,
        keys_are_current=keys_are_current,
        store=store,
        wechat=wechat,
        places=places,
        # Logins have the other half, also while the calls that need an access token hang.
        call_places=BoundedSemaphore(max(1, settings.wechat_in_flight // 2)),
        users_at_work=UsersAtWork(),
        work_places=BoundedSemaphore(work_places) if work_places else places,
        service_token_digests=tuple(hashlib.sha256(text.encode()).digest() for text in settings.service_tokens),
        trusted_proxies=settings.trusted_proxies,
        issuer=settings.issuer,
        hosts=settings.hosts,
        cors_origins=settings.cors_origins,
        clock=clock,
        access_log=settings.access_log,
        fast_lane=settings.fast_lane,
        login_limit=settings.login_limit,
        ops_token_digest=None if settings.ops_token is None else hashlib.sha256(settings.ops_token.encode()).digest(),
        metrics=metrics,
        spans=spans,
    )


def _make_sandbox_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise KeysError(f"{path.absolute()} is not a folder of ours; mend: remove it")
        path.chmod(0o700)
    except OSError as error:
        raise KeysError(f"{path.absolute()} cannot be made: {error.strerror}") from None


class _CurrentKeys:
    """Looks keys up in whatever keyring is in force."""

    def __init__(self, keys: Callable[[], Keyring]) -> None:
        self._keys = keys

    @property
    def epoch(self) -> object:
        return self._keys()

    def ask(self, *, issued_at: int) -> None:
        """There is nobody who would know more."""

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        return self._keys().find(unverified_kid, now=now)


def _check_purpose(keyring: Keyring, settings: Settings, path: Path) -> None:
    expected = Purpose.SANDBOX if settings.sandbox else Purpose.PRODUCTION
    found = keyring.keyset.purpose
    if found is not expected:
        raise KeysError(f"the keys in {path} are for {found}, this service is for {expected}; mend: set AUTHSVC_KEYS")


def _check_not_behind(inherited: Keyset, folder: KeyFolder, problem: str) -> None:
    """What a worker took over from a process that started long ago may have been rotated or revoked since."""
    try:
        generation = folder.keyset().generation
    except KeysError:
        return  # nothing is known against it
    if generation > inherited.generation:
        raise KeysError(
            f"a new worker has the keys of generation {inherited.generation}, from the start of the service, and those "
            f"of generation {generation} cannot be used: {problem}"
        )


def _said_of_keys(keyring: Keyring, settings: KeySettings, *, now: int) -> list[str]:
    said = [f"WARNING: {p}" for p in problems(keyring.keyset, now=now, rotate_every_s=settings.rotate_every_s)]
    signs_with = keyring.signing_key(now=now).alg
    if settings.alg not in (None, signs_with):
        said.append(
            f"WARNING: the active key signs with {signs_with}; AUTHSVC_ALG={settings.alg} comes into force with the "
            "next rotation (make rotate)"
        )
    if settings.group_read and settings.rotate_every_s:
        said.append(
            "the key folder is read-only here (AUTHSVC_KEYS_GROUP_READ), so this service does not rotate keys by "
            "itself; rotate where the folder can be written (authsvc keys tick)"
        )
    return said
