"""base64url and JSON read so that one value has one spelling (RFC 7515, 2 and 5.2; RFC 8725, 2.4 and 3.7)."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any, Final, NoReturn

_MAX_OPENINGS: Final = 1_000

_BASE64URL: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
# By the length of the text modulo 4: what its last character may be, for its unused bits to be zero, and the padding.
_LAST: Final = {0: frozenset(_BASE64URL), 2: frozenset(_BASE64URL[::16]), 3: frozenset(_BASE64URL[::4])}
_PADDING: Final = {0: b"", 2: b"==", 3: b"="}


class NotCanonical(ValueError):
    """The text is not the one spelling we accept. The message never quotes the text: it may be a secret."""


def base64url_encode(data: bytes) -> str:
    """Without padding, as RFC 7515 wants it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def base64url_decode(text: str | bytes) -> bytes:
    """Bytes of an unpadded base64url text of at least one character.

    Raises: NotCanonical for padding, white space, other alphabets, and for a last character whose unused bits
    are not zero: Python ignores those bits, so that up to sixteen texts would stand for the same bytes.
    """
    if isinstance(text, str):
        try:
            text = text.encode("ascii")
        except UnicodeEncodeError:
            raise NotCanonical("not base64url") from None
    if text.translate(None, _BASE64URL):
        raise NotCanonical("not base64url")
    return _decoded_base64url(text)


def split_base64url(text: str) -> list[bytes]:
    """The parts of a text of base64url and dots, for `base64url_part`. Raises: NotCanonical for other characters."""
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise NotCanonical("not base64url") from None
    if data.translate(None, _BASE64URL).strip(b"."):
        raise NotCanonical("not base64url")
    return data.split(b".")


def base64url_part(part: bytes) -> bytes:
    """`base64url_decode` of a part that `split_base64url` gave, whose alphabet has been looked at."""
    return _decoded_base64url(part)


def _decoded_base64url(text: bytes) -> bytes:
    over = len(text) % 4
    if over == 1 or not text:
        raise NotCanonical("not base64url")
    if text[-1] not in _LAST[over]:
        raise NotCanonical("not canonical base64url")
    return binascii.a2b_base64(text.translate(_TO_STANDARD) + _PADDING[over])


def base64_encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def base64_decode(text: str) -> bytes:
    """Bytes of a padded base64 text (RFC 4648, 4) in its one spelling. Raises: NotCanonical."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NotCanonical("not base64") from None
    if base64_encode(data) != text:
        raise NotCanonical("not canonical base64")
    return data


def parse_json_object(
    data: bytes, *, control_characters: bool = False, max_openings: int = _MAX_OPENINGS
) -> dict[str, Any]:
    """One JSON object in UTF-8.

    Raises: NotCanonical for anything else: a BOM or another encoding, duplicate members at any depth (two readers
    would see two values), NaN and Infinity and 1e999, nesting that is too deep, a lone surrogate.
    `control_characters` lets raw ones stand inside strings, as WeChat sends them in nicknames. `max_openings`: how many
    "[" and "{" there may be, inside strings too.
    """
    try:
        # Python 3.13 follows thousands of levels, through the end of a small thread's stack.
        if len(data) > max_openings and data.count(b"[") + data.count(b"{") > max_openings:
            raise ValueError("too many objects and lists")
        text = data.decode("utf-8")
        # json.loads of str refuses a BOM and, unlike json.loads of bytes, never guesses UTF-16 or UTF-32.
        value = _decoded(_LENIENT if control_characters else _STRICT, text)
        # An escape like "\ud800" is JSON, but no text: it breaks every encoder it meets later.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise NotCanonical("not one JSON object in UTF-8 without duplicate members") from None
    if not isinstance(value, dict):
        raise NotCanonical("not a JSON object")
    return value


def canonical_json(value: object) -> bytes:
    """Members sorted, no white space, UTF-8: the same value is always the same bytes (RFC 7638, 3.3)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _decoded(decoder: json.JSONDecoder, text: str) -> Any:
    if text.startswith("{"):
        # `decode` looks for white space around the value first, which is a fifth of its time for a small object.
        value, end = decoder.raw_decode(text)
        if end == len(text):
            return value
    return decoder.decode(text)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("too large a number")  # it would be written again as Infinity
    return value


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique_members, parse_constant=_refuse_constant, parse_float=_finite
)
_LENIENT: Final = json.JSONDecoder(
    object_pairs_hook=_unique_members, parse_constant=_refuse_constant, parse_float=_finite, strict=False
)
