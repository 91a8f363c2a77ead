"""Readers of the key folder while a writer changes it without pause: each gets one generation, whole."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from authsvc.errors import KeysError
from authsvc.jwk import public_jwk
from authsvc.keyfiles import MANIFEST, KeyFolder
from authsvc.keyparts import secret_key_id
from authsvc.keyring import Keyring
from authsvc.keyset import Keyset, Kind, Lifecycle, Purpose
from authsvc.manifest import dump_manifest, parse_manifest
from authsvc.rotation import NewKeys, prune, revoke, rotate, rotate_store
from tests.support.clock import NOW
from tests.support.secret_mount import SecretMount

STORM_S = 3.0
READERS = 2

# The writer's clock goes one second with each change, so that keys retire and end all the time. Signing keys are kept
# for little more than the skew, else the manifest would be long and the storm slow.
POLICY = Lifecycle(
    lead_s=10,
    reload_s=0,
    replication_s=0,
    jwks_max_age_s=0,
    jwks_stale_while_revalidate_s=0,
    verifier_cache_s=0,
    skew_s=10,
    ttl_max_s=0,
)


# ---- the writer ---------------------------------------------------------------------------------


def _rotate(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return rotate(keyset, new, now=now, early=True)


def _rotate_for_later(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return rotate(keyset, new, now=now)


def _rotate_store(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return rotate_store(keyset, new, now=now)


def _revoke_active(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return revoke(keyset, new, keyset.active(Kind.SIGNING, now=now).id, now=now, reason="storm")


def _revoke_standby(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return revoke(keyset, new, keyset.pending(Kind.SIGNING, now=now)[-1].id, now=now, reason="storm")


def _revoke_sealing(keyset: Keyset, new: NewKeys, now: int) -> Keyset:
    return revoke(keyset, new, keyset.active(Kind.SEALING, now=now).id, now=now, reason="storm")


def _prune(keyset: Keyset, _new: NewKeys, now: int) -> Keyset:
    return prune(keyset, now=now)


# With how often each comes. What is revoked stays in the manifest for good, so it is the rarest; it is also what
# destroys parts at once, under the hands of readers.
_TRANSITIONS: dict[Callable[[Keyset, NewKeys, int], Keyset], int] = {
    _rotate: 20,
    _rotate_for_later: 5,
    _rotate_store: 5,
    _revoke_active: 2,
    _revoke_standby: 2,
    _revoke_sealing: 1,
    _prune: 10,
}


class _Writer:
    """Changes a folder by the real transitions, as fast as it can."""

    def __init__(self, path: Path) -> None:
        self._keys = KeyFolder(path)
        self._chance = random.Random(0)

    def change(self, now: int) -> Keyset:
        (transition,) = self._chance.choices(list(_TRANSITIONS), weights=list(_TRANSITIONS.values()))
        return self._keys.change(lambda k, new: transition(k, new, now), now=now, random_bytes=os.urandom).after


# ---- the processes ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shared:
    now: Synchronized[int]  # the writer's clock
    begin: Barrier
    stop: Event


_shared: _Shared


def _share(shared: _Shared) -> None:
    global _shared
    _shared = shared


def _storm(origin: Path, mount: Path | None) -> list[str]:
    """The writer process. Returns the SHA-256 of every manifest that there was."""
    writer = _Writer(origin)
    secret = SecretMount(mount) if mount else None
    written = [_digest(KeyFolder(origin).keyset())]
    if secret:
        secret.fill(origin)
    _shared.begin.wait(30)
    end_at = time.monotonic() + STORM_S
    with pytest.MonkeyPatch.context() as patch:
        # The storm would blow no faster than the disk; what is on it when the power goes is another test's.
        patch.setattr(os, "fsync", lambda _descriptor: None)
        try:
            while time.monotonic() < end_at:
                now = _shared.now.value + 1
                _shared.now.value = now
                written.append(_digest(writer.change(now)))
                if secret:
                    secret.fill(origin)
        finally:
            _shared.stop.set()
    return written


@dataclass
class _Seen:
    """What a reader saw."""

    manifests: set[str] = field(default_factory=set)
    loads: int = 0
    late: int = 0
    failures: list[str] = field(default_factory=list)


def _read(path: Path, group_read: bool) -> _Seen:
    """A reader process: everything anew, then as the keeper of a worker does, with what it has; then the manifest."""
    keys = KeyFolder(path, group_read=group_read)
    seen = _Seen()
    ring: Keyring | None = None
    last: Keyset | None = None
    _shared.begin.wait(30)
    while not _shared.stop.is_set():
        for known in (None, ring):
            now = _shared.now.value
            seen.loads += 1
            try:
                ring = keys.load(now=now, known=known)
                _check_is_whole(ring, now=now)
                manifest = keys.keyset()
                if not group_read:
                    # As others may read it, who do not try again.
                    parse_manifest((path / MANIFEST).read_bytes())
            except (KeysError, AssertionError) as error:
                if _shared.now.value > now + POLICY.skew_s and str(error).startswith("the clock is"):
                    # This process had to wait for a core while the writer's clock ran on; a host's own would have too.
                    seen.late += 1
                    continue
                seen.failures.append(f"at {now}, the writer at {_shared.now.value}: {error}")
                continue
            for keyset in (ring.keyset, manifest):
                if keyset == last:
                    continue
                seen.manifests.add(_digest(keyset))
                if last is not None and keyset.generation <= last.generation:
                    seen.failures.append(f"generation {keyset.generation} after {last.generation}")
                last = keyset
    return seen


def _digest(keyset: Keyset) -> str:
    return hashlib.sha256(dump_manifest(keyset)).hexdigest()


def _check_is_whole(ring: Keyring, *, now: int) -> None:
    """Every private part that is needed is there and is the one that the manifest means."""
    for record in ring.keyset.keys:
        if record.needs_part(now=now):
            assert record.id in ring.private_keys or record.id in ring.secret_keys, record
    for kid, key in ring.private_keys.items():
        assert public_jwk(key.public_key()).kid == kid
    for key_id, secret in ring.secret_keys.items():
        assert secret_key_id(secret) == key_id
    assert ring.prove_signing(now=now) == ring.keyset.active(Kind.SIGNING, now=now).id
    assert ring.sealing_key(now=now).id == ring.keyset.active(Kind.SEALING, now=now).id


@contextmanager
def _processes() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context.Value("q", NOW), context.Barrier(READERS + 1), context.Event())
    with ProcessPoolExecutor(READERS + 1, context, _share, (shared,)) as pool:
        yield pool


@pytest.mark.parametrize("kind", ["a folder", "a Kubernetes Secret"])
def test_no_reader_ever_sees_a_set_of_keys_that_is_mixed_or_broken(tmp_path: Path, kind: str) -> None:
    origin, mount = tmp_path / "keys", tmp_path / "mount" if kind == "a Kubernetes Secret" else None
    KeyFolder(origin).init(alg="ES256", purpose=Purpose.PRODUCTION, lifecycle=POLICY, now=NOW, random_bytes=os.urandom)
    with _processes() as pool:
        writer = pool.submit(_storm, origin, mount)
        readers = [pool.submit(_read, mount or origin, mount is not None) for _ in range(READERS)]
        written, seen = writer.result(60), [reader.result(60) for reader in readers]
    different = set().union(*(one.manifests for one in seen))
    loads = sum(one.loads for one in seen)
    late = sum(one.late for one in seen)
    print(
        f"{kind}: {len(set(written))} manifests written, {len(different)} of them read, {loads} loads, {late} too late"
    )
    failures = [failure for one in seen for failure in one.failures]
    assert not failures, "\n".join([f"{len(failures)} of {loads} loads:", *failures[:5]])
    assert different <= set(written), "a manifest that nobody wrote"
    assert len(different) > 10, "no storm, or no reader in it"
