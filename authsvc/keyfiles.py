"""The key folder on disk: one manifest that is only ever replaced whole, one file for each private part.

Write order: the journal, private parts (new files, never rewritten), then the manifest, by one rename; then what has
ended is removed, and the journal last. So a crash at any instant leaves the old state or the new one, and the next
command clears away whatever the journal names and the manifest does not.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from authsvc import durable
from authsvc.encoding import canonical_json
from authsvc.errors import KeysConflict, KeysError
from authsvc.jwk import PrivateKey, PublicJwk, public_jwk
from authsvc.keyparts import (
    BadPart,
    PartInClear,
    PassphraseNeeded,
    dump_secret_key,
    dump_signing_key,
    generate_key,
    parse_secret_key,
    parse_signing_key,
    secret_key_id,
)
from authsvc.keyring import Keyring
from authsvc.keyset import KeyRecord, Keyset, Kind, Lifecycle, Purpose, new_keyset, secret_record, signing_record
from authsvc.manifest import dump_manifest, parse_manifest
from authsvc.rotation import NewKeys, renewed_parts
from authsvc.sealing import KEY_BYTES

MANIFEST: Final = "keyset.json"

_LOCK: Final = ".lock"
_JOURNAL: Final = ".journal"
_KUBERNETES_DATA: Final = "..data"  # a Secret volume is swapped by renaming this symlink

_PART: Final = re.compile(r"sign-[^/]+\.pem|(seal|index)-[^/]+\.key")
_BESIDE_KEYS: Final = ("README.md", ".gitignore", ".gitkeep", "lost+found")  # what a clone or a volume brings along

_MAX_MANIFEST_BYTES: Final = 1 << 20
_MAX_KEY_BYTES: Final = 1 << 16
_LOCK_WAIT_S: Final = 5.0
_READ_ATTEMPTS: Final = 20
_FIRST_START: Final = "authsvc keys init (make keys) if this is the first start"
_LATE_S: Final = 60  # by then a running service has destroyed what has ended

_Found = TypeVar("_Found")

Transition: TypeAlias = Callable[[Keyset, NewKeys], Keyset]
"""One of `rotation`, with everything but keyset and new keys filled in."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a command did: the manifest before and after; the same one if there was nothing to do."""

    before: Keyset
    after: Keyset

    @property
    def is_one(self) -> bool:
        return self.after != self.before


@dataclass(frozen=True, slots=True)
class Inspection:
    """A look at the folder that goes on where `load` stops."""

    keyset: Keyset
    problems: tuple[str, ...]  # each names the file and the mend
    strays: tuple[str, ...]  # private parts that the manifest does not name


def holds_keys(path: Path) -> bool:
    """Whether this looks like a key folder, in use or not."""
    return any(name == MANIFEST or _PART.fullmatch(name) for name in os.listdir(path))


def part_files(keyset: Keyset) -> set[str]:
    """The names of all private parts that the manifest names, whether they are there or not."""
    return {record.file for record in keyset.keys}


class KeyFolder:
    """The folder that holds the keys. With `group_read` others of the group may read, and nothing is written:
    the form that a Kubernetes Secret has. With a passphrase every private part is encrypted under it."""

    def __init__(self, path: Path, *, group_read: bool = False, passphrase: str | None = None) -> None:
        self.path = path.absolute()
        self._group_read = group_read
        self._passphrase = passphrase

    @property
    def is_interrupted(self) -> bool:
        """Whether a command is at work, or was killed and has left something for the next one to clear away."""
        return os.path.lexists(self.path / _JOURNAL)

    @property
    def is_read_only(self) -> bool:
        return self._group_read

    def is_initialised(self) -> bool:
        """Also where we may not look: what is wrong there is for reading to say."""
        try:
            os.stat(self.path / MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def version(self) -> tuple[int, int, int, int] | None:
        """Another value whenever the manifest is another one (stat(2)); None if there is none. Follows symlinks, so
        it sees the swap of a Kubernetes Secret too."""
        try:
            found = os.stat(self.path / MANIFEST)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    # ---- reading ----

    def load(self, *, now: int, known: Keyring | None = None) -> Keyring:
        """Read and check everything; whole or not at all. Private parts that `known` has are not read again.

        Raises: KeysError, naming the file and the mend, for a missing or broken manifest, loose permissions, a
        private part that is missing or another's, a clock that is behind the manifest.
        """
        return self._steadily(
            lambda folder: self._load_from(
                folder, self._read(folder, MANIFEST, _MAX_MANIFEST_BYTES), now=now, known=known
            )
        )

    def _steadily(self, read: Callable[[int], _Found]) -> _Found:
        for attempt in range(1, _READ_ATTEMPTS + 1):
            seen = self._whereabouts()
            try:
                # One descriptor for the whole read: two opens by path could see two generations of a swapped folder.
                with self._opened() as folder:
                    return read(folder)
            except KeysError as error:
                failure = error
            except OSError as error:
                failure = self._unreadable(error)
            # A writer may have replaced the manifest and destroyed old parts since we read it, or the kubelet the
            # whole folder.
            if attempt == _READ_ATTEMPTS or self._whereabouts() == seen:
                raise failure from None
        raise AssertionError("the loop returns or raises")

    def _whereabouts(self) -> tuple[object, ...]:
        """Another value after every change of the manifest, and after every swap, even to the same manifest."""
        try:
            data = os.stat(self.path / _KUBERNETES_DATA)
        except OSError:
            return (self.version(),)
        return self.version(), data.st_dev, data.st_ino, data.st_mtime_ns

    def keyset(self) -> Keyset:
        """The manifest alone. Raises: KeysError."""
        return self._steadily(lambda folder: self._parse(self._read(folder, MANIFEST, _MAX_MANIFEST_BYTES)))

    def inspect(self, *, now: int) -> Inspection:
        """Everything that is wrong with the folder, not just the first thing.

        Raises: KeysError if there is no manifest that can be read.
        """
        problems: list[str] = []
        try:
            with self._opened(problems) as folder:
                keyset = self._parse(self._read(folder, MANIFEST, _MAX_MANIFEST_BYTES, problems))
                for record in keyset.keys:
                    self._inspect_part(folder, record, keyset, problems, now=now)
                named = part_files(keyset)
                strays = sorted(n for n in os.listdir(folder) if _PART.fullmatch(n) and n not in named)
                if _is_there(folder, _JOURNAL):
                    problems.append(
                        f"a command on {self.path} was interrupted; mend: make keys-prune clears up after it"
                    )
        except OSError as error:
            raise self._unreadable(error) from None
        return Inspection(keyset, tuple(problems), tuple(strays))

    def _inspect_part(self, folder: int, record: KeyRecord, keyset: Keyset, problems: list[str], *, now: int) -> None:
        try:
            if record.needs_part(now=now):
                self._parse_part(self._read(folder, record.file, _MAX_KEY_BYTES, problems), record)
        except KeysError as error:
            problems.append(str(error))
        ends_at = record.part_ends_at(keyset.lifecycle)
        if ends_at is not None and now >= ends_at + _LATE_S and _is_there(folder, record.file):
            problems.append(
                f"{self.path / record.file} was to be destroyed {now - ends_at} s ago; mend: make keys-prune, "
                "or let the service run, which does it"
            )

    # ---- writing ----

    def init(
        self,
        *,
        alg: str,
        purpose: Purpose,
        lifecycle: Lifecycle,
        now: int,
        random_bytes: Callable[[int], bytes],
        generate: Callable[[str], PrivateKey] = generate_key,
    ) -> bool:
        """Make the first keys: active, standby, sealing, index. False, and nothing is touched, if a manifest is there.

        Raises: KeysError if the folder cannot be written, or holds private parts whose manifest is lost.
        """
        if self.is_initialised() and not self.is_interrupted:
            return False
        with self._nothing_changed():
            if not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                durable.sync(self.path.parent)
            # Before a lock is put into a folder that is none of ours.
            _check_owner(self.path, os.stat(self.path), None)
            self._check_is_ours_alone()
        with self._locked(_LOCK_WAIT_S):
            with self._nothing_changed():
                if self.is_initialised():
                    self._finish_interrupted(named=part_files(self.keyset()))
                    return False
                # A bare clone brings the folder, for its runbook, with the modes that everything has.
                self.path.chmod(0o700)
                self._finish_interrupted(named=())
                self._check_no_parts()
                new = _Maker(random_bytes, generate, self._passphrase)
                keyset = new_keyset(
                    purpose=purpose,
                    lifecycle=lifecycle,
                    active=new.signing(alg),
                    standby=new.signing(alg),
                    sealing_id=new.secret(Kind.SEALING),
                    index_id=new.secret(Kind.INDEX),
                    now=now,
                )
            self._commit(keyset, new.parts, ended=())
        return True

    def change(
        self,
        transition: Transition,
        *,
        now: int,
        random_bytes: Callable[[int], bytes],
        generate: Callable[[str], PrivateKey] = generate_key,
        seen: Keyset | None = None,
        wait_s: float = _LOCK_WAIT_S,
    ) -> Change:
        """Replace the manifest by what `transition` makes of it, decided under the lock, and destroy what has ended.

        `seen` is what the caller decided on: of two operators with the same idea, one does it and the other is told.

        Raises: KeysConflict if somebody else holds the lock for `wait_s` seconds, or other keys are in use or waiting
        than the caller has `seen`; KeysError if the folder cannot be used or written, or the clock is behind. Nothing
        is changed then.
        """
        self.keyset()  # before a lock is put into a folder that is none of ours
        with self._locked(wait_s):
            with self._nothing_changed():
                before = self.keyset()
                self._check_clock(before, now=now)
                if seen is not None and seen.in_use(now=now) != before.in_use(now=now):
                    raise KeysConflict(
                        f"another command has just changed {self.path} (generation {seen.generation} is now "
                        f"{before.generation}); nothing was changed by this one; make keys-status shows what there is"
                    )
                self._finish_interrupted(named=part_files(before))
                new = _Maker(random_bytes, generate, self._passphrase)
                after = transition(before, new)
                if new.parts:
                    self._check_passphrase(before)
            ended = (
                _ended_parts(before, now=now) | _ended_parts(after, now=now) | (part_files(before) - part_files(after))
            )
            if after != before:
                self._commit(after, new.parts, ended=ended)
            else:
                with self._cleared_away():
                    self._destroy(ended)
            return Change(before, after)

    def plan(
        self,
        transition: Transition,
        *,
        now: int,
        random_bytes: Callable[[int], bytes],
        generate: Callable[[str], PrivateKey] = generate_key,
    ) -> Change:
        """What `change` would do; the ids of new keys are made up. Raises: KeysError."""
        before = self.keyset()
        self._check_clock(before, now=now)
        new = _Maker(random_bytes, generate, self._passphrase)
        after = transition(before, new)
        if new.parts:
            self._check_passphrase(before)
        return Change(before, after)

    def destroy_ended(self, *, now: int, gone: Collection[str] = ()) -> None:
        """Destroy the private parts whose time is over, and nothing else: whoever else writes here, or to another copy
        of this folder, is not in the way of that. `gone`: files that an earlier manifest named; without a word if the
        present one does.

        Raises: KeysConflict if somebody holds the lock; KeysError.
        """
        keyset = self.keyset()
        self._check_clock(keyset, now=now)
        ended = {name for name in gone if _PART.fullmatch(name)} - part_files(keyset) | _ended_parts(keyset, now=now)
        if any(os.path.lexists(self.path / name) for name in ended):
            with self._locked(0), self._cleared_away():
                self._destroy(ended)

    def change_passphrase(
        self, passphrase: str | None, *, now: int, random_bytes: Callable[[int], bytes]
    ) -> tuple[KeyFolder, Change]:
        """Write every private part anew under another passphrase, or in clear: new files, the manifest, then the old
        files go. Returns the folder as it is to be opened from now on.

        Raises: KeysError, KeysConflict. If that is the passphrase already, it only finishes what was interrupted.
        """
        if passphrase == self._passphrase:
            return self, self.change(lambda keyset, _: keyset, now=now, random_bytes=random_bytes)
        other = KeyFolder(self.path, passphrase=passphrase)
        with self._locked(_LOCK_WAIT_S):
            with self._nothing_changed():
                # Before anything asks for the passphrase: a run that was killed may have left parts in clear.
                self._finish_interrupted(named=part_files(self.keyset()))
                ring = self.load(now=now)
                before = ring.keyset
                after = renewed_parts(before, now=now)
                new = _Maker(random_bytes, generate_key, passphrase)
                for record in after.keys:
                    key = ring.private_keys.get(record.id) or ring.secret_keys.get(record.id)
                    if key is not None:
                        new.put(record, key)
            ended = _ended_parts(before, now=now) | (part_files(before) - part_files(after))
            other._commit(after, new.parts, ended=ended)
        return other, Change(before, after)

    # ---- reading, step by step ----

    @contextmanager
    def _opened(self, problems: list[str] | None = None) -> Iterator[int]:
        folder = self._open_folder(problems)
        try:
            yield folder
        finally:
            os.close(folder)

    def _open_folder(self, problems: list[str] | None = None) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            folder = os.open(self.path, flags)
        except FileNotFoundError:
            mend = f"{_FIRST_START}, else restore it from its backup; is this the working folder of the service?"
            raise KeysError(f"there is no key folder {self.path}; mend: {mend}") from None
        except OSError as error:
            raise self._unreadable(error) from None
        try:
            if self._group_read and _is_there(folder, _KUBERNETES_DATA):
                self._check_nobody_else_writes(folder, problems)
                volume, folder = folder, os.open(_KUBERNETES_DATA, flags, dir_fd=folder)
                os.close(volume)
            self._check_folder_mode(folder, problems)
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _unreadable(self, error: OSError) -> KeysError:
        return KeysError(
            f"the key folder {self.path} cannot be read: {error.strerror}; "
            "mend: give it, and the way to it, to the user of the service (chown, chmod 700)"
        )

    def _check_folder_mode(self, folder: int, problems: list[str] | None) -> None:
        try:
            # First: in a bare clone the folder is there, open to all and empty, and its mode is not what is amiss.
            os.stat(MANIFEST, dir_fd=folder)
        except FileNotFoundError:
            raise self._missing(MANIFEST) from None
        found = os.fstat(folder)
        _check_owner(self.path, found, problems)
        mode = stat.S_IMODE(found.st_mode)
        if self._group_read:
            # The files carry the protection.
            self._check_nobody_else_writes(folder, problems)
        elif mode & 0o077:
            _complain(f"{self.path} is open to others (mode {mode:04o}); mend: chmod 700 {self.path}", problems)

    def _check_nobody_else_writes(self, folder: int, problems: list[str] | None) -> None:
        read_only = os.fstatvfs(folder).f_flag & os.ST_RDONLY
        if os.fstat(folder).st_mode & 0o022 and not read_only:
            mend = f"chmod go-w {self.path}, or mount it read-only"
            _complain(f"{self.path} can be written by others; mend: {mend}", problems)

    def _read(self, folder: int, name: str, limit: int, problems: list[str] | None = None) -> bytes:
        path = self.path / name
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            if error.errno == errno.ELOOP and not self._group_read:
                mend = "AUTHSVC_KEYS_GROUP_READ=1 if this is a Kubernetes Secret, else the file itself in its place"
                raise KeysError(f"{path} is a link; mend: {mend}") from None
            raise KeysError(f"{path} cannot be opened: {error.strerror}") from None
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeysError(f"{path} is no regular file")
            _check_owner(path, found, problems)
            mode = stat.S_IMODE(found.st_mode)
            if mode & (0o037 if self._group_read else 0o077):
                mend = f"chmod {'640' if self._group_read else '600'} {path}"
                _complain(f"{path} is open to others (mode {mode:04o}); mend: {mend}", problems)
            data = file.read(limit + 1)
        if len(data) > limit:
            raise KeysError(f"{path} is larger than any file that authsvc writes")
        return data

    def _missing(self, name: str) -> KeysError:
        mend = "restore it from the backup of this folder"
        if name == MANIFEST:
            mend = f"{_FIRST_START}, else {mend}"
        return _Missing(f"{self.path / name} is missing; mend: {mend}")

    def _parse(self, data: bytes) -> Keyset:
        try:
            return parse_manifest(data)
        except KeysError as error:
            path = self.path / MANIFEST
            raise KeysError(f"{path} cannot be used: {error}; mend: restore the folder from its backup") from None

    def _check_clock(self, keyset: Keyset, *, now: int) -> None:
        if now < keyset.updated_at - keyset.lifecycle.skew_s:
            raise KeysError(
                f"the clock is {keyset.updated_at - now} s behind the last change of {self.path / MANIFEST}; "
                "mend: set the clock"
            )

    def _load_from(self, folder: int, data: bytes, *, now: int, known: Keyring | None) -> Keyring:
        keyset = self._parse(data)
        self._check_clock(keyset, now=now)
        private_keys: dict[str, PrivateKey] = {}
        secret_keys: dict[str, bytes] = {}
        # Read all before parsing any: the sooner it is over, the fewer writers come in between.
        parts: list[tuple[KeyRecord, bytes]] = []
        for record in keyset.keys:
            if not record.has_part(keyset.lifecycle, now=now):
                continue
            if known is not None and record.id in known.private_keys:
                private_keys[record.id] = known.private_keys[record.id]
            elif known is not None and record.id in known.secret_keys:
                secret_keys[record.id] = known.secret_keys[record.id]
            else:
                try:
                    parts.append((record, self._read(folder, record.file, _MAX_KEY_BYTES)))
                except _Missing:
                    # A retiring signing key only verifies: without its private part it is healthy.
                    if record.needs_part(now=now):
                        raise
        for record, part in parts:
            key = self._parse_part(part, record)
            if isinstance(key, bytes):
                secret_keys[record.id] = key
            else:
                private_keys[record.id] = key
        for kind in (Kind.SIGNING, Kind.SEALING):
            keyset.active(kind, now=now)
        return Keyring(keyset, private_keys, secret_keys)

    def _check_passphrase(self, keyset: Keyset) -> None:
        """New parts are not written beside others that are under another passphrase, or in clear beside encrypted ones:
        nobody could read them all. Raises: KeysError."""
        try:
            with self._opened() as folder:
                # One is as good as another; the index key is the one that never ends.
                for record in sorted(keyset.keys, key=lambda key: key.kind is not Kind.INDEX):
                    try:
                        self._parse_part(self._read(folder, record.file, _MAX_KEY_BYTES, []), record)
                    except _AnotherPassphrase:
                        raise
                    except KeysError:
                        continue  # it says nothing of a passphrase, and a revocation must not wait for its mend
                    return
        except OSError as error:
            raise self._unreadable(error) from None

    def _parse_part(self, data: bytes, record: KeyRecord) -> PrivateKey | bytes:
        path = self.path / record.file
        try:
            if record.jwk is not None:
                return parse_signing_key(data, record.jwk, self._passphrase)
            return parse_secret_key(data, record.kind, record.id, self._passphrase)
        except PassphraseNeeded as error:
            mend = "another AUTHSVC_KEYS_PASSPHRASE" if self._passphrase else "set AUTHSVC_KEYS_PASSPHRASE"
            raise _AnotherPassphrase(f"{path} {error}; mend: {mend}") from None
        except PartInClear:
            raise _AnotherPassphrase(
                f"{path} is not encrypted, though AUTHSVC_KEYS_PASSPHRASE is set; mend: unset that, and encrypt the "
                "parts with authsvc keys passphrase (make keys-passphrase)"
            ) from None
        except BadPart as error:
            raise KeysError(f"{path} {error}; mend: restore it from the backup") from None

    # ---- writing, step by step ----

    @contextmanager
    def _locked(self, wait_s: float) -> Iterator[None]:
        """Promised on local disks, not on network file systems."""
        if self._group_read:
            raise KeysError(f"{self.path} is read-only here (AUTHSVC_KEYS_GROUP_READ)")
        with ExitStack() as held:
            with self._nothing_changed():
                try:
                    held.enter_context(durable.locked(self.path, _LOCK, wait_s=wait_s))
                except durable.Locked:
                    raise KeysConflict(
                        f"another command is changing {self.path}; nothing was changed by this one; try again"
                    ) from None
            yield

    @contextmanager
    def _nothing_changed(self) -> Iterator[None]:
        """Around everything that comes before the manifest is replaced."""
        try:
            yield
        except OSError as error:
            # The path of the error may be a temporary name; the folder is what the operator can mend.
            raise KeysError(f"{self.path} cannot be written: {error.strerror}; nothing was changed") from None

    @contextmanager
    def _changed_already(self) -> Iterator[None]:
        """Around everything that comes after."""
        try:
            yield
        except OSError as error:
            raise KeysError(
                f"the change is made, but not all of it is cleared away or safe on the disk of {self.path}: "
                f"{error.strerror}; mend: make keys-prune, once that is mended"
            ) from None

    @contextmanager
    def _cleared_away(self) -> Iterator[None]:
        """Around what a command clears away that changes nothing else."""
        try:
            yield
        except OSError as error:
            raise KeysError(
                f"{self.path}: what has ended could not be destroyed: {error.strerror}; no key was changed; "
                "mend: make keys-prune, once that is mended"
            ) from None

    def _commit(self, keyset: Keyset, parts: Mapping[str, bytes], *, ended: Iterable[str]) -> None:
        """Make `keyset` the one in force, with the private parts of its new keys, and destroy the parts that end."""
        ended = tuple(ended)
        manifest = dump_manifest(keyset)
        with self._nothing_changed():
            self._check_names_are_free(parts)
            try:
                durable.create(self.path, _JOURNAL, canonical_json(sorted({*parts, *ended})))
                durable.sync(self.path)
                for name, data in parts.items():
                    durable.create(self.path, name, data)
                durable.sync(self.path)
                self._prove(keyset, manifest, parts)
                durable.replace(self.path, MANIFEST, manifest)
            except BaseException as error:
                if not self._is_in_force(manifest):
                    for name in (*parts, _JOURNAL):
                        durable.remove(self.path, name)
                    raise
                # The rename was done before this came. Ctrl-C ends the command; the next one clears up by the journal.
                if not isinstance(error, OSError):
                    raise
        with self._changed_already():
            durable.sync(self.path)
            self._destroy(ended)
            durable.remove(self.path, _JOURNAL)
            durable.sync(self.path)

    def _is_in_force(self, manifest: bytes) -> bool:
        try:
            return (self.path / MANIFEST).read_bytes() == manifest
        except FileNotFoundError:
            return False

    def _check_names_are_free(self, names: Iterable[str]) -> None:
        """What we make we may take back. Raises: KeysError."""
        for name in names:
            if os.path.lexists(self.path / name):
                raise KeysError(
                    f"{self.path / name} is in the way, and the manifest does not name it; mend: move it away, unless "
                    "another backup needs it; nothing was changed"
                )

    def _prove(self, keyset: Keyset, manifest: bytes, names: Iterable[str]) -> None:
        """What was written can be read, before anything relies on it."""
        if len(manifest) > _MAX_MANIFEST_BYTES:
            raise KeysError(
                f"{self.path / MANIFEST} would have {len(keyset.keys)} keys and be larger than {_MAX_MANIFEST_BYTES} "
                "bytes; nothing was changed; mend: make keys-prune; a longer AUTHSVC_ROTATE_EVERY"
            )
        if parse_manifest(manifest) != keyset:
            raise KeysError(f"{self.path} would have got a manifest that says something else; nothing was changed")
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for record in keyset.keys:
                if record.file in names:
                    self._parse_part(self._read(folder, record.file, _MAX_KEY_BYTES), record)
        finally:
            os.close(folder)

    def _destroy(self, names: Iterable[str]) -> None:
        there = [name for name in names if (self.path / name).exists()]
        for name in there:
            durable.remove(self.path, name)
        if there:
            durable.sync(self.path)

    def _finish_interrupted(self, *, named: Iterable[str]) -> None:
        """Clear away what a command left behind that did not live to see its end."""
        durable.clear_temporary(self.path, MANIFEST)
        try:
            journal = (self.path / _JOURNAL).read_bytes()
        except FileNotFoundError:
            return
        self._destroy(set(_journalled(journal)) - set(named))
        durable.remove(self.path, _JOURNAL)
        durable.sync(self.path)

    def _check_is_ours_alone(self) -> None:
        """The folder's mode is changed for everything in it: AUTHSVC_KEYS=/etc must not shut others out of /etc."""
        known = {*_BESIDE_KEYS, MANIFEST, _LOCK, _JOURNAL}
        strange = [
            name
            for name in os.listdir(self.path)
            if name not in known and not _PART.fullmatch(name) and not name.startswith(f"{MANIFEST}.")
        ]
        if strange:
            raise KeysError(
                f"{self.path} holds other files, such as {strange[0]!r}; mend: give the keys a folder of their own"
            )

    def _check_no_parts(self) -> None:
        parts = sorted(name for name in os.listdir(self.path) if _PART.fullmatch(name))
        if parts:
            raise KeysError(
                f"{self.path} holds private parts such as {parts[0]} but no {MANIFEST}; "
                f"mend: restore {MANIFEST} from the backup, or move the parts away to start with new keys"
            )


class _Missing(KeysError):
    """A file is not there."""


class _AnotherPassphrase(KeysError):
    """A part is under another passphrase than ours, or one of the two is without."""


class _Maker:
    """Makes keys for a transition, and keeps their private parts until they are written."""

    def __init__(
        self, random_bytes: Callable[[int], bytes], generate: Callable[[str], PrivateKey], passphrase: str | None
    ) -> None:
        self._random_bytes = random_bytes
        self._generate = generate
        self._passphrase = passphrase
        self.parts: dict[str, bytes] = {}  # name of the file → its bytes

    def signing(self, alg: str) -> PublicJwk:
        while True:
            key = self._generate(alg)
            jwk = public_jwk(key.public_key())
            # Shells and proxies take a leading "-" for an option: such a key is thrown away.
            if not jwk.kid.startswith("-"):
                self.put(signing_record(jwk, now=0), key)
                return jwk

    def secret(self, kind: Kind) -> str:
        key = self._random_bytes(KEY_BYTES)
        key_id = secret_key_id(key)
        self.put(secret_record(kind, key_id, now=0, activate_at=0), key)
        return key_id

    def put(self, record: KeyRecord, key: PrivateKey | bytes) -> None:
        """The bytes of a private part, for the file that the record names."""
        if isinstance(key, bytes):
            part = dump_secret_key(key, record.kind, self._passphrase, random_bytes=self._random_bytes)
        else:
            part = dump_signing_key(key, self._passphrase, random_bytes=self._random_bytes)
        self.parts[record.file] = part


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _complain(problem: str, problems: list[str] | None) -> None:
    if problems is None:
        raise KeysError(problem)
    problems.append(problem)


def _check_owner(path: Path, found: os.stat_result, problems: list[str] | None) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        owner, we = _user(found.st_uid), _user(os.geteuid())
        # As root too: what root writes here, the service cannot read.
        mend = f"run this as {owner} (sudo -u {owner} …), or chown it to {we} if the service runs as that"
        _complain(f"{path} belongs to another user, {owner}; mend: {mend}", problems)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _ended_parts(keyset: Keyset, *, now: int) -> set[str]:
    return {record.file for record in keyset.keys if not record.has_part(keyset.lifecycle, now=now)}


def _journalled(data: bytes) -> list[str]:
    """The names in a journal; none if it was cut short, for then nothing was done yet."""
    try:
        names = json.loads(data)
    except ValueError:
        return []
    if not isinstance(names, list):
        return []
    # They are removed: nothing but a private part in this very folder may stand here.
    return [name for name in names if isinstance(name, str) and _PART.fullmatch(name)]
