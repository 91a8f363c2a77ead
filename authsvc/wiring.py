"""The one place that builds everything: settings in, a service out."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore

import structlog
from flask import Flask

from authsvc.claims import Policy
from authsvc.clock import Clock, SystemClock
from authsvc.errors import KeysError
from authsvc.http.app import create_app
from authsvc.http.services import Services
from authsvc.keyfiles import KeyFolder
from authsvc.keyring import Keyring
from authsvc.keyset import Lifecycle, Purpose
from authsvc.login import Login, TokenTerms
from authsvc.settings import KeySettings, Settings
from authsvc.store import Store, open_store, prepare_store
from authsvc.tokens import VerificationKey
from authsvc.verifier import Verifier
from authsvc.wechat import WeChatClient, new_session

_log = structlog.get_logger("authsvc.wiring")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What there is before the first worker: the keys, and what was done or is worth knowing."""

    keyring: Keyring
    said: tuple[str, ...]


def prepare(settings: Settings, *, clock: Clock) -> Prepared:
    """Once, before any worker: check the keys, bring the store up to date.

    In the sandbox missing keys are made; production keys never are: an issuer whose keys silently changed would
    log everybody out. Raises: KeysError, StoreUnavailable.
    """
    said = []
    folder = KeyFolder(settings.keys, group_read=settings.keys_group_read)
    if settings.sandbox:
        _make_sandbox_folder(settings.keys.parent)
        if init_keys(KeySettings(settings.keys, False, settings.alg, True), Lifecycle(), clock=clock):
            said.append(f"made the sandbox's own keys in {folder.path}")
    now = clock.now()
    keyring = folder.load(now=now)
    _check_purpose(keyring, settings, folder.path)
    lifetimes = {"token_ttl_s": settings.token_ttl_s, "session_key_ttl_s": settings.session_key_ttl_s}
    if keyring.keyset.with_lifetimes(**lifetimes, now=now) is not keyring.keyset:
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
        said.append("noted the longer lifetime of tokens or rows in the manifest")
    if keyring.signing_key(now=now).alg != settings.alg:
        said.append(
            f"WARNING: the keys in {folder.path} sign with {keyring.signing_key(now=now).alg}; "
            f"AUTHSVC_ALG={settings.alg} counts for keys that are still to be made"
        )
    prepare_store(settings.store_url)
    return Prepared(keyring, tuple(said))


def init_keys(settings: KeySettings, lifecycle: Lifecycle, *, clock: Clock) -> bool:
    """Make the first keys; False if there are keys already. Raises: KeysError."""
    return KeyFolder(settings.path, group_read=settings.group_read).init(
        alg=settings.alg,
        purpose=Purpose.SANDBOX if settings.sandbox else Purpose.PRODUCTION,
        lifecycle=lifecycle,
        now=clock.now(),
        random_bytes=os.urandom,
    )


def build_app(settings: Settings, *, inherited: Keyring | None) -> Flask:
    """The WSGI app of one worker process, with connections of its own.

    A worker that takes the place of a dead one goes on with the `inherited` keys if it cannot read the folder.
    """
    clock = SystemClock()
    try:
        keyring = KeyFolder(settings.keys, group_read=settings.keys_group_read).load(now=clock.now())
    except KeysError as error:
        _log.error("keys_unusable", problem=str(error), going_on_with="the keys from the start of the service")
        if inherited is None:
            raise
        keyring = inherited
    return create_app(build_services(settings, clock=clock, keys=lambda: keyring, store=open_store(settings.store_url)))


def build_services(settings: Settings, *, clock: Clock, keys: Callable[[], Keyring], store: Store) -> Services:
    wechat = WeChatClient(
        new_session(connections=settings.wechat_in_flight),
        url=settings.wechat_url,
        fallback_url=settings.wechat_fallback_url,
        timeout_s=settings.wechat_timeout_s,
    )
    login = Login(
        apps=settings.apps,
        wechat=wechat,
        store=store,
        keys=keys,
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
    # With TYP=JWT, tokens of the stricter type that were issued before the switch are still good.
    policy = Policy(settings.issuer, settings.audience, typ=tuple({"at+jwt", settings.typ}))
    return Services(
        login=login,
        verifier=Verifier(_CurrentKeys(keys), policy, clock=clock),
        keys=keys,
        store=store,
        wechat=wechat,
        places=BoundedSemaphore(settings.wechat_in_flight),
        issuer=settings.issuer,
        clock=clock,
        access_log=settings.access_log,
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

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        return self._keys().find(unverified_kid, now=now)


def _check_purpose(keyring: Keyring, settings: Settings, path: Path) -> None:
    expected = Purpose.SANDBOX if settings.sandbox else Purpose.PRODUCTION
    found = keyring.keyset.purpose
    if found is not expected:
        raise KeysError(f"the keys in {path} are for {found}, this service is for {expected}; mend: set AUTHSVC_KEYS")
