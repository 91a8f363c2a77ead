"""The keeper of a worker's keys, look by look, over a real folder and a clock that the test sets."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from authsvc.errors import KeysError, StoreUnavailable
from authsvc.keeper import KeyKeeper, Rotation, offset_of
from authsvc.keyfiles import MANIFEST, Change, KeyFolder, Transition
from authsvc.keyring import Keyring
from authsvc.keyset import Kind, Lifecycle, Purpose
from authsvc.rotation import prune, revoke, rotate, rotate_store
from tests.support.clock import NOW, FakeClock
from tests.support.keys import key_folder

MONTH = 30 * 86_400


class Memory:
    """What the side store remembers."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.asked = 0
        self.is_down = False

    def __call__(self, revoked: Mapping[str, int]) -> None:
        self.asked += 1
        if self.is_down:
            raise StoreUnavailable("gone")
        self.known |= revoked


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return key_folder(tmp_path / "keys")


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW + MONTH - 1)


@pytest.fixture
def keeper(folder: KeyFolder, clock: FakeClock, memory: Memory) -> KeyKeeper:
    return _keeper(folder, clock, memory)


def _keeper(folder: KeyFolder, clock: FakeClock, memory: Memory, *, every_s: int = MONTH) -> KeyKeeper:
    return KeyKeeper(
        folder,
        folder.load(now=clock.at),
        clock=clock,
        rotation=Rotation(every_s, None, os.urandom),
        remember=memory,
    )


def _change(folder: KeyFolder, transition: Transition, *, now: int) -> Change:
    return KeyFolder(folder.path).change(transition, now=now, random_bytes=os.urandom)


def _kid(keeper: KeyKeeper, clock: FakeClock) -> str:
    return keeper.current().signing_key(now=clock.at).kid


def test_a_newer_manifest_is_in_force_after_the_next_look(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock
) -> None:
    keeper.look()
    before = _kid(keeper, clock)
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    assert _kid(keeper, clock) == before
    keeper.look()
    assert _kid(keeper, clock) != before
    assert keeper.problem is None


def test_a_folder_that_has_not_changed_is_not_read_again(
    folder: KeyFolder, keeper: KeyKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.look()
    monkeypatch.setattr(folder, "load", lambda **_: pytest.fail("the folder was read"))
    keeper.look()


def test_a_broken_manifest_is_said_once_and_the_keys_stay_in_force(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock
) -> None:
    keeper.look()
    before = keeper.current()
    good = (folder.path / MANIFEST).read_bytes()
    (folder.path / MANIFEST).write_bytes(b"{")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            keeper.look()
    assert [(line["event"], line["log_level"]) for line in logs] == [("keys_not_reloaded", "error")]
    assert MANIFEST in logs[0]["problem"]
    assert keeper.current() is before
    assert keeper.problem is not None
    (folder.path / MANIFEST).write_bytes(good)
    keeper.look()
    assert keeper.problem is None


def test_an_older_manifest_is_not_taken_back(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, tmp_path: Path
) -> None:
    """The backup has the stolen key as a good one."""
    shutil.copytree(folder.path, tmp_path / "backup")
    stolen = _kid(keeper, clock)
    _change(folder, lambda k, new: revoke(k, new, stolen, now=clock.at, reason="stolen"), now=clock.at)
    keeper.look()
    shutil.copytree(tmp_path / "backup", folder.path, dirs_exist_ok=True)
    keeper.look()
    found = keeper.current().find(stolen, now=clock.at)
    assert found is not None
    assert found.revoked
    assert "old backup" in (keeper.problem or "")


def test_an_old_backup_that_commands_have_lifted_above_our_generation_is_not_taken_either(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, tmp_path: Path
) -> None:
    shutil.copytree(folder.path, tmp_path / "backup")
    stolen = _kid(keeper, clock)
    _change(folder, lambda k, new: revoke(k, new, stolen, now=clock.at, reason="stolen"), now=clock.at)
    keeper.look()
    shutil.copytree(tmp_path / "backup", folder.path, dirs_exist_ok=True)
    for _ in range(3):
        _change(folder, lambda k, new: rotate(k, new, now=clock.at, early=True), now=clock.at)
    clock.at += 3 * MONTH  # and the keeper itself does nothing to a folder that it does not trust
    for _ in range(3):
        keeper.look()
    assert keeper.problem is not None
    found = keeper.current().find(stolen, now=clock.at)
    assert found is not None
    assert found.revoked


def test_another_manifest_of_the_same_generation_is_not_taken(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, tmp_path: Path
) -> None:
    keeper.look()
    shutil.copytree(folder.path, tmp_path / "twin")
    for place in (folder, KeyFolder(tmp_path / "twin")):
        _change(place, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    keeper.look()
    before = _kid(keeper, clock)
    shutil.copytree(tmp_path / "twin", folder.path, dirs_exist_ok=True)
    keeper.look()
    assert (_kid(keeper, clock), keeper.problem is None) == (before, False)


def test_on_the_second_it_is_due_the_keeper_rotates_both_kinds_and_takes_them_over(
    keeper: KeyKeeper, clock: FakeClock
) -> None:
    keeper.look()
    before = _kid(keeper, clock)
    clock.at += 1
    with structlog.testing.capture_logs() as logs:
        keeper.look()
    assert _kid(keeper, clock) != before
    assert keeper.current().keyset.scheduled(Kind.SEALING, now=clock.at) is not None
    assert [line["event"] for line in logs] == ["keys_rotated", "keys_loaded"]


def test_of_two_keepers_one_rotates_and_the_other_follows(folder: KeyFolder, clock: FakeClock, memory: Memory) -> None:
    keepers = [_keeper(KeyFolder(folder.path), clock, memory) for _ in range(2)]
    for keeper in keepers:
        keeper.look()
    clock.at += 1
    for keeper in keepers:
        keeper.look()
    assert {keeper.current().keyset.generation for keeper in keepers} == {2}
    assert len({_kid(keeper, clock) for keeper in keepers}) == 1


def test_with_rotation_by_hand_private_parts_that_have_ended_are_destroyed_and_nothing_else_is_done(
    folder: KeyFolder, clock: FakeClock, memory: Memory
) -> None:
    """Another host may be the one that writes: what this one wrote by itself, its copy alone would have."""
    old = _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at).before
    manifest = (folder.path / MANIFEST).read_bytes()
    underway = folder.path / f"seal-{'0' * 8}.key"
    underway.touch(0o600)
    (folder.path / ".journal").write_text(f'["{underway.name}"]')
    part = folder.path / old.active(Kind.SIGNING, now=clock.at).file
    keeper = _keeper(folder, clock, memory, every_s=0)
    keeper.look()
    clock.at += Lifecycle().last_use_s - 1
    keeper.look()
    assert part.exists()
    clock.at += 1
    keeper.look()
    assert not part.exists()
    clock.at += 100 * MONTH
    keeper.look()
    assert (folder.path / MANIFEST).read_bytes() == manifest
    assert underway.exists()
    assert (folder.path / ".journal").exists()
    (folder.path / ".lock").unlink()
    keeper.look()
    assert not (folder.path / ".lock").exists(), "it has nothing to do, and locks nobody out to do it"


def _copy_of(folder: KeyFolder, tmp_path: Path) -> KeyFolder:
    shutil.copytree(folder.path, tmp_path / "copy", dirs_exist_ok=True)
    return KeyFolder(tmp_path / "copy")


def test_on_a_copy_of_the_folder_parts_go_that_a_newer_manifest_does_not_name_any_more(
    folder: KeyFolder, clock: FakeClock, memory: Memory, tmp_path: Path
) -> None:
    _change(folder, lambda k, new: rotate_store(k, new, now=clock.at), now=clock.at)
    old = folder.keyset().active(Kind.SEALING, now=clock.at)
    copy = _copy_of(folder, tmp_path)
    keeper = _keeper(copy, clock, memory, every_s=0)
    keeper.look()
    clock.at += 4 * 86_400
    _change(folder, lambda k, _: prune(k, now=clock.at), now=clock.at)
    assert folder.keyset().key(old.id) is None, "forgotten by its writer before the copy had looked again"
    copy = _copy_of(folder, tmp_path)
    keeper.look()
    assert not (copy.path / old.file).exists()
    assert copy.inspect(now=clock.at).strays == ()


def test_on_a_copy_of_the_folder_a_part_that_comes_back_goes_again(
    folder: KeyFolder, clock: FakeClock, memory: Memory, tmp_path: Path
) -> None:
    """A copy whose clock is ahead destroys it before the writer does, and the next rsync brings it back."""
    old = _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at).before.active(
        Kind.SIGNING, now=clock.at
    )
    copy = _copy_of(folder, tmp_path)
    keeper = _keeper(copy, clock, memory, every_s=0)
    clock.at += Lifecycle().last_use_s
    keeper.look()
    assert not (copy.path / old.file).exists()
    _copy_of(folder, tmp_path)
    assert (copy.path / old.file).exists()
    for _ in range(61):
        clock.at += 1
        keeper.look()
    assert not (copy.path / old.file).exists()


def test_a_part_that_is_copied_before_its_manifest_is_left_alone(
    folder: KeyFolder, clock: FakeClock, memory: Memory, tmp_path: Path
) -> None:
    copy = _copy_of(folder, tmp_path)
    keeper = _keeper(copy, clock, memory, every_s=0)
    keeper.look()
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    manifest = (copy.path / MANIFEST).read_bytes()
    copy = _copy_of(folder, tmp_path)
    (copy.path / MANIFEST).write_bytes(manifest)
    for _ in range(120):
        clock.at += 1
        keeper.look()
    assert {path.name for path in copy.path.glob("*-*")} >= {path.name for path in folder.path.glob("*-*")}


def test_a_folder_that_cannot_be_written_is_said_once_and_nothing_stops(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.look()
    clock.at += 1
    before = _kid(keeper, clock)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logs:
        patched.setattr(os, "write", full)
        for _ in range(3):
            keeper.look()
    assert [line["event"] for line in logs] == ["keys_not_rotated"]
    assert "No space left" in logs[0]["problem"]
    assert _kid(keeper, clock) == before


def test_a_lock_that_somebody_holds_is_waited_for_by_nobody(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock
) -> None:
    keeper.look()
    clock.at += 1
    before = _kid(keeper, clock)
    with folder._locked(0), structlog.testing.capture_logs() as logs:
        keeper.look()
    assert logs == []
    assert _kid(keeper, clock) == before
    keeper.look()
    assert _kid(keeper, clock) != before


def test_where_the_folder_is_read_only_nothing_is_rotated(folder: KeyFolder, clock: FakeClock, memory: Memory) -> None:
    keeper = _keeper(KeyFolder(folder.path, group_read=True), clock, memory)
    clock.at += MONTH
    with structlog.testing.capture_logs() as logs:
        keeper.look()
    assert keeper.current().keyset.generation == 1
    assert [line["log_level"] for line in logs] == []


def test_every_revoked_key_is_remembered_once_and_again_while_the_store_is_away(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, memory: Memory
) -> None:
    stolen = _kid(keeper, clock)
    _change(folder, lambda k, new: revoke(k, new, stolen, now=clock.at, reason="stolen"), now=clock.at)
    memory.is_down = True
    keeper.look()
    assert memory.known == {}
    revoked_at = clock.at
    memory.is_down = False
    clock.at += 59
    keeper.look()
    assert memory.known == {}  # while it was waited for the store, the folder would not be looked at
    clock.at += 1
    keeper.look()
    assert memory.known == {stolen: revoked_at}
    asked = memory.asked
    keeper.look()
    assert memory.asked == asked


def test_a_fault_of_its_own_does_not_end_the_keeper(keeper: KeyKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def broken() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise SystemExit
        raise RuntimeError("a fault")

    monkeypatch.setattr(keeper, "look", broken)
    monkeypatch.setattr("authsvc.keeper.LOOK_EVERY_S", 0.0)
    with structlog.testing.capture_logs() as logs, pytest.raises(SystemExit):
        keeper._run()
    assert len(looks) == 3
    assert [line["event"] for line in logs] == ["unexpected_error"]


def test_a_clock_that_was_set_back_never_signs_with_a_key_whose_part_is_gone(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock
) -> None:
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    clock.at += Lifecycle().last_use_s
    keeper.look()
    ring = _keeper(folder, clock, Memory()).current()
    assert ring.signing_key(now=clock.at)
    with pytest.raises(KeysError, match="clock"):
        ring.signing_key(now=clock.at - Lifecycle().last_use_s - 1)


# ---- what fails, and goes on failing ------------------------------------------------------------


def test_what_could_not_be_read_is_read_again_after_five_seconds_or_when_it_has_changed(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.at = NOW + 100
    keeper.look()
    read = []
    load = folder.load

    def counted(**arguments: Any) -> Keyring:
        read.append(clock.at)
        return load(**arguments)

    monkeypatch.setattr(folder, "load", counted)
    _change(folder, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    standby = folder.keyset().standby(now=clock.at)
    assert standby is not None
    (folder.path / standby.file).rename(folder.path / "away")
    for _ in range(5):
        keeper.look()
        clock.at += 1
    assert len(read) == 1
    assert keeper.problem is not None
    (folder.path / "away").rename(folder.path / standby.file)
    keeper.look()
    assert len(read) == 2
    (folder.path / MANIFEST).write_bytes(b"{")
    keeper.look()
    assert len(read) == 3
    (folder.path / MANIFEST).write_bytes(b"{}")
    keeper.look()
    assert len(read) == 4


def test_a_problem_that_stays_is_said_again_each_minute_whatever_figures_are_in_it(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock
) -> None:
    keeper.look()
    _change(folder, lambda k, new: rotate(k, new, now=clock.at + 1_000), now=clock.at + 1_000)
    with structlog.testing.capture_logs() as logs:
        for _ in range(59):
            keeper.look()
            clock.at += 1
    assert [line["problem"].startswith("the clock is 1000 s behind") for line in logs] == [True]
    clock.at += 1
    with structlog.testing.capture_logs() as logs:
        keeper.look()
    assert [line["event"] for line in logs] == ["keys_not_reloaded"]


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), OSError(116, "Stale file handle")])
def test_what_cannot_be_foreseen_is_no_reason_to_go_on_without_the_newest_keys(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    keeper.look()
    stolen = _kid(keeper, clock)
    _change(folder, lambda k, new: revoke(k, new, stolen, now=clock.at, reason="stolen"), now=clock.at)

    def fails(*_: object, **__: object) -> bytes:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(folder, "_read", fails)
        with contextlib.suppress(RuntimeError):
            keeper.look()
    problems = [keeper.problem]
    clock.at += 5
    keeper.look()
    problems.append(keeper.problem)
    assert [problem is None for problem in problems] == [False, True]
    found = keeper.current().find(stolen, now=clock.at)
    assert found is not None
    assert found.revoked


def test_a_rotation_that_failed_is_tried_again_after_a_minute(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.look()
    clock.at += 1
    tried = []

    def full(*_: object, **__: object) -> Change:
        tried.append(clock.at)
        raise KeysError("the disk is full")

    monkeypatch.setattr(folder, "change", full)
    for _ in range(121):
        keeper.look()
        clock.at += 1
    assert [at - tried[0] for at in tried] == [0, 60, 120]


def test_a_lock_that_is_held_for_a_minute_is_said(folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock) -> None:
    keeper.look()
    clock.at += 1
    with folder._locked(0), structlog.testing.capture_logs() as logs:
        for _ in range(60):
            keeper.look()
            clock.at += 1
        assert logs == []
        keeper.look()
    assert [line["event"] for line in logs] == ["keys_not_rotated"]
    assert "another command" in logs[0]["problem"]


def test_a_worker_that_could_never_read_the_folder_says_so(
    folder: KeyFolder, clock: FakeClock, memory: Memory, tmp_path: Path
) -> None:
    """As one that takes the place of another does, with the keys that it was given."""
    keeper = _keeper(folder, clock, memory)
    folder.path.rename(tmp_path / "away")
    keeper.look()
    assert keeper.problem is not None


def test_the_keys_of_another_service_are_not_taken_over(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, tmp_path: Path
) -> None:
    keeper.look()
    before = keeper.current()
    other = KeyFolder(tmp_path / "sandbox")
    other.init(alg="ES256", purpose=Purpose.SANDBOX, lifecycle=Lifecycle(), now=NOW, random_bytes=os.urandom)
    _change(other, lambda k, new: rotate(k, new, now=clock.at), now=clock.at)
    shutil.copytree(other.path, folder.path, dirs_exist_ok=True)
    keeper.look()
    assert keeper.current() is before
    assert "sandbox" in (keeper.problem or "")


# ---- a clock that is set ------------------------------------------------------------------------


@pytest.mark.parametrize("by_s", [-61, 61, 365 * 86_400])
def test_by_a_clock_that_was_just_set_nothing_is_rotated_for_five_minutes(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock, by_s: int
) -> None:
    keeper.look()
    clock.at += 100 + by_s
    clock.set_by += by_s
    with structlog.testing.capture_logs() as logs:
        keeper.look()
        clock.at += 299
        keeper.look()
    assert [(line["event"], line["by_s"]) for line in logs] == [("clock_was_set", by_s)]
    assert folder.keyset().generation == 1
    clock.at += 1
    keeper.look()
    assert folder.keyset().generation == 2


def test_a_clock_that_was_set_and_set_back_leaves_no_trace(folder: KeyFolder, clock: FakeClock, memory: Memory) -> None:
    clock.at = NOW + 1
    keeper = _keeper(folder, clock, memory)
    for by_s in (365 * 86_400, -365 * 86_400):
        keeper.look()
        clock.at += 10 + by_s
        clock.set_by += by_s
    clock.at += 1_000
    keeper.look()
    assert keeper.problem is None
    assert folder.keyset().updated_at == NOW


def test_a_worker_that_takes_anothers_place_knows_that_the_clock_was_set_before(
    folder: KeyFolder, clock: FakeClock, memory: Memory
) -> None:
    offset = offset_of(clock)
    clock.at += 40 * 86_400
    clock.set_by += 40 * 86_400
    rotation = Rotation(MONTH, None, os.urandom)
    ring = folder.load(now=clock.at)
    keeper = KeyKeeper(folder, ring, clock=clock, rotation=rotation, remember=memory, clock_offset=offset)
    keeper.look()
    assert folder.keyset().updated_at == NOW


def test_a_clock_that_two_fight_over_is_said_once_a_minute(keeper: KeyKeeper, clock: FakeClock) -> None:
    keeper.look()
    with structlog.testing.capture_logs() as logs:
        for second in range(59):
            by_s = 120 if second % 2 else -120
            clock.at += 1 + by_s
            clock.set_by += by_s
            keeper.look()
    assert [line["event"] for line in logs] == ["clock_was_set"]


def test_a_clock_that_is_corrected_by_less_than_the_skew_stops_nothing(
    folder: KeyFolder, keeper: KeyKeeper, clock: FakeClock
) -> None:
    keeper.look()
    clock.at += 60
    clock.set_by += 60
    keeper.look()
    assert folder.keyset().generation == 2


def test_who_stops_it_waits_for_a_change_that_is_under_way_and_there_is_none_after_it(
    keeper: KeyKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    looks: list[int] = []

    def look(_self: KeyKeeper) -> None:
        looks.append(1)
        begun.set()
        may_end.wait(30)
        ended.set()

    monkeypatch.setattr(KeyKeeper, "look", look)
    keeper.start()
    assert begun.wait(30)
    threading.Timer(0.05, may_end.set).start()
    keeper.stop()
    assert ended.is_set()
    assert "authsvc-keys" not in [thread.name for thread in threading.enumerate()]
    assert looks == [1]


def test_one_that_was_never_started_is_stopped_at_once(keeper: KeyKeeper) -> None:
    keeper.stop()
