"""Seal a session_key to the row it belongs to, and open it again (AES-256-GCM, NIST SP 800-38D)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from authsvc.errors import SealBroken

KEY_BYTES: Final = 32

_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
# Random nonces of 96 bits: at most 2^32 seals under one key keep a collision below 2^-32 (SP 800-38D, 8.3).
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_PREFIX_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES + _NONCE_BYTES

START_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES
"""So many bytes at the beginning of a blob tell its key."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """`id` is eight hex digits, as in the name of its file."""

    id: str
    key: bytes = field(repr=False)
    cipher: AESGCM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cipher", AESGCM(self.key))


@dataclass(frozen=True, slots=True)
class Place:
    """The row that a sealed value belongs to; it opens nowhere else, and under no other expiry."""

    table: str
    appid: str
    openid: str
    sid: str
    expires_at: int  # Unix seconds


def seal(secret: bytes, key: SealingKey, place: Place, *, random_bytes: Callable[[int], bytes]) -> bytes:
    """version (1 byte) | key id (4) | nonce (12) | ciphertext and tag."""
    nonce = random_bytes(_NONCE_BYTES)
    sealed = key.cipher.encrypt(nonce, secret, _associated_data(place, key.id))
    return sealed_start(key.id) + nonce + sealed


def sealing_key_id(blob: bytes) -> str:
    """The id of the key that a blob was sealed under. Raises: SealBroken if it is none of ours."""
    if len(blob) < _PREFIX_BYTES + _TAG_BYTES:
        raise SealBroken("not a sealed value")
    return key_id_of_start(blob[:START_BYTES])


def sealed_start(key_id: str) -> bytes:
    """How every blob begins that was sealed under this key."""
    return _VERSION + bytes.fromhex(key_id)


def key_id_of_start(start: bytes) -> str:
    """The key of blobs that begin like this. Raises: SealBroken if none of ours does."""
    if len(start) != START_BYTES or not start.startswith(_VERSION):
        raise SealBroken("not a sealed value")
    return start[len(_VERSION) :].hex()


def open_sealed(blob: bytes, key: SealingKey, place: Place) -> bytes:
    """Raises: SealBroken for changed bytes, another key, or a row that is not the one it was sealed for."""
    if sealing_key_id(blob) != key.id:
        raise SealBroken("sealed under another key")
    nonce = blob[_PREFIX_BYTES - _NONCE_BYTES : _PREFIX_BYTES]
    try:
        return key.cipher.decrypt(nonce, blob[_PREFIX_BYTES:], _associated_data(place, key.id))
    except InvalidTag:
        raise SealBroken("the value does not belong to this row") from None


def _associated_data(place: Place, key_id: str) -> bytes:
    fields = (place.table, place.appid, place.openid, place.sid, key_id, str(place.expires_at))
    # Each with its length before it: ("ab", "c") and ("a", "bc") must not be the same bytes.
    return b"".join(len(data).to_bytes(2, "big") + data for data in (text.encode("utf-8") for text in fields))
