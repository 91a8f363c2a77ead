"""What is done before and around a service: on a real folder and a real store, by a clock that the test sets."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import structlog.testing

from authsvc.errors import KeysError, StoreUnavailable
from authsvc.keeper import KeyKeeper, Rotation
from authsvc.keyfiles import Change, KeyFolder
from authsvc.keyring import Keyring
from authsvc.keyset import Kind, Lifecycle, Purpose
from authsvc.manifest import dump_manifest
from authsvc.rotation import revoke, revoke_all, rotate, rotate_store
from authsvc.sealing import sealed_start
from authsvc.settings import Settings, load_settings
from authsvc.store import LoginRow, open_store, prepare_store
from authsvc.store.memory import MemoryStore
from authsvc.wiring import prepare, settle_revocation, wait_for_fit_keys
from tests.support.clock import NOW, FakeClock
from tests.support.users import user_id

DAY = 86_400


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return _made(tmp_path)


def _made(place: Path, *, alg: str = "ES256") -> KeyFolder:
    folder = KeyFolder(place / "keys")
    folder.init(alg=alg, purpose=Purpose.PRODUCTION, lifecycle=Lifecycle(), now=NOW, random_bytes=os.urandom)
    return folder


def _settings(place: Path, **more: str) -> Settings:
    environment = {
        "AUTHSVC_APPID": "wx1234567890abcdef",
        "AUTHSVC_SECRET": "secret-of-the-app",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_KEYS": str(place / "keys"),
        "AUTHSVC_STORE": _url(place),
        **{f"AUTHSVC_{name}": value for name, value in more.items()},
    }
    return load_settings(environment, dotenv=None, cores=1)


def _url(place: Path) -> str:
    return f"sqlite:///{place}/authsvc.db"


def _revoked(folder: KeyFolder, *, now: int = NOW) -> Change:
    active = folder.keyset().active(Kind.SIGNING, now=now).id
    return folder.change(
        lambda k, new: revoke(k, new, active, now=now, reason="stolen"), now=now, random_bytes=os.urandom
    )


# ---- before the service -------------------------------------------------------------------------


def test_a_longer_life_is_in_the_manifest_before_the_first_token_of_that_life(
    folder: KeyFolder, tmp_path: Path
) -> None:
    prepared = prepare(_settings(tmp_path, TOKEN_TTL="80000", SESSION_KEY_TTL="300000"), clock=FakeClock())
    assert prepared.keyring.keyset == folder.keyset(), "a worker that takes another's place begins with the newest"
    lifecycle = folder.keyset().lifecycle
    assert (lifecycle.ttl_max_s, lifecycle.session_key_ttl_max_s) == (80_000, 300_000)
    assert any("longer lifetime" in line for line in prepared.said)
    again = prepare(_settings(tmp_path), clock=FakeClock())
    assert folder.keyset().lifecycle == lifecycle, "a shorter one does not make the tokens that are out shorter"
    assert not any("longer lifetime" in line for line in again.said)


def test_a_start_that_works_does_not_make_the_next_one_impossible(folder: KeyFolder, tmp_path: Path) -> None:
    """The longer life counts for how often keys may be rotated, before it is noted for good."""
    with pytest.raises(KeysError, match="at least 5185"):
        prepare(_settings(tmp_path, ROTATE_EVERY="3600", SESSION_KEY_TTL="2592000"), clock=FakeClock())
    assert folder.keyset().generation == 1
    prepare(_settings(tmp_path, ROTATE_EVERY="3600"), clock=FakeClock())


def test_a_longer_life_that_cannot_be_noted_does_not_start(folder: KeyFolder, tmp_path: Path) -> None:
    for path in folder.path.iterdir():
        path.chmod(0o640)
    folder.path.chmod(0o750)
    settings = _settings(tmp_path, TOKEN_TTL="80000", KEYS_GROUP_READ="1")
    with pytest.raises(KeysError, match=r"AUTHSVC_TOKEN_TTL .* mend"):
        prepare(settings, clock=FakeClock())
    assert KeyFolder(folder.path, group_read=True).keyset().generation == 1


def test_keys_are_not_rotated_so_often_that_the_folder_chokes_on_those_that_have_to_be_kept(
    folder: KeyFolder, tmp_path: Path
) -> None:
    with pytest.raises(KeysError, match="at least 519") as refused:
        prepare(_settings(tmp_path, ROTATE_EVERY="518"), clock=FakeClock())
    assert "518" in str(refused.value)
    prepare(_settings(tmp_path, ROTATE_EVERY="519"), clock=FakeClock())
    prepare(_settings(tmp_path, ROTATE_EVERY="0"), clock=FakeClock())


def test_with_as_many_keys_as_may_have_to_be_kept_the_manifest_stays_far_below_its_limit(tmp_path: Path) -> None:
    keyset = _made(tmp_path, alg="RS256").keyset()
    kept = [key for key in keyset.keys if key.kind is not Kind.INDEX and key.activate_at is not None]
    assert len(kept) == 2, "one that signs and one that seals"
    assert len(dump_manifest(replace(keyset, keys=tuple(kept) * 500))) < (1 << 20) * 2 / 3


# ---- a worker that takes the place of another ---------------------------------------------------


def _keeper(folder: KeyFolder, inherited: Keyring, clock: FakeClock) -> KeyKeeper:
    rotation = Rotation(30 * DAY, None, os.urandom)
    return KeyKeeper(folder, inherited, clock=clock, rotation=rotation, remember=lambda _: None)


def test_a_new_worker_does_not_begin_with_keys_that_are_not_the_last_ones(folder: KeyFolder, tmp_path: Path) -> None:
    clock = FakeClock()
    keeper = _keeper(folder, folder.load(now=NOW), clock)
    folder.change(lambda k, new: rotate(k, new, now=NOW, early=True), now=NOW, random_bytes=os.urandom)
    standby = folder.keyset().standby(now=NOW)
    assert standby is not None
    (folder.path / standby.file).rename(tmp_path / "away")
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.at += int(seconds)
        if len(slept) == 130:
            (tmp_path / "away").rename(folder.path / standby.file)

    keeper.look()
    with structlog.testing.capture_logs() as logs:
        wait_for_fit_keys(keeper, folder, MemoryStore(), sleep=sleep)
    assert keeper.current().keyset.generation == 2
    assert 130 <= len(slept) <= 135
    waits = [line for line in logs if line["event"] == "worker_waits"]
    assert len(waits) == 3, "at once, and then once a minute"
    assert standby.file in waits[0]["problem"]


def test_a_new_worker_does_not_begin_with_keys_that_the_store_knows_as_revoked(folder: KeyFolder) -> None:
    clock = FakeClock()
    inherited = folder.load(now=NOW)
    keeper = _keeper(folder, inherited, clock)
    store = MemoryStore()
    store.note_revoked_keys({inherited.keyset.active(Kind.SIGNING, now=NOW).id: NOW})
    folder.path.chmod(0o755)  # nothing is to be read of it
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.at += int(seconds)
        if len(slept) == 10:
            folder.path.chmod(0o700)
            _revoked(folder)

    keeper.look()
    wait_for_fit_keys(keeper, folder, store, sleep=sleep)
    assert keeper.current().keyset.generation == 2
    assert len(slept) >= 10


def test_a_new_worker_does_not_take_over_a_backup_from_between_the_start_and_a_revocation(
    folder: KeyFolder, tmp_path: Path
) -> None:
    """For its own keys, those of the start, that backup is news."""
    inherited, clock, store = folder.load(now=NOW), FakeClock(), MemoryStore()
    folder.change(lambda k, new: rotate_store(k, new, now=NOW), now=NOW, random_bytes=os.urandom)
    shutil.copytree(folder.path, tmp_path / "backup")
    revoked = _revoked(folder).after
    store.note_revoked_keys({key.id: NOW for key in revoked.keys if key.revoked_at is not None})
    shutil.copytree(folder.path, tmp_path / "newest")
    shutil.copytree(tmp_path / "backup", folder.path, dirs_exist_ok=True)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.at += int(seconds)
        if len(slept) == 3:
            shutil.copytree(tmp_path / "newest", folder.path, dirs_exist_ok=True)

    keeper = _keeper(folder, inherited, clock)
    keeper.look()
    with structlog.testing.capture_logs() as logs:
        wait_for_fit_keys(keeper, folder, store, sleep=sleep)
    assert keeper.current().keyset == revoked
    assert len(slept) == 3
    assert "old backup" in logs[0]["problem"]


@pytest.mark.parametrize("what", ["nothing to read", "an older backup", "a store that does not answer"])
def test_a_new_worker_against_whose_keys_nothing_is_known_begins_at_once(
    folder: KeyFolder, tmp_path: Path, what: str
) -> None:
    inherited = folder.load(now=NOW)
    store = open_store(_url(tmp_path)) if what == "a store that does not answer" else MemoryStore()
    if what == "an older backup":
        inherited = replace(inherited, keyset=replace(inherited.keyset, generation=7))
    else:
        folder.path.chmod(0o755)
    keeper = _keeper(folder, inherited, FakeClock())
    keeper.look()
    wait_for_fit_keys(keeper, folder, store, sleep=lambda _: pytest.fail("it waits"))
    assert keeper.problem is not None
    assert keeper.current() is inherited


# ---- after a revocation -------------------------------------------------------------------------


def _log_in(place: Path, key_id: str, openid: str) -> None:
    store = open_store(_url(place))
    row = LoginRow(
        user_id(openid=openid), f"sid-{openid}", sealed_start(key_id) + b"rest", NOW * 1_000_000, NOW, NOW + DAY
    )
    store.put_login(row, unionid=None)
    store.close()


def test_rows_that_a_slower_worker_sealed_under_the_burnt_key_meanwhile_are_deleted_too(
    folder: KeyFolder, tmp_path: Path
) -> None:
    prepare_store(_url(tmp_path))
    old = folder.keyset().active(Kind.SEALING, now=NOW).id
    _log_in(tmp_path, old, "before")
    change = folder.change(lambda k, new: revoke_all(k, new, now=NOW, reason="x"), now=NOW, random_bytes=os.urandom)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        _log_in(tmp_path, old, "meanwhile")
        _log_in(tmp_path, change.after.active(Kind.SEALING, now=NOW).id, "after")

    assert settle_revocation(change, _url(tmp_path), sleep=sleep) == 2
    assert slept == [change.after.lifecycle.reload_s]
    store = open_store(_url(tmp_path))
    assert [bool(store.logins(user_id(openid=openid), now=NOW)) for openid in ("before", "meanwhile", "after")] == [
        False,
        False,
        True,
    ]
    assert store.revoked_keys().keys() == {key.id for key in change.after.keys if key.revoked_at is not None}
    store.close()


def test_the_revocation_of_a_signing_key_deletes_no_rows_and_waits_for_nobody(
    folder: KeyFolder, tmp_path: Path
) -> None:
    prepare_store(_url(tmp_path))
    _log_in(tmp_path, folder.keyset().active(Kind.SEALING, now=NOW).id, "o1")
    assert settle_revocation(_revoked(folder), _url(tmp_path), sleep=lambda _: pytest.fail("it waits")) is None
    store = open_store(_url(tmp_path))
    assert len(store.logins(user_id(openid="o1"), now=NOW)) == 1
    store.close()


def test_a_store_that_cannot_be_told_of_a_revocation_is_an_error(folder: KeyFolder, tmp_path: Path) -> None:
    (tmp_path / "authsvc.db").write_bytes(b"this is no database")
    with pytest.raises(StoreUnavailable):
        settle_revocation(_revoked(folder), _url(tmp_path), sleep=lambda _: None)
