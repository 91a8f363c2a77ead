"""What a session_key signs and encrypts, done from WeChat's pages and without a line of authsvc's own client.

Sources: https://developers.weixin.qq.com/miniprogram/dev/framework/open-ability/signature.html, and on the signature of
a request https://developers.weixin.qq.com/minigame/dev/tutorial/open-ability/http-signature.html
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

# In the encrypted part alone; the phone gets the rest in rawData, in the clear.
_ONLY_ENCRYPTED: Final = frozenset({"openId", "unionId", "watermark"})

_AES_BLOCK_BITS: Final = 128


def profile(user: str, openid: str, unionid: str | None) -> dict[str, object]:
    """What wx.getUserInfo tells of a user, without the watermark."""
    about: dict[str, object] = {
        "openId": openid,
        # The flower takes four bytes of UTF-8 and two units of UTF-16, as the names of real users do.
        "nickName": f"微信用户 {user} 🌸",
        "gender": 1,
        "language": "zh_CN",
        "city": "Guangzhou",
        "province": "Guangdong",
        "country": "China",
        "avatarUrl": "https://thirdwx.qlogo.cn/mmopen/vi_32/sandbox/132",
    }
    return about if unionid is None else {**about, "unionId": unionid}


def sealed(members: Mapping[str, object], *, session_key: str, iv: bytes) -> dict[str, str]:
    """These members, signed and encrypted, as the phone gets them: rawData, signature, encryptedData and iv.

    `session_key` is base64 of 16 bytes, `iv` 16 bytes.
    """
    raw_data = _json({name: value for name, value in members.items() if name not in _ONLY_ENCRYPTED})
    return {
        "rawData": raw_data,
        "signature": raw_data_signature(raw_data, session_key),
        "encryptedData": base64.b64encode(encrypted(_json(members).encode(), session_key, iv)).decode(),
        "iv": base64.b64encode(iv).decode(),
    }


def raw_data_signature(raw_data: str, session_key: str) -> str:
    """Lower-case hex of SHA-1 over rawData and the text of the session_key."""
    # SHA-1 because WeChat says so.
    return hashlib.sha1(raw_data.encode() + session_key.encode(), usedforsecurity=False).hexdigest()


def request_signature(body: bytes, session_key: str) -> str:
    """Lower-case hex of HMAC-SHA256 over a request's body. The key is the session_key's text, not what it encodes."""
    return hmac.new(session_key.encode(), body, hashlib.sha256).hexdigest()


def encrypted(plaintext: bytes, session_key: str, iv: bytes) -> bytes:
    """AES-128-CBC with PKCS #7 padding."""
    padder = PKCS7(_AES_BLOCK_BITS).padder()
    encryptor = Cipher(algorithms.AES(base64.b64decode(session_key)), modes.CBC(iv)).encryptor()
    return encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
