"""The key folder on disk: one manifest that is only ever replaced whole, one file for each private part.

Write order: private parts first (new files, never rewritten), then the manifest, by one rename. So a crash at any
instant leaves the old state or the new one, and at worst files that no manifest names.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from authsvc.encoding import base64_decode, base64_encode
from authsvc.errors import KeysError
from authsvc.jwk import RSA_EXPONENT, RSA_MIN_BITS, PrivateKey, PublicJwk, public_jwk
from authsvc.keyring import Keyring
from authsvc.keyset import KeyRecord, Keyset, Kind, Lifecycle, Purpose, State, dump_manifest, new_keyset, parse_manifest
from authsvc.sealing import KEY_BYTES

MANIFEST: Final = "keyset.json"

_LOCK: Final = ".lock"
_INIT_MARK: Final = (
    ".init"  # stands while `init` works: files without a manifest are then leftovers, not a lost manifest
)
_KUBERNETES_DATA: Final = "..data"  # a Secret volume is swapped by renaming this symlink

_PARTS: Final = ("sign-", "seal-", "index-")
_BESIDE_KEYS: Final = ("README.md", ".gitignore", ".gitkeep", "lost+found")  # what a clone or a volume brings along

_MAX_MANIFEST_BYTES: Final = 1 << 20
_MAX_KEY_BYTES: Final = 1 << 16
_LOCK_WAIT_S: Final = 5.0
_READ_ATTEMPTS: Final = 3

_LIVE: Final = (State.PENDING, State.ACTIVE)
_OPENS: Final = (State.PENDING, State.ACTIVE, State.RETIRING)


def generate_key(alg: str) -> PrivateKey:
    """A fresh private key for one of jwk.ALGORITHMS."""
    match alg:
        case "ES256":
            return generate_private_key(SECP256R1())
        case "EdDSA":
            return Ed25519PrivateKey.generate()
        case "RS256":
            return generate_rsa_key(public_exponent=RSA_EXPONENT, key_size=RSA_MIN_BITS)
        case _:
            raise KeysError(f"{alg} is not an algorithm we sign with")


class KeyFolder:
    """The folder that holds the keys. With `group_read` others of the group may read, and nothing is written:
    the form that a Kubernetes Secret has."""

    def __init__(self, path: Path, *, group_read: bool = False) -> None:
        self.path = path.absolute()
        self._group_read = group_read

    def is_initialised(self) -> bool:
        return (self.path / MANIFEST).exists()

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
        with self._writing():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                if self.is_initialised():
                    (self.path / _INIT_MARK).unlink(missing_ok=True)
                    return False
                self._check_is_ours_alone()
                # A bare clone brings the folder, for its runbook, with the modes that everything has.
                self.path.chmod(0o700)
                self._clear_leftovers()
                self._create(_INIT_MARK, b"")
                active, standby = (self._create_signing_key(alg, generate) for _ in range(2))
                keyset = new_keyset(
                    purpose=purpose,
                    lifecycle=lifecycle,
                    active=active,
                    standby=standby,
                    sealing_id=self._create_secret_key(Kind.SEALING, random_bytes),
                    index_id=self._create_secret_key(Kind.INDEX, random_bytes),
                    now=now,
                )
                self._replace_manifest(keyset)
                (self.path / _INIT_MARK).unlink()
                self.load(now=now)  # what was written is what can be read
                return True

    def load(self, *, now: int) -> Keyring:
        """Read and check everything; whole or not at all.

        Raises: KeysError, naming the file and the mend, for a missing or broken manifest, loose permissions, a
        private part that is missing or another's, a clock that is behind the manifest.
        """
        for attempt in range(1, _READ_ATTEMPTS + 1):
            # One descriptor for the whole read: two opens by path could see two generations of a swapped folder.
            folder = self._open_folder()
            try:
                data = self._read(folder, MANIFEST, _MAX_MANIFEST_BYTES)
                try:
                    return self._load_from(folder, data, now=now)
                except KeysError:
                    # A writer may have replaced the manifest and destroyed old parts since we read it.
                    if attempt == _READ_ATTEMPTS or self._manifest_is(data):
                        raise
            finally:
                os.close(folder)
        raise AssertionError("the loop returns or raises")

    def update(self, change: Callable[[Keyset], Keyset]) -> Keyset:
        """Replace the manifest by what `change` makes of it, decided under the lock. Returns the one in force.

        Raises: KeysError if the folder cannot be written; nothing is changed then.
        """
        if self._group_read:
            raise KeysError(f"{self.path} is read-only here (AUTHSVC_KEYS_GROUP_READ)")
        with self._writing(), self._locked():
            folder = self._open_folder()
            try:
                before = self._parse(self._read(folder, MANIFEST, _MAX_MANIFEST_BYTES))
            finally:
                os.close(folder)
            after = change(before)
            if after != before:
                self._replace_manifest(after)
            return after

    # ---- reading ----

    def _open_folder(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            try:
                folder = os.open(self.path / _KUBERNETES_DATA, flags)
            except FileNotFoundError:
                folder = os.open(self.path, flags)
        except FileNotFoundError:
            raise KeysError(f"there is no key folder {self.path}; mend: authsvc keys init (make keys)") from None
        except OSError as error:
            raise KeysError(
                f"the key folder {self.path} cannot be opened: {error.strerror}; "
                "mend: give it, and the way to it, to the user of the service (chown, chmod)"
            ) from None
        try:
            self._check_folder_mode(folder)
        except KeysError:
            os.close(folder)
            raise
        return folder

    def _check_folder_mode(self, folder: int) -> None:
        try:
            # First: in a bare clone the folder is there, open to all and empty, and its mode is not what is amiss.
            os.stat(MANIFEST, dir_fd=folder)
        except FileNotFoundError:
            raise self._missing(MANIFEST) from None
        found = os.fstat(folder)
        if found.st_uid not in (os.geteuid(), 0):
            raise KeysError(f"{self.path} belongs to another user; mend: chown it to the user of the service")
        mode = stat.S_IMODE(found.st_mode)
        if self._group_read:
            # The files carry the protection; of the folder only that nobody else can put files into it.
            read_only = os.fstatvfs(folder).f_flag & os.ST_RDONLY
            if mode & 0o022 and not read_only:
                raise KeysError(f"{self.path} can be written by others; mend: chmod go-w {self.path}")
        elif mode & 0o077:
            raise KeysError(f"{self.path} is open to others (mode {mode:04o}); mend: chmod 700 {self.path}")

    def _read(self, folder: int, name: str, limit: int) -> bytes:
        path = self.path / name
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise KeysError(f"{path} cannot be opened: {error.strerror}") from None
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeysError(f"{path} is no regular file")
            if found.st_uid not in (os.geteuid(), 0):
                raise KeysError(f"{path} belongs to another user; mend: chown it to the user of the service")
            mode = stat.S_IMODE(found.st_mode)
            if mode & (0o037 if self._group_read else 0o077):
                mend = f"chmod {'640' if self._group_read else '600'} {path}"
                raise KeysError(f"{path} is open to others (mode {mode:04o}); mend: {mend}")
            data = file.read(limit + 1)
        if len(data) > limit:
            raise KeysError(f"{path} is larger than any file that authsvc writes")
        return data

    def _missing(self, name: str) -> KeysError:
        mend = "restore it from the backup of this folder"
        if name == MANIFEST:
            mend = f"authsvc keys init (make keys) if this is the first start, else {mend}"
        return KeysError(f"{self.path / name} is missing; mend: {mend}")

    def _parse(self, data: bytes) -> Keyset:
        try:
            return parse_manifest(data)
        except KeysError as error:
            path = self.path / MANIFEST
            raise KeysError(f"{path} cannot be used: {error}; mend: restore the folder from its backup") from None

    def _load_from(self, folder: int, data: bytes, *, now: int) -> Keyring:
        keyset = self._parse(data)
        if now < keyset.updated_at - keyset.lifecycle.skew_s:
            raise KeysError(
                f"the clock is {keyset.updated_at - now} s behind the last change of {self.path / MANIFEST}; "
                "mend: set the clock"
            )
        private_keys: dict[str, PrivateKey] = {}
        secret_keys: dict[str, bytes] = {}
        for record in keyset.keys:
            # A retiring signing key only verifies, and its private part is destroyed early; a sealing key opens.
            if record.state(now=now) not in (_LIVE if record.kind is Kind.SIGNING else _OPENS):
                continue
            part = self._read(folder, record.file, _MAX_KEY_BYTES)
            if record.kind is Kind.SIGNING:
                private_keys[record.id] = self._parse_signing_key(part, record)
            else:
                secret_keys[record.id] = self._parse_secret_key(part, record)
        for kind in (Kind.SIGNING, Kind.SEALING):
            keyset.active(kind, now=now)
        return Keyring(keyset, private_keys, secret_keys)

    def _parse_signing_key(self, data: bytes, record: KeyRecord) -> PrivateKey:
        path = self.path / record.file
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # `from None`: what the parser says of a broken key may quote it.
            raise KeysError(f"{path} holds no private key in PEM; mend: restore it from the backup") from None
        if not isinstance(key, EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey):
            raise KeysError(f"{path} holds a key of another kind; mend: restore it from the backup")
        if record.jwk is None or not _is_private_half(key, record.jwk):
            raise KeysError(f"{path} holds another key than the manifest says; mend: restore it from the backup")
        return key

    def _parse_secret_key(self, data: bytes, record: KeyRecord) -> bytes:
        path = self.path / record.file
        try:
            key = base64_decode(data.decode("ascii").removesuffix("\n"))
        except ValueError:
            raise KeysError(f"{path} holds no key; mend: restore it from the backup") from None
        if len(key) != KEY_BYTES or _secret_key_id(key) != record.id:
            raise KeysError(f"{path} holds another key than the manifest says; mend: restore it from the backup")
        return key

    def _manifest_is(self, data: bytes) -> bool:
        folder = self._open_folder()
        try:
            return self._read(folder, MANIFEST, _MAX_MANIFEST_BYTES) == data
        finally:
            os.close(folder)

    # ---- writing ----

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The path of the error may be a temporary name; the folder is what the operator can mend.
            raise KeysError(f"{self.path} cannot be written: {error.strerror}; nothing was changed") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time on this host. Promised on local disks, not on network file systems."""
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            give_up_at = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= give_up_at:
                        raise KeysError(f"another command is changing {self.path}; try again") from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)

    def _check_is_ours_alone(self) -> None:
        """The folder's mode is changed for everything in it: AUTHSVC_KEYS=/etc must not shut others out of /etc."""
        known = {*_BESIDE_KEYS, MANIFEST, _LOCK, _INIT_MARK}
        strange = [p.name for p in self.path.iterdir() if p.name not in known and not p.name.startswith(_PARTS)]
        if strange:
            (self.path / _LOCK).unlink()
            raise KeysError(
                f"{self.path} holds other files, such as {strange[0]!r}; mend: give the keys a folder of their own"
            )

    def _clear_leftovers(self) -> None:
        parts = [p for p in self.path.iterdir() if p.name.startswith(_PARTS)]
        if parts and not (self.path / _INIT_MARK).exists():
            raise KeysError(
                f"{self.path} holds private parts such as {parts[0].name} but no {MANIFEST}; "
                f"mend: restore {MANIFEST} from the backup, or move the parts away to start with new keys"
            )
        for part in parts:
            part.unlink()
        (self.path / _INIT_MARK).unlink(missing_ok=True)

    def _create_signing_key(self, alg: str, generate: Callable[[str], PrivateKey]) -> PublicJwk:
        while True:
            key = generate(alg)
            jwk = public_jwk(key.public_key())
            # Shells and proxies take a leading "-" for an option: such a key is thrown away.
            if not jwk.kid.startswith("-"):
                break
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._create(f"sign-{jwk.kid}.pem", pem)
        return jwk

    def _create_secret_key(self, kind: Kind, random_bytes: Callable[[int], bytes]) -> str:
        key = random_bytes(KEY_BYTES)
        key_id = _secret_key_id(key)
        name = f"{'seal' if kind is Kind.SEALING else 'index'}-{key_id}.key"
        self._create(name, base64_encode(key).encode("ascii") + b"\n")
        return key_id

    def _replace_manifest(self, keyset: Keyset) -> None:
        for left_over in self.path.glob(f"{MANIFEST}.*.tmp"):
            left_over.unlink()  # of a process that died; we hold the lock
        temporary = f"{MANIFEST}.{os.getpid()}.tmp"
        try:
            self._create(temporary, dump_manifest(keyset))
            os.replace(self.path / temporary, self.path / MANIFEST)
        except OSError:
            (self.path / temporary).unlink(missing_ok=True)
            raise
        self._sync_folder()

    def _create(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self.path / name, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._sync_folder()

    def _sync_folder(self) -> None:
        # fsync(2): syncing a file does not sync the entry that names it.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_private_half(key: PrivateKey, jwk: PublicJwk) -> bool:
    try:
        return public_jwk(key.public_key()).kid == jwk.kid
    except ValueError:
        return False


def _secret_key_id(key: bytes) -> str:
    """Eight hex digits that a key answers for itself, so that a file of another key under this name is noticed."""
    return hmac.new(key, b"authsvc key id", hashlib.sha256).hexdigest()[:8]
