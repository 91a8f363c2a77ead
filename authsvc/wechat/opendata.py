"""What WeChat signs and encrypts with a session_key: open data, and requests of our own.

https://developers.weixin.qq.com/miniprogram/dev/framework/open-ability/signature.html
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from authsvc.encoding import NotCanonical, base64_decode, parse_json_object
from authsvc.errors import DecryptFailed, SignatureInvalid

MAX_ENCRYPTED_BYTES: Final = 196_608
"""Of a ciphertext that is looked at: some hundred times what WeChat sends."""

SIG_METHOD: Final = "hmac_sha256"

OTHER_KEY: Final = "made under another session_key, or changed"

_BLOCK_BYTES: Final = 16


def decrypt(
    encrypted_data: str, iv: str, session_key: str, *, appid: str, openid: str, now: int, window_s: int
) -> dict[str, Any]:
    """The object in `encryptedData` (AES-128-CBC, PKCS #7), watermark and all.

    It has to carry this appid in its watermark, a timestamp at most `window_s` seconds from `now` (Unix seconds) and,
    if there is an openId in it, this one. CBC authenticates nothing: these are the only proof that the right key was
    used. Both texts may have spaces in the place of "+", as a form makes them.
    Raises: DecryptFailed.
    """
    key, block, ciphertext = _base64(session_key), _base64(iv), _base64(encrypted_data)
    if len(key) != _BLOCK_BYTES or len(block) != _BLOCK_BYTES:
        raise DecryptFailed("key or iv is not 16 bytes")
    if not ciphertext or len(ciphertext) % _BLOCK_BYTES or len(ciphertext) > MAX_ENCRYPTED_BYTES:
        raise DecryptFailed("the ciphertext is not whole blocks, or too many")
    decryptor = Cipher(AES(key), CBC(block)).decryptor()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    data = _parsed(padded)
    watermark = data.get("watermark")
    if not isinstance(watermark, dict) or watermark.get("appid") != appid:
        raise DecryptFailed("the watermark has another appid, or there is none")
    timestamp = watermark.get("timestamp")
    # bool is an int to isinstance; `"timestamp": true` must not pass as second 1.
    if type(timestamp) is not int or abs(now - timestamp) > window_s:
        off = f"{timestamp - now:+d} s from now" if type(timestamp) is int else "no number"
        raise DecryptFailed(f"the watermark's timestamp is {off}, and {window_s} s are allowed")
    if "openId" in data and data["openId"] != openid:
        raise DecryptFailed("the data are another user's")
    return data


def verify_signature(raw_data: str, signature: str, session_key: str) -> None:
    """Return if `signature` is the one that WeChat gives with `rawData`, compared in constant time; raise if it is not.

    `raw_data` is the text as the client got it; written anew from the parsed JSON it is another one.
    Raises: SignatureInvalid.
    """
    # SHA-1 over data and key is WeChat's choice.
    expected = hashlib.sha1((raw_data + session_key).encode("utf-8"), usedforsecurity=False).hexdigest()
    if not hmac.compare_digest(expected.encode("ascii"), signature.encode("utf-8")):
        raise SignatureInvalid("rawData and signature do not belong together")


def sign(body: str, session_key: str) -> str:
    """WeChat's user login-state signature of a request body, "" for a GET: HMAC-SHA256 in lower-case hex.

    The key is the session_key's text, not the bytes that it stands for.
    https://developers.weixin.qq.com/minigame/en/dev/tutorial/open-ability/http-signature.html
    """
    return hmac.new(session_key.encode("ascii"), body.encode("utf-8"), hashlib.sha256).hexdigest()


def _base64(text: str) -> bytes:
    try:
        return base64_decode(text.replace(" ", "+"))
    except NotCanonical as error:
        raise DecryptFailed(str(error)) from None


def _parsed(padded: bytes) -> dict[str, Any]:
    # A bad padding is not told before the rest has been read too: who changes bytes and takes the time must not learn
    # whether the padding was good (a padding oracle).
    count = padded[-1] if 1 <= padded[-1] <= _BLOCK_BYTES else 1
    well_padded = hmac.compare_digest(padded[-count:], bytes([padded[-1]]) * count) and padded[-1] == count
    try:
        # Without the raw control characters that WeChat's other answers may have: they would make a block of noise look
        # like a part of a text a hundred times as often, and who can try for long enough builds texts of such blocks.
        data = parse_json_object(padded[:-count])
    except NotCanonical:
        data = None
    if data is None or not well_padded:
        raise DecryptFailed(OTHER_KEY)
    return data
