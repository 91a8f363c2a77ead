"""The audit log of a service with several workers: every change of the key folder once, with who did it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import structlog.testing
from structlog.typing import EventDict

from authsvc.audit import KeyAudit
from authsvc.keeper import KeyKeeper, Rotation
from authsvc.keyfiles import Change, KeyFolder, Transition
from authsvc.keyset import Kind
from authsvc.rotation import revoke, rotate
from tests.support.clock import NOW, FakeClock
from tests.support.keys import key_folder

MONTH = 30 * 86_400


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return key_folder(tmp_path / "keys")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW + MONTH - 1)


@pytest.fixture
def audit(folder: KeyFolder) -> KeyAudit:
    return KeyAudit(folder.keyset(), is_shared=True)


def _worker(folder: KeyFolder, clock: FakeClock, audit: KeyAudit) -> KeyKeeper:
    """With what a fork leaves it: an object of its own, and the same open file."""
    return KeyKeeper(
        KeyFolder(folder.path),
        folder.load(now=clock.at),
        clock=clock,
        rotation=Rotation(MONTH, None, os.urandom),
        remember=lambda _: None,
        audit=copy.copy(audit),
    )


def _change(folder: KeyFolder, transition: Transition, *, now: int) -> Change:
    return KeyFolder(folder.path).change(transition, now=now, random_bytes=os.urandom)


def _said_in(*keepers: KeyKeeper) -> list[EventDict]:
    with structlog.testing.capture_logs() as logs:
        for keeper in keepers:
            keeper.look()
    return [line for line in logs if line["event"] in ("keys_rotated", "keys_changed")]


def test_what_another_process_did_is_one_line_of_all_workers(
    folder: KeyFolder, clock: FakeClock, audit: KeyAudit
) -> None:
    workers = [_worker(folder, clock, audit) for _ in range(3)]
    assert _said_in(*workers) == []
    old = folder.keyset().active(Kind.SIGNING, now=clock.at).id
    _change(folder, lambda k, new: revoke(k, new, old, now=clock.at, reason="on a USB stick"), now=clock.at)
    (line,) = _said_in(*workers)
    new = folder.keyset().active(Kind.SIGNING, now=clock.at).id
    assert (line["event"], line["by"], line["generation"], line["kid"]) == ("keys_changed", "another process", 2, new)
    assert f"revoked {old}: on a USB stick" in line["steps"]
    assert f"takes_over {new}" in line["steps"]
    assert _said_in(*workers) == []


def test_what_is_to_come_has_its_time(folder: KeyFolder, clock: FakeClock, audit: KeyAudit) -> None:
    clock.at = NOW + 60
    worker = _worker(folder, clock, audit)
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    (line,) = _said_in(worker)
    old = folder.keyset().active(Kind.SIGNING, now=clock.at).id
    assert f"retires {old} at 2027-01-15T08:30:00Z" in line["steps"]  # NOW and the lead


def test_a_rotation_of_the_service_itself_is_one_line_and_nobody_elses(
    folder: KeyFolder, clock: FakeClock, audit: KeyAudit
) -> None:
    workers = [_worker(folder, clock, audit) for _ in range(3)]
    assert _said_in(*workers) == []
    clock.at += 1
    (line,) = _said_in(*workers, *workers)
    assert (line["event"], line["by"], line["generation"]) == ("keys_rotated", "the service itself", 2)


def test_what_came_before_a_rotation_of_the_service_is_told_apart_from_it(
    folder: KeyFolder, clock: FakeClock, audit: KeyAudit
) -> None:
    before = folder.keyset()
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    change = _change(folder, lambda k, new: rotate(k, new, now=clock.at, early=True), now=clock.at)
    assert audit.saw(before, now=clock.at)
    with structlog.testing.capture_logs() as logs:
        audit.rotated(change, now=clock.at)
    assert [(line["event"], line["generation"]) for line in logs] == [("keys_changed", 2), ("keys_rotated", 3)]


def test_a_worker_that_takes_anothers_place_repeats_nothing(
    folder: KeyFolder, clock: FakeClock, audit: KeyAudit
) -> None:
    keys_of_the_start = _worker(folder, clock, audit)
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    assert len(_said_in(_worker(folder, clock, audit), keys_of_the_start)) == 0 + 1
    late = _worker(folder, clock, audit)
    late._keyring = keys_of_the_start.current()
    assert _said_in(late) == []


def test_while_another_process_is_at_it_nobody_waits_and_nothing_is_lost(
    folder: KeyFolder, clock: FakeClock, audit: KeyAudit
) -> None:
    worker = _worker(folder, clock, audit)
    worker.look()
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    assert audit._file is not None
    number = audit._file
    holds = f"import fcntl, sys; fcntl.lockf({number}, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holds], pass_fds=[number], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert _said_in(worker) == []
        assert worker.current().keyset.generation == 2, "the keys are in force all the same"
        clock.at += 2 * MONTH
        assert _said_in(worker) == []
        assert folder.keyset().generation == 2, "a rotation waits until it can have its line"
        other.kill()
    assert [line["event"] for line in _said_in(worker)] == ["keys_changed", "keys_rotated"]


def test_where_there_is_no_room_for_a_file_each_worker_has_its_own_line(
    folder: KeyFolder, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    audit = KeyAudit(folder.keyset(), is_shared=True)
    workers = [_worker(folder, clock, audit) for _ in range(2)]
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    assert [line["event"] for line in _said_in(*workers)] == ["keys_changed"] * 2


def test_a_file_that_was_written_by_half_costs_no_line(folder: KeyFolder, clock: FakeClock, audit: KeyAudit) -> None:
    worker = _worker(folder, clock, audit)
    assert audit._file is not None
    os.ftruncate(audit._file, 10)
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    assert [line["event"] for line in _said_in(worker)] == ["keys_changed"]
