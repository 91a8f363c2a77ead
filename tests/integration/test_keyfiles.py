"""The key folder on a real disk."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from authsvc import durable, keyparts
from authsvc.errors import KeysConflict, KeysError
from authsvc.jwk import ALGORITHMS, PrivateKey, public_jwk
from authsvc.keyfiles import MANIFEST, Change, KeyFolder, Transition
from authsvc.keyparts import generate_key
from authsvc.keyset import Keyset, Kind, Lifecycle, Purpose
from authsvc.manifest import dump_manifest, parse_manifest
from authsvc.rotation import NewKeys, prune, revoke, rotate, rotate_store
from tests.support.clock import NOW
from tests.support.crash import in_child, obey_file_modes
from tests.support.secret_mount import SecretMount


def _init(
    path: Path, *, alg: str = "ES256", now: int = NOW, generate: Callable[[str], PrivateKey] = generate_key
) -> bool:
    return KeyFolder(path).init(
        alg=alg, purpose=Purpose.PRODUCTION, lifecycle=Lifecycle(), now=now, random_bytes=os.urandom, generate=generate
    )


def _change(path: Path, transition: Transition, *, now: int = NOW) -> Change:
    return KeyFolder(path).change(transition, now=now, random_bytes=os.urandom)


def _longer(keyset: Keyset, _new: NewKeys) -> Keyset:
    return keyset.with_lifetimes(token_ttl_s=80_000, session_key_ttl_s=1, now=NOW)


@pytest.fixture
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a passphrase costs is not what these are about; others open parts at its real cost."""
    monkeypatch.setattr(keyparts, "_SCRYPT_N", 2)
    monkeypatch.setattr(keyparts, "_SCRYPT", {**keyparts._SCRYPT, "n": 2})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _init(tmp_path / "keys")
    return tmp_path / "keys"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _one(folder: Path, start: str) -> Path:
    return sorted(folder.glob(f"{start}*"))[0]


def _part_of_active(folder: Path) -> Path:
    keyset = parse_manifest((folder / MANIFEST).read_bytes())
    return folder / keyset.active(Kind.SIGNING, now=NOW).file


@pytest.mark.parametrize("lost", ["the folder", "the manifest"])
def test_who_has_lost_keys_is_not_told_to_make_new_ones(folder: Path, lost: str) -> None:
    """New ones log everybody out, and the side store is refused with them."""
    if lost == "the folder":
        folder.rename(folder.with_name("away"))
    else:
        (folder / MANIFEST).unlink()
    with pytest.raises(KeysError, match=r"keys init \(make keys\) if this is the first start, else restore"):
        KeyFolder(folder).load(now=NOW)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_init_makes_an_active_and_a_standby_signing_key_a_sealing_and_an_index_key(tmp_path: Path, alg: str) -> None:
    assert _init(tmp_path / "keys", alg=alg) is True
    ring = KeyFolder(tmp_path / "keys").load(now=NOW)
    assert [(key.kind, key.state(now=NOW)) for key in ring.keyset.keys] == [
        ("signing", "active"),
        ("signing", "pending"),
        ("sealing", "active"),
        ("index", "active"),
    ]
    assert ring.prove_signing(now=NOW) == ring.signing_key(now=NOW).kid
    assert ring.signing_key(now=NOW).alg == alg


def test_nothing_in_the_folder_is_open_to_others_whatever_the_umask(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        _init(tmp_path / "keys")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()}
    assert set(modes.values()) == {0o600}


def test_init_leaves_keys_that_are_there_as_they_are(folder: Path) -> None:
    before = _files(folder)
    assert _init(folder, alg="RS256", now=NOW + 10) is False
    assert _files(folder) == before


def test_init_leaves_no_temporary_file(folder: Path) -> None:
    keyset = parse_manifest((folder / MANIFEST).read_bytes())
    assert _files(folder).keys() == {MANIFEST, ".lock", *(key.file for key in keyset.keys)}


def test_a_key_whose_thumbprint_starts_with_a_hyphen_is_thrown_away(tmp_path: Path) -> None:
    made: list[str] = []

    def generate(alg: str) -> PrivateKey:
        wants_hyphen = len(made) == 0
        while True:
            key = generate_key(alg)
            kid = public_jwk(key.public_key()).kid
            if kid.startswith("-") is wants_hyphen:
                made.append(kid)
                return key

    _init(tmp_path / "keys", alg="EdDSA", generate=generate)
    keyset = KeyFolder(tmp_path / "keys").load(now=NOW).keyset
    assert [key.id for key in keyset.of(Kind.SIGNING)] == made[1:]


def test_init_refuses_a_folder_whose_manifest_is_lost(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    before = _files(folder)
    with pytest.raises(KeysError, match="restore"):
        _init(folder)
    assert _files(folder) == before


def test_init_leaves_a_folder_alone_that_holds_other_files(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "other.txt").touch()
    with pytest.raises(KeysError, match="folder of their own"):
        _init(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    assert [path.name for path in shared.iterdir()] == ["other.txt"]


def test_init_that_was_interrupted_starts_over(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / ".journal").write_text(json.dumps([path.name for path in folder.glob("*-*")]))
    assert _init(folder) is True
    assert len(list(folder.glob("sign-*"))) == 2
    assert not (folder / ".journal").exists()


def test_two_inits_at_once_make_one_set_of_keys(tmp_path: Path) -> None:
    made = []
    threads = [threading.Thread(target=lambda: made.append(_init(tmp_path / "keys"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]
    assert len(list((tmp_path / "keys").glob("sign-*"))) == 2


def _foreign_pem(_: Path) -> bytes:
    return generate_key("ES256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


BREAKS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (lambda f: f.rename(f.with_name("away")), "keys", "authsvc keys init"),
    "a file in its place": (
        lambda f: f.rename(f.with_name("away")).with_name("keys").write_bytes(b""),
        "keys",
        "chown",
    ),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), MANIFEST, "restore"),
    "an empty manifest": (lambda f: (f / MANIFEST).write_bytes(b""), MANIFEST, "restore"),
    "a cut manifest": (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:99]), MANIFEST, "restore"),
    "a huge manifest": (lambda f: (f / MANIFEST).write_bytes(b" " * (1 << 21)), MANIFEST, "larger"),
    "a manifest open to others": (lambda f: (f / MANIFEST).chmod(0o644), MANIFEST, "chmod 600"),
    "an open folder": (lambda f: f.chmod(0o755), "keys", "chmod 700"),
    "a folder that the group may enter": (lambda f: f.chmod(0o710), "keys", "chmod 700"),
    "an open private part": (lambda f: _one(f, "sign-").chmod(0o640), "sign-", "chmod 600"),
    "an open sealing key": (lambda f: _one(f, "seal-").chmod(0o604), "seal-", "chmod 600"),
    "no private part of the active key": (lambda f: _part_of_active(f).unlink(), "sign-", "restore"),
    "no sealing key": (lambda f: _one(f, "seal-").unlink(), "seal-", "restore"),
    "no index key": (lambda f: _one(f, "index-").unlink(), "index-", "restore"),
    "a foreign private part": (lambda f: _part_of_active(f).write_bytes(_foreign_pem(f)), "sign-", "restore"),
    "a private part that is none": (lambda f: _part_of_active(f).write_bytes(b"MARKER"), "sign-", "restore"),
    "a foreign sealing key": (lambda f: _one(f, "seal-").write_bytes(b"A" * 43 + b"=\n"), "seal-", "restore"),
    "a sealing key that is none": (lambda f: _one(f, "seal-").write_bytes(b"MARKER\xff"), "seal-", "restore"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_folder_that_cannot_be_trusted_is_refused_naming_file_and_mend(folder: Path, name: str) -> None:
    breaks, names_file, names_mend = BREAKS[name]
    breaks(folder)
    with pytest.raises(KeysError) as refused:
        KeyFolder(folder).load(now=NOW)
    assert names_file in str(refused.value)
    assert names_mend in str(refused.value)
    assert "MARKER" not in str(refused.value)


def test_in_a_bare_clone_the_way_to_the_first_keys_is_shown(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    (tmp_path / "keys" / "README.md").touch()
    with pytest.raises(KeysError, match="make keys") as refused:
        KeyFolder(tmp_path / "keys").load(now=NOW)
    assert "chmod" not in str(refused.value)


def test_a_private_part_behind_a_link_is_refused(folder: Path) -> None:
    part = _part_of_active(folder)
    part.rename(folder.with_name("elsewhere"))
    part.symlink_to(folder.with_name("elsewhere"))
    with pytest.raises(KeysError, match=f"{part.name} is a link"):
        KeyFolder(folder).load(now=NOW)


def test_a_named_pipe_for_a_private_part_is_refused_and_does_not_hang(folder: Path) -> None:
    part = _part_of_active(folder)
    part.unlink()
    os.mkfifo(part, 0o600)
    with pytest.raises(KeysError, match="regular"):
        KeyFolder(folder).load(now=NOW)


def test_a_clock_behind_the_manifest_by_more_than_the_skew_is_refused(folder: Path) -> None:
    _change(folder, lambda keyset, _: replace(keyset, updated_at=NOW + 1000, generation=2))
    KeyFolder(folder).load(now=NOW + 940)
    with pytest.raises(KeysError, match="clock"):
        KeyFolder(folder).load(now=NOW + 939)


def test_a_retiring_key_without_its_private_part_is_healthy(folder: Path) -> None:
    keyset = parse_manifest((folder / MANIFEST).read_bytes())
    old, standby, *others = keyset.keys
    rotated = replace(
        keyset,
        generation=2,
        keys=(
            replace(old, retire_at=NOW + 10, remove_at=NOW + 9000),
            replace(standby, activate_at=NOW + 10),
            *others,
        ),
    )
    _change(folder, lambda _keyset, _new: rotated)
    (folder / old.file).unlink()
    ring = KeyFolder(folder).load(now=NOW + 10)
    assert ring.signing_key(now=NOW + 10).kid == standby.id
    assert ring.find(old.id, now=NOW + 8999) is not None
    assert ring.find(old.id, now=NOW + 9000) is None


def test_clearing_away_is_no_conflict_for_who_rotates_meanwhile(folder: Path) -> None:
    now = NOW + 90 * 86_400
    _change(folder, lambda k, new: rotate(k, new, now=now - 86_400), now=now - 86_400)
    seen = KeyFolder(folder).keyset()
    assert _change(folder, lambda k, _: prune(k, now=now), now=now).is_one
    KeyFolder(folder).change(lambda k, new: rotate(k, new, now=now), now=now, random_bytes=os.urandom, seen=seen)
    with pytest.raises(KeysConflict, match="nothing was changed"):
        KeyFolder(folder).change(lambda k, new: rotate(k, new, now=now), now=now, random_bytes=os.urandom, seen=seen)


def test_update_replaces_the_manifest_whole(folder: Path) -> None:
    inode = (folder / MANIFEST).stat().st_ino
    _change(folder, _longer)
    assert KeyFolder(folder).load(now=NOW).keyset.lifecycle.ttl_max_s == 80_000
    assert (folder / MANIFEST).stat().st_ino != inode
    assert stat.S_IMODE((folder / MANIFEST).stat().st_mode) == 0o600


def test_a_write_that_fails_changes_nothing_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _files(folder)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeysError, match="No space left"):
        _change(folder, _longer)
    assert _files(folder) == before


def test_with_group_read_the_group_may_read_and_nobody_else(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o640)
    folder.chmod(0o750)
    KeyFolder(folder, group_read=True).load(now=NOW)
    with pytest.raises(KeysError):
        KeyFolder(folder).load(now=NOW)
    _one(folder, "sign-").chmod(0o644)
    with pytest.raises(KeysError, match="chmod 640"):
        KeyFolder(folder, group_read=True).load(now=NOW)


def test_with_group_read_nothing_is_written(folder: Path) -> None:
    with pytest.raises(KeysError, match="read-only"):
        KeyFolder(folder, group_read=True).change(_longer, now=NOW, random_bytes=os.urandom)


def test_a_part_that_goes_while_the_folder_is_read_is_read_from_the_new_manifest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader holds the old manifest when a writer replaces it and destroys a part that only the old one names."""
    key_folder = KeyFolder(folder)
    old = parse_manifest((folder / MANIFEST).read_bytes())
    newer = replace(
        old,
        generation=2,
        keys=(
            replace(old.keys[0], retire_at=NOW, remove_at=NOW + 9000),
            replace(old.keys[1], activate_at=NOW),
            *old.keys[2:],
        ),
    )
    read = key_folder._read
    reads: list[str] = []

    def replaced_after_first(folder_descriptor: int, name: str, limit: int) -> bytes:
        data = read(folder_descriptor, name, limit)
        reads.append(name)
        if len(reads) == 1:
            durable.replace(folder, MANIFEST, dump_manifest(newer))
            (folder / old.keys[0].file).unlink()
        return data

    monkeypatch.setattr(key_folder, "_read", replaced_after_first)
    assert key_folder.load(now=NOW).keyset.generation == 2
    assert reads.count(MANIFEST) >= 2


# ---- what a command finds in its way ------------------------------------------------------------


@pytest.mark.usefixtures("cheap_passphrases")
@pytest.mark.parametrize(
    ("interruption", "ends"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(5, "Input/output error"), None)]
)
@pytest.mark.parametrize("passphrase", [None, "a new passphrase"])
def test_what_comes_when_the_manifest_is_renamed_already_takes_nothing_back(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruption: BaseException,
    ends: type[BaseException] | None,
    passphrase: str | None,
) -> None:
    before = KeyFolder(folder).load(now=NOW).keyset
    rename = os.replace

    def renamed(*names: Path) -> None:
        rename(*names)
        raise interruption

    def command() -> object:
        if passphrase is None:
            return _change(folder, lambda k, new: rotate(k, new, now=NOW, early=True))
        return KeyFolder(folder).change_passphrase(passphrase, now=NOW, random_bytes=os.urandom)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", renamed)
        with pytest.raises(ends) if ends else nullcontext():
            command()
    after = KeyFolder(folder, passphrase=passphrase)
    assert after.load(now=NOW).keyset.generation == before.generation + 1
    after.change(lambda k, _: k, now=NOW, random_bytes=os.urandom)
    assert after.inspect(now=NOW).strays == ()
    assert not (folder / ".journal").exists()


@pytest.mark.usefixtures("cheap_passphrases")
@pytest.mark.parametrize("transition", [rotate, rotate_store], ids=["rotate", "rotate-store"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("the passphrase in force", None), ("the passphrase in force", "the one before it"), (None, "none is in force")],
)
def test_no_part_is_written_beside_others_that_are_under_another_passphrase(
    folder: Path, theirs: str | None, ours: str | None, transition: Callable[..., Keyset]
) -> None:
    if theirs is not None:
        KeyFolder(folder).change_passphrase(theirs, now=NOW, random_bytes=os.urandom)
    before = _files(folder)
    for command in (KeyFolder.change, KeyFolder.plan):
        with pytest.raises(KeysError, match="PASSPHRASE"):
            command(
                KeyFolder(folder, passphrase=ours),
                lambda k, new: transition(k, new, now=NOW),
                now=NOW,
                random_bytes=os.urandom,
            )
    assert _files(folder) == before
    KeyFolder(folder, passphrase=theirs).load(now=NOW)


@pytest.mark.parametrize("damage", ["lost", "broken", "open to others"])
def test_a_key_can_be_revoked_whatever_became_of_the_index_key(folder: Path, damage: str) -> None:
    part = _one(folder, "index-")
    if damage == "lost":
        part.unlink()
    elif damage == "broken":
        part.write_bytes(b"")
    else:
        part.chmod(0o644)
    active = parse_manifest((folder / MANIFEST).read_bytes()).active(Kind.SIGNING, now=NOW)
    assert _change(folder, lambda k, new: revoke(k, new, active.id, now=NOW, reason="stolen")).is_one


@pytest.mark.usefixtures("cheap_passphrases")
def test_a_file_in_the_way_of_a_new_part_is_named_and_left_alone(folder: Path) -> None:
    in_the_way = folder / _part_of_active(folder).name.replace(".pem", ".2.pem")
    in_the_way.write_text("of another backup")
    before = _files(folder)
    with pytest.raises(KeysError, match=f"{in_the_way.name} is in the way"):
        KeyFolder(folder).change_passphrase("a new passphrase", now=NOW, random_bytes=os.urandom)
    assert _files(folder) == before


@pytest.mark.parametrize(
    "journal",
    [
        b'["../outside", "seal-x/../../outside", "/outside", "keyset.json", ".lock", "README.md"]',
        b'{"seal-00000000.key": 1}',
        b"5",
        b'["',
        b"",
        b"[null, 1]",
    ],
)
def test_a_journal_removes_nothing_but_private_parts_of_this_folder(folder: Path, journal: bytes) -> None:
    (folder.parent / "outside").touch()
    (folder / "README.md").touch()
    (folder / ".lock").touch()
    before = _files(folder)
    (folder / ".journal").write_bytes(journal)
    _change(folder, lambda k, _: k)
    assert _files(folder) == before
    assert (folder.parent / "outside").exists()


def test_a_link_for_the_lock_is_not_followed(folder: Path) -> None:
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").symlink_to(folder.parent / "outside")
    with pytest.raises(KeysError, match="nothing was changed"):
        _change(folder, _longer)
    assert not (folder.parent / "outside").exists()


def test_a_folder_with_hundreds_of_revoked_keys_works_and_one_that_would_be_too_large_is_left_as_it_is(
    folder: Path,
) -> None:
    def with_revoked(count: int) -> Transition:
        def transition(keyset: Keyset, _new: NewKeys) -> Keyset:
            dead = replace(keyset.active(Kind.SEALING, now=NOW), revoked_at=NOW, reason="[{" * 100)
            return keyset.changed(now=NOW, keys=(*keyset.keys, *(replace(dead, id=f"{n:08x}") for n in range(count))))

        return transition

    _change(folder, with_revoked(900))
    KeyFolder(folder).load(now=NOW)
    before = _files(folder)
    with pytest.raises(KeysError, match=r"larger than .* nothing was changed"):
        _change(folder, lambda k, new: with_revoked(3_000)(replace(k, keys=k.keys[:4]), new))
    assert _files(folder) == before


def test_a_part_that_should_be_gone_for_a_minute_is_told_of(folder: Path) -> None:
    old = _change(folder, lambda k, new: rotate(k, new, now=NOW, early=True)).before.active(Kind.SIGNING, now=NOW)
    ends_at = NOW + Lifecycle().last_use_s
    assert KeyFolder(folder).inspect(now=ends_at + 59).problems == ()
    (problem,) = KeyFolder(folder).inspect(now=ends_at + 60).problems
    assert old.file in problem
    assert "make keys-prune" in problem


# ---- whose folder it is -------------------------------------------------------------------------


def test_init_leaves_no_lock_in_a_folder_that_is_not_for_keys_nor_takes_one_away(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(KeysError):
        _init(tmp_path)
    assert os.listdir(tmp_path) == ["other.txt"]
    (tmp_path / ".lock").touch()
    with pytest.raises(KeysError):
        _init(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "other.txt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_nobody_changes_a_folder_that_belongs_to_another_user_not_even_root(folder: Path, tmp_path: Path) -> None:
    (folder / ".lock").unlink(missing_ok=True)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    for path in (folder, empty):
        os.chown(path, 65_534, 65_534)
    for command in (lambda: _change(folder, _longer), lambda: _init(empty), lambda: KeyFolder(folder).load(now=NOW)):
        with pytest.raises(KeysError, match="belongs to another user"):
            command()
    assert not (folder / ".lock").exists()
    assert os.listdir(empty) == []


@pytest.mark.parametrize("mode", [0, 0o600, 0o100], ids=["closed", "chmod -R 600", "no listing"])
def test_who_may_not_look_into_the_folder_is_told_so_by_everything(folder: Path, mode: int) -> None:
    def looks() -> list[str]:
        obey_file_modes()
        said = []
        it = KeyFolder(folder)
        assert it.is_initialised()
        assert not it.is_interrupted
        for look in (
            it.keyset,
            lambda: it.load(now=NOW),
            lambda: it.inspect(now=NOW),
            lambda: _change(folder, _longer),
        ):
            with pytest.raises(KeysError) as refused:
                look()
            said.append(str(refused.value))
        open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for _ in range(10):
            with pytest.raises(KeysError):
                it.keyset()
        assert open_files in (0, len(os.listdir("/proc/self/fd")))
        return said

    folder.chmod(mode)
    try:
        said = in_child(looks)
    finally:
        folder.chmod(0o700)
    assert len(said) == 4
    assert all("cannot be read: Permission denied" in problem and "chmod 700" in problem for problem in said)


def test_an_error_of_the_disk_while_it_is_read_is_said_as_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_descriptor: int) -> os.stat_result:
        raise OSError(116, "Stale file handle")

    said = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", stale)
        for look in (KeyFolder(folder).load, KeyFolder(folder).inspect):
            try:
                look(now=NOW)
            except KeysError as error:
                said.append(str(error))
    assert ["cannot be read: Stale file handle" in problem for problem in said] == [True, True]


# ---- Kubernetes ---------------------------------------------------------------------------------


def test_a_kubernetes_secret_is_read_through_its_data_link(folder: Path, tmp_path: Path) -> None:
    SecretMount(tmp_path / "mount").fill(folder)
    assert KeyFolder(tmp_path / "mount", group_read=True).load(now=NOW).keyset.generation == 1


def test_a_volume_that_others_can_write_is_refused_at_either_level(folder: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    SecretMount(mount).fill(folder)
    for open_to_others in (mount, (mount / "..data").resolve()):
        open_to_others.chmod(0o770)
        with pytest.raises(KeysError, match=r"can be written by others.*read-only"):
            KeyFolder(mount, group_read=True).load(now=NOW)
        assert any(
            "written by others" in problem for problem in KeyFolder(mount, group_read=True).inspect(now=NOW).problems
        )
        open_to_others.chmod(0o750)
    KeyFolder(mount, group_read=True).load(now=NOW)


def test_a_secret_volume_without_its_setting_is_refused_naming_it(folder: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    SecretMount(mount).fill(folder)
    mount.chmod(0o700)
    with pytest.raises(KeysError, match="is a link; mend: AUTHSVC_KEYS_GROUP_READ=1"):
        KeyFolder(mount).load(now=NOW)


def test_a_data_link_that_somebody_put_into_a_plain_folder_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    _init(tmp_path / "theirs")
    (folder / "..data").symlink_to(tmp_path / "theirs")
    assert KeyFolder(folder).keyset() == parse_manifest((folder / MANIFEST).read_bytes())
