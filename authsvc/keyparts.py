"""The bytes of a private part: PKCS#8 for signing keys, 32 random bytes in base64 for the others; both also encrypted.

Under a passphrase, scrypt makes the key of either form. The encrypted PKCS#8 (RFC 5958; PBES2, RFC 8018; scrypt, RFC
7914) is put together here, because cryptography writes PBKDF2 with 2,048 rounds alone, and the weakest of the files is
what the passphrase is guessed by. `openssl pkey` reads it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any, Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from authsvc.encoding import base64_decode, base64_encode, parse_json_object
from authsvc.errors import KeysError
from authsvc.jwk import RSA_EXPONENT, RSA_MIN_BITS, PrivateKey, PublicJwk, public_jwk
from authsvc.keyset import Kind
from authsvc.sealing import KEY_BYTES

MIN_PASSPHRASE_CHARS: Final = 12
"""Below this, no key derivation helps against whoever has the files."""


class BadPart(ValueError):
    """The bytes are not this private part. The message never quotes them."""


class PassphraseNeeded(BadPart):
    """The part is encrypted, and no passphrase, or another one, was given."""


class PartInClear(BadPart):
    """A passphrase was given, and the part is not encrypted: what protects nothing must not look as if it did."""


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


def dump_signing_key(key: PrivateKey, passphrase: str | None, *, random_bytes: Callable[[int], bytes]) -> bytes:
    """PKCS#8 in PEM, encrypted if there is a passphrase."""
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return _encrypted_pkcs8(der, passphrase, random_bytes)


def parse_signing_key(data: bytes, jwk: PublicJwk, passphrase: str | None) -> PrivateKey:
    """Raises: BadPart if it is not the private half of `jwk`; PassphraseNeeded; PartInClear."""
    encrypted = data.lstrip().startswith(_pem_boundary("BEGIN").encode("ascii"))
    _check_protection(encrypted, passphrase)
    try:
        key = load_pem_private_key(data, password=passphrase.encode("utf-8") if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # `from None`: what the parser says of a broken key may quote it.
        if encrypted:
            raise PassphraseNeeded("does not open with this passphrase") from None
        raise BadPart("holds no private key in PEM") from None
    if not isinstance(key, EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey):
        raise BadPart("holds a key of another kind")
    if not _is_private_half(key, jwk):
        raise BadPart("holds another key than the manifest says")
    return key


def dump_secret_key(key: bytes, kind: Kind, passphrase: str | None, *, random_bytes: Callable[[int], bytes]) -> bytes:
    """One line of base64, or one of JSON with the key under AES-256-GCM if there is a passphrase."""
    if passphrase is None:
        return base64_encode(key).encode("ascii") + b"\n"
    salt, nonce = random_bytes(_SALT_BYTES), random_bytes(_NONCE_BYTES)
    sealed = AESGCM(_derived(passphrase, salt)).encrypt(nonce, key, _bound_to(kind, secret_key_id(key)))
    document = {
        "format": _SECRET_FORMAT,
        "scrypt": {"n": _SCRYPT_N, "r": _SCRYPT_R, "p": _SCRYPT_P, "salt": base64_encode(salt)},
        "nonce": base64_encode(nonce),
        "sealed": base64_encode(sealed),
    }
    return json.dumps(document).encode("ascii") + b"\n"


def parse_secret_key(data: bytes, kind: Kind, key_id: str, passphrase: str | None) -> bytes:
    """Raises: BadPart if it is not the key of this id; PassphraseNeeded; PartInClear."""
    encrypted = data.startswith(b"{")
    _check_protection(encrypted, passphrase)
    try:
        if passphrase is not None:
            key = _opened(parse_json_object(data), passphrase, _bound_to(kind, key_id))
        else:
            key = base64_decode(data.decode("ascii").removesuffix("\n"))
    except InvalidTag:
        raise PassphraseNeeded("does not open with this passphrase") from None
    except (ValueError, KeyError, TypeError):
        raise BadPart("holds no key") from None
    if len(key) != KEY_BYTES or secret_key_id(key) != key_id:
        raise BadPart("holds another key than the manifest says")
    return key


def secret_key_id(key: bytes) -> str:
    """Eight hex digits that a key answers for itself, so that a file of another key under this name is noticed."""
    return hmac.new(key, b"authsvc key id", hashlib.sha256).hexdigest()[:8]


# ---- encryption under a passphrase --------------------------------------------------------------

# What OWASP's password storage advice asks for within the 32 MiB that `openssl` allows itself: 0.3 s and 16 MiB a file.
_SCRYPT_N: Final = 2**14
_SCRYPT_R: Final = 8
_SCRYPT_P: Final = 5
_SCRYPT_MEMORY: Final = 2**25
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_AES_KEY_BYTES: Final = 32
_AES_BLOCK_BYTES: Final = 16

_SECRET_FORMAT: Final = "authsvc-secret/1"  # noqa: S105 - the name of a format
_PEM_LABEL: Final = "ENCRYPTED PRIVATE KEY"  # RFC 7468, 11


def _check_protection(encrypted: bool, passphrase: str | None) -> None:
    if encrypted and passphrase is None:
        raise PassphraseNeeded("is under a passphrase")
    if not encrypted and passphrase is not None:
        raise PartInClear("is not under a passphrase")


def _derived(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        passphrase.encode("utf-8"),
        salt=salt,
        n=_SCRYPT_N,
        r=_SCRYPT_R,
        p=_SCRYPT_P,
        maxmem=_SCRYPT_MEMORY,
        dklen=_AES_KEY_BYTES,
    )


def _bound_to(kind: Kind, key_id: str) -> bytes:
    # A file under another name does not open: the associated data has the name in it.
    return f"{_SECRET_FORMAT} {kind} {key_id}".encode("ascii")


def _opened(document: dict[str, Any], passphrase: str, bound_to: bytes) -> bytes:
    parameters = document["scrypt"]
    # Ours and no other: parameters of somebody else's choice could ask for any amount of memory.
    if document["format"] != _SECRET_FORMAT or parameters != _SCRYPT | {"salt": parameters["salt"]}:
        raise BadPart("holds no key")
    key = AESGCM(_derived(passphrase, base64_decode(parameters["salt"])))
    return key.decrypt(base64_decode(document["nonce"]), base64_decode(document["sealed"]), bound_to)


_SCRYPT: Final = {"n": _SCRYPT_N, "r": _SCRYPT_R, "p": _SCRYPT_P}

# DER (X.690) as far as this one structure needs it.
_SEQUENCE: Final = 0x30
_OCTET_STRING: Final = 0x04
_INTEGER: Final = 0x02
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13 (RFC 8018, A.4)
_SCRYPT_OID: Final = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11 (RFC 7914, 7)
_AES_256_CBC: Final = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42
_PEM_LINE_CHARS: Final = 64


def _encrypted_pkcs8(der: bytes, passphrase: str, random_bytes: Callable[[int], bytes]) -> bytes:
    """EncryptedPrivateKeyInfo (RFC 5958, 3) in PEM (RFC 7468, 11)."""
    salt, start = random_bytes(_SALT_BYTES), random_bytes(_AES_BLOCK_BYTES)
    padder = PKCS7(_AES_BLOCK_BYTES * 8).padder()
    encryptor = Cipher(AES(_derived(passphrase, salt)), CBC(start)).encryptor()
    encrypted = encryptor.update(padder.update(der) + padder.finalize()) + encryptor.finalize()
    parameters = map(_der_integer, (_SCRYPT_N, _SCRYPT_R, _SCRYPT_P))
    kdf = _der(_SEQUENCE, _SCRYPT_OID, _der(_SEQUENCE, _der(_OCTET_STRING, salt), *parameters))
    scheme = _der(_SEQUENCE, _AES_256_CBC, _der(_OCTET_STRING, start))
    algorithm = _der(_SEQUENCE, _PBES2, _der(_SEQUENCE, kdf, scheme))
    text = base64_encode(_der(_SEQUENCE, algorithm, _der(_OCTET_STRING, encrypted)))
    lines = [text[i : i + _PEM_LINE_CHARS] for i in range(0, len(text), _PEM_LINE_CHARS)]
    return "\n".join([_pem_boundary("BEGIN"), *lines, _pem_boundary("END"), ""]).encode("ascii")


def _pem_boundary(which: str) -> str:
    # Put together: whoever looks through the code for private keys that got into it is to find none.
    return f"-----{which} {_PEM_LABEL}-----"


def _der(tag: int, *contents: bytes) -> bytes:
    body = b"".join(contents)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _der_integer(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _is_private_half(key: PrivateKey, jwk: PublicJwk) -> bool:
    try:
        return public_jwk(key.public_key()).kid == jwk.kid
    except ValueError:
        return False
