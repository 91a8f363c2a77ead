"""The public keys as files, for verifiers that read files: HAProxy, nginx, a mounted volume."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authsvc import durable
from authsvc.errors import KeysError
from authsvc.keyfiles import KeyFolder, holds_keys
from authsvc.keyset import Keyset

JWKS_FILE: Final = "jwks.json"

_SPKI: Final = PublicFormat.SubjectPublicKeyInfo
_MODE: Final = 0o644  # public, and read by other users' programs
_PEM_NAME: Final = re.compile(r"[A-Za-z0-9_-]{43}\.pem")
_PEM_START: Final = b"-----BEGIN PUBLIC KEY-----"


def export_public_keys(keyset: Keyset, target: Path, *, now: int, key_folder: KeyFolder) -> tuple[list[str], list[str]]:
    """Write `jwks.json` and `<kid>.pem` for every key in the JWKS; PEMs of keys that are no longer in it go.

    Each file is replaced whole; the JWKS comes after the PEMs it names. Returns the names written and removed.
    Raises: KeysError if the folder cannot be written, or holds private parts: public and private never lie together.
    """
    published = [record.jwk for record in keyset.published(now=now) if record.jwk is not None]
    try:
        target.mkdir(parents=True, exist_ok=True)
        if holds_keys(target) or os.path.samefile(target, key_folder.path):
            raise KeysError(f"{target} holds private keys; mend: export into a folder of its own")
        files = {f"{jwk.kid}.pem": jwk.key.public_bytes(Encoding.PEM, _SPKI) for jwk in published}
        files[JWKS_FILE] = json.dumps({"keys": [jwk.as_dict() for jwk in published]}, indent=2).encode("ascii") + b"\n"
        for name, data in files.items():
            durable.replace(target, name, data, mode=_MODE)
        gone = [path.name for path in target.iterdir() if path.name not in files and _is_public_pem(path)]
        for name in gone:
            durable.remove(target, name)
        durable.sync(target)
    except OSError as error:
        raise KeysError(f"{target} cannot be written: {error.strerror}") from None
    return list(files), sorted(gone)


def _is_public_pem(path: Path) -> bool:
    if not _PEM_NAME.fullmatch(path.name) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_PEM_START)) == _PEM_START
