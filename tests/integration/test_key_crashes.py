"""The key folder when the process is killed, or the disk refuses, at any operation of any command.

`make test` takes a sample of the operations, `make soak` all of them.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from authsvc import keyparts
from authsvc.clock import SystemClock
from authsvc.errors import AuthsvcError, KeysError, TokenInvalid, TokenRevoked
from authsvc.keyfiles import MANIFEST, Change, KeyFolder, Transition
from authsvc.keyring import Keyring
from authsvc.keyset import Keyset, Kind, Lifecycle, Purpose, State
from authsvc.rotation import prune, revoke, revoke_all, rotate, rotate_store, tick
from authsvc.sealing import SealingKey
from authsvc.tokens import JwkSet, SigningKey, open_token, sign_token
from tests.support.clock import NOW
from tests.support.crash import (
    Fault,
    Impossible,
    Killed,
    Run,
    What,
    failures,
    in_child,
    kills,
    make_disk_read_only,
    mount_small_disk,
    obey_file_modes,
    run_command,
    sample,
)
from tests.support.keys import CLAIMS, POLICY
from tests.support.service import authsvc, clean_environment

DAY = 86_400
MONTH = 30 * DAY
LEAD = Lifecycle().lead_s
PASSPHRASE = "a passphrase of the test"

LOCK = ".lock"
JOURNAL = ".journal"
PARTS = ("sign-", "seal-", "index-")
ERRNOS = (errno.ENOSPC, errno.EROFS, errno.EIO)


# ---- the commands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A command, and the folder that it finds."""

    prepare: Callable[[Path], object]
    command: Callable[[Path], object]
    now: int
    used_at: int = NOW  # when the tokens and rows were made that have to outlive the command
    revokes: Callable[[Keyset], set[str]] = field(default=lambda _: set())
    sets_passphrase: str | None = None  # the command's effect on the passphrase, which is none before


def _init(path: Path, *, now: int = NOW) -> bool:
    return KeyFolder(path).init(
        alg="ES256", purpose=Purpose.PRODUCTION, lifecycle=Lifecycle(), now=now, random_bytes=os.urandom
    )


def _change(path: Path, transition: Transition, *, now: int, passphrase: str | None = None) -> Change:
    return KeyFolder(path, passphrase=passphrase).change(transition, now=now, random_bytes=os.urandom)


def _rotate(path: Path, *, now: int, alg: str | None = None, early: bool = False) -> Change:
    return _change(path, partial(rotate, now=now, alg=alg, early=early), now=now)


def _prune(path: Path, *, now: int, passphrase: str | None = None) -> Change:
    return _change(path, lambda keyset, _: prune(keyset, now=now), now=now, passphrase=passphrase)


def _first(keyset: Keyset) -> str:
    """The kid that signs in a folder that nothing was done to."""
    return next(keyset.of(Kind.SIGNING)).id


def _revoke_first(path: Path, *, now: int) -> Change:
    kid = _first(KeyFolder(path).keyset())
    return _change(path, lambda keyset, new: revoke(keyset, new, kid, now=now, reason="stolen"), now=now)


def _set_passphrase(path: Path, passphrase: str | None, *, now: int) -> object:
    opened_with = _opens_with(path, now=now)
    return KeyFolder(path, passphrase=opened_with).change_passphrase(passphrase, now=now, random_bytes=os.urandom)


def _opens_with(path: Path, *, now: int) -> str | None:
    """The one passphrase of the two, or none, that the folder opens with."""
    opens: list[str | None] = []
    refusals: list[str] = []
    for passphrase in (None, PASSPHRASE):
        try:
            KeyFolder(path, passphrase=passphrase).load(now=now)
        except KeysError as error:
            refusals.append(str(error))
        else:
            opens.append(passphrase)
    assert len(opens) == 1, f"opens with {len(opens)} of old and new passphrase: {refusals}"
    return opens[0]


def _bare_clone(path: Path) -> None:
    path.mkdir(mode=0o755)
    (path / "README.md").write_text("the runbook")


# Key one: removed, though its private part is still there, for no command came by in time. Key two: retiring, and its
# part has ended as well. Two rotations in quick succession do that.
_SECOND_ROTATION = NOW + LEAD + 10
_FIRST_REMOVED = NOW + LEAD + Lifecycle().signing_retention_s


def _with_ended_keys(path: Path) -> None:
    _init(path)
    _rotate(path, now=NOW + LEAD)
    _rotate(path, now=_SECOND_ROTATION, early=True)


CASES = {
    "init": Case(lambda path: None, _init, NOW),
    "init in a bare clone": Case(_bare_clone, _init, NOW),
    "rotate": Case(_init, partial(_rotate, now=NOW + MONTH), NOW + MONTH),
    "rotate to another algorithm": Case(_init, partial(_rotate, now=NOW + MONTH, alg="EdDSA"), NOW + MONTH),
    "rotate-store": Case(
        _init,
        lambda path: _change(path, lambda keyset, new: rotate_store(keyset, new, now=NOW + DAY), now=NOW + DAY),
        NOW + DAY,
    ),
    "revoke": Case(_init, partial(_revoke_first, now=NOW + DAY), NOW + DAY, revokes=lambda keyset: {_first(keyset)}),
    "revoke --all": Case(
        _init,
        lambda path: _change(
            path, lambda keyset, new: revoke_all(keyset, new, now=NOW + DAY, reason="stolen"), now=NOW + DAY
        ),
        NOW + DAY,
        revokes=lambda keyset: {key.id for key in keyset.keys if key.kind is not Kind.INDEX},
    ),
    "prune": Case(_with_ended_keys, partial(_prune, now=_FIRST_REMOVED), _FIRST_REMOVED, used_at=_SECOND_ROTATION + 1),
    "passphrase": Case(
        _with_ended_keys,
        partial(_set_passphrase, passphrase=PASSPHRASE, now=_FIRST_REMOVED),
        _FIRST_REMOVED,
        used_at=_SECOND_ROTATION + 1,
        sets_passphrase=PASSPHRASE,
    ),
    "tick": Case(
        _with_ended_keys,
        lambda path: _change(
            path,
            lambda keyset, new: tick(keyset, new, now=NOW + 2 * MONTH, rotate_every_s=MONTH),
            now=NOW + 2 * MONTH,
        ),
        NOW + 2 * MONTH,
        used_at=_SECOND_ROTATION + 1,
    ),
}


# ---- what there was before ----------------------------------------------------------------------


@dataclass(frozen=True)
class Before:
    """The folder that a command finds, and what was made with its keys."""

    case: Case
    template: Path
    keyset: Keyset | None
    tokens: Mapping[str, str]  # kid → a token under it
    sealing: tuple[SealingKey, ...]
    run: Run  # the command, undisturbed, on a copy

    @property
    def turn(self) -> int:
        """The operation that puts the new manifest in force."""
        return self.run.first("replace")

    def copy(self, to: Path) -> Path:
        if self.template.exists():
            shutil.copytree(self.template, to)
        return to


def _token(key: SigningKey, *, now: int) -> str:
    return sign_token(replace(CLAIMS, issued_at=now - 1, expires_at=now + 600), key, typ="at+jwt")


def _before(case: Case, workshop: Path) -> Before:
    template = workshop / "keys"
    case.prepare(template)
    keyset: Keyset | None = None
    tokens: dict[str, str] = {}
    sealing: tuple[SealingKey, ...] = ()
    if (template / MANIFEST).exists():
        ring = KeyFolder(template).load(now=case.used_at)
        keyset = ring.keyset
        # The token of each key that still verifies when the command comes, the standby's too: it may have to step in.
        for record in keyset.published(now=case.now):
            key = SigningKey(record.alg, record.id, ring.private_keys[record.id])
            tokens[record.id] = _token(key, now=case.now)
        sealing = tuple(
            SealingKey(record.id, ring.secret_keys[record.id])
            for record in keyset.of(Kind.SEALING)
            if record.state(now=case.now) is not State.REMOVED
        )
    before = Before(case, template, keyset, tokens, sealing, Run((), (), None))
    path = before.copy(workshop / "undisturbed")
    return replace(before, run=run_command(path, partial(case.command, path)))


@pytest.fixture(scope="module")
def _cheap_passphrase() -> Iterable[None]:
    """A passphrase is to cost its guesser 0.3 s, and us 0.3 s a file; at which operation we are killed is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyparts, "_SCRYPT_N", 2)
        patch.setattr(keyparts, "_SCRYPT", {**keyparts._SCRYPT, "n": 2})
        yield


@pytest.fixture(scope="module", params=CASES)
def before(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _cheap_passphrase: None) -> Before:
    return _before(CASES[request.param], tmp_path_factory.mktemp("before"))


# ---- what has to hold ---------------------------------------------------------------------------


def _each(faults: Iterable[Fault], before: Before, tmp_path: Path, check: Callable[[Path, Fault], None]) -> None:
    """Try every fault on a copy of its own; all that goes wrong is said, not only the first."""
    wrong = []
    for number, fault in enumerate(faults):
        place = tmp_path / str(number)
        place.mkdir()
        operation = before.run.operations[fault.at] if isinstance(fault.at, int) else ""
        try:
            check(before.copy(place / "keys"), fault)
        except (AssertionError, AuthsvcError, OSError, pytest.fail.Exception) as error:
            wrong.append(f"{fault}, {operation}: {type(error).__name__}: {error}")
        shutil.rmtree(place)
    assert not wrong, "\n".join(wrong)


def _content(path: Path) -> dict[str, bytes]:
    """What there is, without the lock file, which is empty and stays."""
    if not path.exists():
        return {}
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != LOCK}


def _changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return sorted({name for name, _ in before.items() ^ after.items()})


def _is_in_force(path: Path, before: Before) -> bool:
    """Whether the command took effect: the manifest is the new one, and else the old one to the byte."""
    if not (path / MANIFEST).exists():
        assert before.keyset is None, "the manifest is gone"
        return False
    data = (path / MANIFEST).read_bytes()
    if before.keyset is not None and data == (before.template / MANIFEST).read_bytes():
        return False
    generation = KeyFolder(path).keyset().generation
    assert generation == (before.keyset.generation + 1 if before.keyset else 1), "neither the old manifest nor the new"
    return True


def _check_serves(path: Path, before: Before, *, in_force: bool) -> None:
    """The folder loads, signs and verifies, and what was made before is good, unless it was to be revoked."""
    now = before.case.now
    ring = _load(path, before)
    jwks = JwkSet(ring.jwks(now=now))
    open_token(_token(ring.signing_key(now=now), now=now), jwks, POLICY, now=now)
    ring.sealing_key(now=now)
    revoked = before.case.revokes(before.keyset) if in_force and before.keyset else set()
    for kid, token in before.tokens.items():
        if kid in revoked:
            with pytest.raises(TokenInvalid):
                open_token(token, jwks, POLICY, now=now)
            with pytest.raises(TokenRevoked):
                open_token(token, ring, POLICY, now=now)
        else:
            open_token(token, jwks, POLICY, now=now)
    for key in before.sealing:
        if key.id not in revoked:
            assert ring.opening_key(key.id, now=now).key == key.key


def _load(path: Path, before: Before) -> Keyring:
    passphrase = _opens_with(path, now=before.case.now) if before.case.sets_passphrase else None
    return KeyFolder(path, passphrase=passphrase).load(now=before.case.now)


def _check_modes(path: Path) -> None:
    for file in path.iterdir() if path.exists() else ():
        if file.name.startswith((*PARTS, MANIFEST, JOURNAL, LOCK)):
            assert stat.S_IMODE(file.lstat().st_mode) == 0o600, f"{file.name} is open to others"


def _check_finished(path: Path, *, now: int, passphrase: str | None = None) -> None:
    """Nothing lies about: what is there is what the manifest says, and every part that has ended is gone."""
    folder = KeyFolder(path, passphrase=passphrase)
    found = folder.inspect(now=now)
    assert (found.problems, found.strays) == ((), ())
    keyset = found.keyset
    wanted = {record.file for record in keyset.keys if record.has_part(keyset.lifecycle, now=now)}
    there = {file.name for file in path.iterdir()} - {MANIFEST, LOCK, "README.md"}
    assert there <= wanted, f"{sorted(there - wanted)} should be gone"
    needed = {record.file for record in keyset.keys if record.needs_part(now=now)}
    assert needed <= there, f"{sorted(needed - there)} should be there"
    _check_modes(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in there:
        data = (path / name).read_bytes()
        # How an encrypted part begins, of either form.
        assert data.startswith((b"-----BEGIN ENCRYPTED", b"{")) is (passphrase is not None), f"{name} is in clear"


def _check_survives(before: Before, path: Path, fault: Fault) -> None:
    """Killed like this, the command has happened or not; what is left works, and can be brought to an end."""
    case = before.case
    with pytest.raises(Killed):
        run_command(path, partial(case.command, path), fault)
    assert isinstance(fault.at, int)
    in_force = _is_in_force(path, before)
    assert in_force is ((fault.at, fault.what is What.KILL_AFTER) >= (before.turn, True)), "the turn is elsewhere"
    _check_modes(path)
    if (path / MANIFEST).exists():
        _check_serves(path, before, in_force=in_force)
        pruned = path.with_name("pruned")
        shutil.copytree(path, pruned)
        passphrase = case.sets_passphrase if in_force else None
        _prune(pruned, now=case.now, passphrase=passphrase)
        _check_serves(pruned, before, in_force=in_force)
        _check_finished(pruned, now=case.now, passphrase=passphrase)
    case.command(path)
    _check_serves(path, before, in_force=True)
    _check_finished(path, now=case.now, passphrase=case.sets_passphrase)


# ---- killed -------------------------------------------------------------------------------------


def test_a_command_that_is_killed_leaves_keys_that_work_and_is_finished_by_the_next_one(
    before: Before, tmp_path: Path
) -> None:
    faults = sample(list(kills(before.run)), before.run, every=13)
    _each(faults, before, tmp_path, partial(_check_survives, before))


@pytest.mark.soak
def test_a_command_that_is_killed_anywhere_leaves_keys_that_work_and_is_finished_by_the_next_one(
    before: Before, tmp_path: Path
) -> None:
    _each(kills(before.run), before, tmp_path, partial(_check_survives, before))


def _killed(path: Path, command: Callable[[Path], object], what: What) -> None:
    """The command up to the manifest's turn, or up to right after it."""
    with pytest.raises(Killed):
        run_command(path, partial(command, path), Fault(what, "replace"))


def _with_killed_revocation(path: Path, what: What) -> None:
    _init(path)
    _killed(path, partial(_revoke_first, now=NOW + DAY), what)


CLEARING_UP = {
    "revoke, of which the first attempt had no effect": replace(
        CASES["revoke"], prepare=partial(_with_killed_revocation, what=What.KILL_BEFORE)
    ),
    "rotate, after a revocation that was not finished": Case(
        partial(_with_killed_revocation, what=What.KILL_AFTER),
        partial(_rotate, now=NOW + MONTH),
        NOW + MONTH,
        used_at=NOW + MONTH,
    ),
}


@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", CLEARING_UP)
def test_a_command_that_is_killed_while_it_clears_up_after_another_is_finished_by_the_next_one(
    name: str, everywhere: bool, tmp_path: Path
) -> None:
    before = _before(CLEARING_UP[name], tmp_path)
    operations = before.run.operations
    cleared_up = next(i for i, o in enumerate(operations) if (o.name, o.target) == ("unlink", JOURNAL))
    assert cleared_up < before.turn
    while_clearing_up = [Fault(What.KILL_BEFORE, number) for number in range(cleared_up + 2)]
    faults = kills(before.run) if everywhere else while_clearing_up
    _each(faults, before, tmp_path, partial(_check_survives, before))


def test_revoking_again_after_a_revocation_that_was_killed_revokes_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    _init(path)
    kid = _first(KeyFolder(path).keyset())
    _killed(path, partial(_revoke_first, now=NOW), What.KILL_AFTER)
    taken_effect = KeyFolder(path).keyset()
    assert taken_effect.active(Kind.SIGNING, now=NOW).id != kid
    change = _change(path, lambda keyset, new: revoke(keyset, new, kid, now=NOW + 1, reason="again"), now=NOW + 1)
    assert (change.is_one, KeyFolder(path).keyset()) == (False, taken_effect)
    _check_finished(path, now=NOW + 1)


@pytest.mark.soak
def test_a_passphrase_at_its_real_cost_is_whole_on_either_side_of_the_turning_point(tmp_path: Path) -> None:
    """The other tests make it cheap."""
    before = _before(CASES["passphrase"], tmp_path)
    faults = [Fault(What.KILL_BEFORE, before.turn), Fault(What.KILL_AFTER, before.turn)]
    _each(faults, before, tmp_path, partial(_check_survives, before))


# ---- a disk that refuses ------------------------------------------------------------------------


def _check_refuses(before: Before, path: Path, fault: Fault) -> None:
    """The command says in one sentence how things stand, and that is how they stand."""
    case = before.case
    assert isinstance(fault.at, int)
    content = _content(path)
    error = run_command(path, partial(case.command, path), fault).error
    in_force = _is_in_force(path, before)
    assert error is not None, "no word of the failure"
    assert error.startswith("KeysError: "), error
    assert str(path) in error
    assert os.strerror(fault.errno) in error
    assert in_force is (fault.at > before.turn), "the turn is elsewhere"
    passphrase = case.sets_passphrase if in_force else None
    if in_force:
        assert "the change is made" in error
        _check_serves(path, before, in_force=True)
        _prune(path, now=case.now, passphrase=passphrase)
    else:
        assert "nothing was changed" in error
        if fault.what is What.FAIL:
            assert _changed(content, _content(path)) == []
        case.command(path)
    _check_serves(path, before, in_force=True)
    _check_finished(path, now=case.now, passphrase=case.sets_passphrase)


def _each_in_turn(faults: list[Fault]) -> list[Fault]:
    """At each operation one errno, at the next one another."""
    return [fault for number, fault in enumerate(faults) if number % len(ERRNOS) == number // len(ERRNOS) % len(ERRNOS)]


def test_a_command_that_meets_a_failing_disk_says_what_it_did_and_did_nothing_else(
    before: Before, tmp_path: Path
) -> None:
    faults = sample(_each_in_turn(list(failures(before.run, ERRNOS))), before.run, every=9)
    _each(faults, before, tmp_path, partial(_check_refuses, before))


@pytest.mark.soak
def test_a_command_that_meets_a_failing_disk_anywhere_says_what_it_did_and_did_nothing_else(
    before: Before, tmp_path: Path
) -> None:
    _each(failures(before.run, ERRNOS), before, tmp_path, partial(_check_refuses, before))


def test_a_command_during_which_the_disk_turns_read_only_is_finished_by_the_next_one(
    before: Before, tmp_path: Path
) -> None:
    """As Linux does with a file system that it no longer trusts: what was begun can not even be cleared away."""
    faults = sample(list(failures(before.run, [errno.EROFS], what=What.FAIL_FROM)), before.run, every=7)
    _each(faults, before, tmp_path, partial(_check_refuses, before))


@pytest.mark.soak
def test_a_command_during_which_the_disk_turns_read_only_anywhere_is_finished_by_the_next_one(
    before: Before, tmp_path: Path
) -> None:
    faults = failures(before.run, [errno.EROFS], what=What.FAIL_FROM)
    _each(faults, before, tmp_path, partial(_check_refuses, before))


@dataclass(frozen=True)
class Refusal:
    """What came of a command on a disk that really refuses."""

    error: str | None
    before: dict[str, bytes]
    after: dict[str, bytes]

    def check(self, path: Path, reason: str) -> None:
        assert self.error is not None, "no word of the failure"
        assert (str(path) in self.error, reason in self.error) == (True, True), self.error
        assert "nothing was changed" in self.error
        assert _changed(self.before, self.after) == []


def _refusal(command: Callable[[Path], object], path: Path) -> Refusal:
    content, error = _content(path), None
    try:
        command(path)
    except KeysError as refused:
        error = str(refused)
    return Refusal(error, content, _content(path))


def _on_full_disk(before: Before, disk: Path) -> list[Refusal]:
    """The command, with no page of the disk left, then one, and so on until that is enough."""
    page = resource.getpagesize()
    mount_small_disk(disk, size_bytes=64 * page)
    path = before.copy(disk / "keys")
    filler = disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), b"\0" * page)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    refusals: list[Refusal] = []
    while True:
        refusal = _refusal(before.case.command, path)
        if refusal.error is None:
            _check_serves(path, before, in_force=True)
            return refusals
        refusals.append(refusal)
        os.truncate(filler, filler.stat().st_size - page)


def test_on_a_full_disk_every_command_says_so_and_changes_nothing(before: Before, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        refusals = in_child(partial(_on_full_disk, before, disk))
    except Impossible as reason:
        pytest.skip(f"NO DISK CAN BE MOUNTED HERE ({reason}); the limit on the size of files has to stand for it")
    # Without room for the journal, for the manifest: two pages at least, less what is destroyed beforehand.
    destroyed = [o for o in before.run.operations[: before.turn] if o.name == "unlink" and _is_part(o.target)]
    assert len(refusals) + len(destroyed) >= 2
    for refusal in refusals:
        refusal.check(disk / "keys", "No space left on device")


def _with_limit(before: Before, path: Path, limit_bytes: int) -> Refusal:
    # A write beyond the limit is an error then, and no longer the end of the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    return _refusal(before.case.command, path)


def test_when_files_may_not_grow_every_command_says_so_and_changes_nothing(before: Before, tmp_path: Path) -> None:
    """Real writes that stop short: a full disk also where none can be mounted."""
    sizes: dict[str, int] = {}
    for operation in before.run.operations:
        if operation.name == "write":
            sizes[operation.target] = sizes.get(operation.target, 0) + len(operation.data)
    # A byte too little for each file in turn, and the smaller ones fit.
    for number, limit_bytes in enumerate({0, *(size - 1 for size in sizes.values())}):
        path = before.copy(tmp_path / f"keys-{number}")
        in_child(partial(_with_limit, before, path, limit_bytes)).check(path, "File too large")


def _on_read_only_disk(before: Before, disk: Path) -> Refusal:
    mount_small_disk(disk, size_bytes=1 << 20)
    path = before.copy(disk / "keys")
    make_disk_read_only(disk)
    return _refusal(before.case.command, path)


def test_on_a_read_only_disk_every_command_says_so_and_changes_nothing(before: Before, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        refusal = in_child(partial(_on_read_only_disk, before, disk))
    except Impossible as reason:
        pytest.skip(f"NO DISK CAN BE MOUNTED HERE ({reason}); a folder that may not be written has to stand for it")
    refusal.check(disk / "keys", "Read-only file system")


def _as_mere_owner(before: Before, path: Path) -> Refusal:
    obey_file_modes()
    return _refusal(before.case.command, path)


def test_in_a_folder_that_may_not_be_written_every_command_says_so_and_changes_nothing(
    before: Before, tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    path = before.copy(tmp_path / "place" / "keys")
    refuses = path if path.exists() else path.parent
    refuses.chmod(0o500)
    try:
        refusal = in_child(partial(_as_mere_owner, before, path))
    finally:
        refuses.chmod(0o700)
    refusal.check(path, "Permission denied")


# ---- in which order -----------------------------------------------------------------------------


def test_every_change_of_the_folder_goes_through_what_the_faults_are_put_into(before: Before) -> None:
    assert before.run.unseen == ()
    assert before.run.error is None


@pytest.mark.parametrize(
    "past_it",
    [
        lambda path: (path / "file").write_bytes(b"written"),
        lambda path: os.fdopen(os.open(path / "file", os.O_WRONLY | os.O_CREAT), "wb").write(b"written"),
        lambda path: shutil.copyfile(path / MANIFEST, path / "file"),
    ],
    ids=["opened and written without os", "written without os", "copied"],
)
def test_a_change_that_goes_past_the_faults_is_noticed(past_it: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / MANIFEST).touch()
    assert run_command(tmp_path, partial(past_it, tmp_path)).unseen


def _is_part(name: str) -> bool:
    return name.startswith(PARTS)


def test_every_file_is_on_the_disk_before_the_manifest_that_relies_on_it(before: Before) -> None:
    operations = before.run.operations[: before.turn]
    made = {o.target: i for i, o in enumerate(operations) if o.name == "open" and o.target != LOCK}
    assert {"keyset.json.*.tmp", JOURNAL} <= made.keys()
    for name, opened in made.items():
        last_write = max(i for i, o in enumerate(operations) if o.name == "write" and o.target == name)
        assert opened < last_write
        assert any(o.name == "fsync" and o.target == name for o in operations[last_write:]), f"{name} is not synced"


def _folder_synced(before: Before, after: int, until: int | None = None) -> bool:
    return any(o.name == "fsync" and o.target == "." for o in before.run.operations[after + 1 : until])


def test_the_entries_of_private_parts_are_on_the_disk_before_the_manifest_that_names_them(before: Before) -> None:
    made = [i for i, o in enumerate(before.run.operations) if o.name == "open" and _is_part(o.target)]
    assert all(i < before.turn for i in made)
    assert not made or _folder_synced(before, max(made), before.turn)


def test_the_journal_is_on_the_disk_before_the_parts_that_it_names(before: Before) -> None:
    operations = before.run.operations
    journalled = next(i for i, o in enumerate(operations) if (o.name, o.target) == ("open", JOURNAL))
    parts = [i for i, o in enumerate(operations) if o.name == "open" and _is_part(o.target)]
    assert not parts or _folder_synced(before, journalled, min(parts))


def test_the_new_manifest_is_on_the_disk_before_anything_is_destroyed_on_its_word(before: Before) -> None:
    keyset = before.keyset
    had_ended = set[str]()
    if keyset is not None:
        ended = (r for r in keyset.keys if not r.has_part(keyset.lifecycle, now=before.case.now))
        had_ended = {record.file for record in ended}
    for number, operation in enumerate(before.run.operations):
        if operation.name == "unlink" and _is_part(operation.target) and operation.target not in had_ended:
            assert number > before.turn, f"{operation} comes too early"
        if operation.name == "unlink" and number > before.turn:
            assert _folder_synced(before, before.turn, number), f"{operation} may last longer than the new manifest"


def test_what_was_destroyed_is_gone_from_the_disk_before_it_is_forgotten(before: Before) -> None:
    """By the manifest, which forgets removed keys, and by the journal."""
    operations = before.run.operations
    forgotten = [before.turn, max(i for i, o in enumerate(operations) if (o.name, o.target) == ("unlink", JOURNAL))]
    for number, operation in enumerate(operations):
        if operation.name == "unlink" and _is_part(operation.target):
            assert _folder_synced(before, number, next(i for i in forgotten if i > number))


def test_a_command_ends_with_all_it_did_on_the_disk(before: Before) -> None:
    last = before.run.operations[-1]
    assert (last.name, last.target) == ("fsync", ".")
    assert _folder_synced(before, before.turn)


# ---- private parts ------------------------------------------------------------------------------


def test_private_parts_are_written_under_their_own_name_alone_and_for_their_owner_alone(before: Before) -> None:
    secrets = [o.data for o in before.run.operations if o.name == "write" and _is_part(o.target)]
    secrets += [data for name, data in _content(before.template).items() if _is_part(name)]
    assert secrets
    for operation in before.run.operations:
        if operation.target == ".":
            assert operation.mode in (None, 0o700), operation
            continue
        assert operation.mode in (None, 0o600), operation
        assert operation.name not in ("rename", "link", "symlink"), operation
        assert operation.to in (None, MANIFEST), operation
        if operation.name in ("open", "write") and not _is_part(operation.target):
            assert operation.target in (LOCK, JOURNAL, "keyset.json.*.tmp")
            assert b"PRIVATE" not in operation.data
            assert b'"d"' not in operation.data
            assert not any(line in operation.data for data in secrets for line in data.splitlines() if len(line) > 20)


# ---- the command itself -------------------------------------------------------------------------

_KILLED_COMMAND = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from authsvc.__main__ import main
from tests.support.crash import Fault, What, watched
sys.argv = ["authsvc", *sys.argv[1:]]
watched(Path("keys"), main, Fault(What[{what!r}], "replace"))
"""


def _killed_command(cwd: Path, what: What, *args: str) -> None:
    """`authsvc ...` as a process that kills itself at the manifest's turn."""
    program = _KILLED_COMMAND.format(root=str(Path(__file__).parents[2]), what=what.name)
    ended = subprocess.run(
        [sys.executable, "-c", program, *args],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def _command(cwd: Path, *args: str) -> None:
    ended = authsvc(*args, cwd=cwd)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "what",
    [pytest.param(What.KILL_BEFORE, marks=pytest.mark.soak), What.KILL_AFTER],
    ids=lambda what: what.value,
)
@pytest.mark.parametrize("name", ["init", "rotate", "revoke"])
def test_a_command_that_is_killed_is_finished_by_giving_it_again(name: str, what: What, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    args = ["keys", name]
    if name != "init":
        _init(path, now=SystemClock().now())
    if name == "revoke":
        args += [_first(KeyFolder(path).keyset()), "--yes"]
    _killed_command(tmp_path, what, *args)
    assert (path / JOURNAL).exists()
    now = SystemClock().now()
    if name != "init" or what is What.KILL_AFTER:
        KeyFolder(path).load(now=now).prove_signing(now=now)
    _command(tmp_path, *args)
    now = SystemClock().now()
    KeyFolder(path).load(now=now).prove_signing(now=now)
    _check_finished(path, now=now)
