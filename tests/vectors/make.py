"""Writes accept.json and reject.json anew: `python -m tests.vectors.make`. The keys are thrown away with the run.

Each vector is whole by itself: token, JWKS, policy, now (Unix seconds), verdict, and for a refusal the reason, which is
the `code` of the error. For verifiers in any language.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authsvc.encoding import base64url_decode, base64url_encode
from authsvc.jwk import ALGORITHMS, PrivateKey, public_jwk
from authsvc.keyparts import generate_key
from tests.support.keys import AUDIENCE, CLAIMS, ISSUER, hmac_signed, payload, signed

HERE: Final = Path(__file__).parent
NOW: Final = 1_800_000_000
KEYS: Final[dict[str, PrivateKey]] = {alg: generate_key(alg) for alg in ALGORITHMS}
STRANGER: Final = generate_key("ES256")
POLICY: Final[dict[str, Any]] = {
    "issuer": ISSUER,
    "audience": [AUDIENCE],
    "algorithms": list(ALGORITHMS),
    "typ": ["at+jwt"],
    "appids": None,
    "leeway_s": 0,
}
TEXTS: Final = ("iss", "sub", "openid", "aud", "client_id", "jti", "sid")
TIMES: Final = ("iat", "exp", "auth_time")


def main() -> None:
    for name, cases in (("accept", accepted()), ("reject", rejected())):
        text = json.dumps({"vectors": list(cases)}, indent=1, ensure_ascii=True)
        (HERE / f"{name}.json").write_text(text + "\n", "ascii")


def accepted() -> Iterator[dict[str, Any]]:
    def case(name: str, token: str, *, now: int = NOW, **policy: Any) -> dict[str, Any]:
        return _vector(name, token, now, policy) | {"verdict": "accept"}

    for alg in ALGORITHMS:
        yield case(f"{alg}", _token(alg=alg))
    yield case("with a unionid", _token(unionid="u-1"))
    yield case("with a claim that nobody knows", _token(nickname="Alice", roles=["a", {"b": None}]))
    yield case("payload with white space, which is JSON too", _raw(payload_bytes=b" \n" + _payload_json() + b"\t"))
    yield case("in its last second", _token(), now=NOW + 7_199)
    yield case("issued a minute ahead of the clock", _token(iat=NOW + 60))
    yield case("one of two audiences", _token(), audience=["other", AUDIENCE])
    yield case("one of two mini-programs", _token(), appids=["wx2", CLAIMS.appid])
    yield case("in the last second of the leeway", _token(), now=NOW + 7_229, leeway_s=30)
    yield case("of the older type, where it is allowed", _token({"typ": "JWT"}), typ=["at+jwt", "JWT"])
    yield case("an openid of one character", _token(sub="o", openid="o"))
    yield case("an openid of 128 characters", _token(sub="o" * 128, openid="o" * 128))


def rejected() -> Iterator[dict[str, Any]]:
    def case(name: str, token: str, reason: str, *, now: int = NOW, **policy: Any) -> dict[str, Any]:
        return _vector(name, token, now, policy) | {"verdict": "reject", "reason": reason}

    good = _token()
    header, body, signature = good.split(".")
    yield case("nothing", "", "missing")
    yield from (
        case(f"not a token: {t!r}", t, "malformed") for t in ("undefined", "null", "a.b", "a.b.c.d", "..", "{}")
    )
    yield case("padding", good + "==", "malformed")
    yield from (
        case(f"white space: {t!r}", t, "malformed") for t in (f" {good}", f"{good}\n", f"{header}. {body}.{signature}")
    )
    yield case(
        "white space that a decoder would pass over", f"{header}.{body[:8]}    {body[8:]}.{signature}", "malformed"
    )
    yield case("a plus for a minus", f"{header}.{body}.+{signature[1:]}", "malformed")
    yield case("no signature", f"{header}.{body}.", "malformed")
    yield case("no header", f".{body}.{signature}", "malformed")
    yield case("characters of standard base64", f"{header}.{body}.{'+/' * 43}", "malformed")
    yield case("a letter that looks like one", good[:-1] + "\u0430", "malformed")
    yield case("longer than 8 KiB", _token(nickname="x" * 8_192), "malformed")
    yield case("unused bits that are not zero", good[:-1] + _next_letter(good[-1]), "malformed")
    yield case(
        "JSON serialization", json.dumps({"protected": header, "payload": body, "signature": signature}), "malformed"
    )
    yield case("five parts, as an encrypted token", f"{header}..{body}.{body}.{signature}", "malformed")

    yield case(
        "alg none, without a signature",
        f"{_part({'alg': 'none', 'typ': 'at+jwt', 'kid': _kid()})}.{body}.",
        "malformed",
    )
    yield case("alg none, with a signature", _raw({"alg": "none"}), "invalid")
    yield from (
        case(f"alg {alg}", _raw({"alg": alg}), "invalid")
        for alg in ("None", "es256", "ES384", "EdDSA", "RS256", "HS256", "Ed25519", "")
    )
    public_pem = KEYS["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for alg, kid in (("HS256", _kid("RS256")), ("RS256", _kid("RS256"))):
        forged = hmac_signed({"alg": alg, "kid": kid, "typ": "at+jwt"}, payload(), public_pem)
        yield case(f"an HMAC under the public key, alg {alg}", forged, "invalid")
    yield case("an algorithm that the policy does not allow", good, "invalid", algorithms=["EdDSA"])

    yield case("a kid that nobody has", _raw({"kid": "A" * 43}), "invalid")
    yield case("the kid of another key", _raw({"kid": _kid("EdDSA")}), "invalid")
    for kid in ("../../etc/passwd", "' OR 1=1 --", "", "0"):
        yield case(f"a kid of another form: {kid!r}", _raw({"kid": kid}), "invalid")
    for name in ("alg", "kid", "typ"):
        yield case(f"header without {name}", _raw({name: None}), "malformed")
        yield case(f"header in which {name} is a number", _raw({name: 1}), "malformed")
    strange = {
        "jwk": public_jwk(STRANGER.public_key()).as_dict(),
        "jku": "https://evil.example",
        "x5u": "https://evil.example",
        "x5c": ["MIIB"],
        "crit": ["exp"],
        "b64": False,
        "zip": "DEF",
        "cty": "JWT",
        "x": 1,
    }
    for name, value in strange.items():
        yield case(f"header with {name}", _raw({name: value}), "malformed")
    yield case(
        "a stranger's key in the header, and his signature", _raw({"jwk": strange["jwk"]}, key=STRANGER), "malformed"
    )
    for name, text in (("an array", b"[]"), ("null", b"null"), ("no JSON", b"{"), ("empty", b"{}")):
        yield case(f"header that is {name}", _raw(header_bytes=text), "malformed")
    doubled = b'{"alg":"ES256","kid":"%b","typ":"at+jwt","alg":"ES256"}' % _kid().encode()
    yield case("header with a member twice", _raw(header_bytes=doubled), "malformed")
    yield case("header with a byte order mark", _raw(header_bytes=b"\xef\xbb\xbf" + _header_json()), "malformed")

    yield case("a changed byte of the payload", f"{header}.{_flipped(body)}.{signature}", "invalid")
    yield case("a changed byte of the signature", f"{header}.{body}.{_flipped(signature)}", "invalid")
    yield case("the signature of another token", f"{header}.{body}.{_token(jti='2').split('.')[2]}", "invalid")
    yield case("a stranger's signature", _raw(key=STRANGER), "invalid")
    raw = base64url_decode(signature)
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    signatures = {
        "zeros": bytes(64),
        "r of zero": bytes(32) + raw[32:],
        "s of zero": raw[:32] + bytes(32),
        "DER": encode_dss_signature(r, s),
        "one byte less": raw[:-1],
        "one byte more": raw + b"\0",
        "halves of 33 bytes": b"\0" + raw[:32] + b"\0" + raw[32:],
        "a zero byte before s": raw[:32] + b"\0" + raw[32:],
        "halves in the other order": raw[32:] + raw[:32],
        "r beyond the order": b"\xff" * 32 + raw[32:],
    }
    for name, value in signatures.items():
        yield case(f"signature: {name}", f"{header}.{body}.{base64url_encode(value)}", "invalid")

    for text in (b"[]", b"null", b'"x"', b"1", b"", b"{", b"{}{}", _payload_json() + b"x"):
        if text:
            yield case(f"payload: {text[:4].decode()!r}", _raw(payload_bytes=text), "malformed")
    yield case(
        "payload with a claim twice", _raw(payload_bytes=_payload_json()[:-1] + b',"exp":9999999999}'), "malformed"
    )
    yield case(
        "payload with a member twice, deep inside",
        _raw(payload_bytes=_payload_json()[:-1] + b',"x":[{"a":1,"a":2}]}'),
        "malformed",
    )
    yield case("payload with a byte order mark", _raw(payload_bytes=b"\xef\xbb\xbf" + _payload_json()), "malformed")
    yield case("payload in UTF-16", _raw(payload_bytes=_payload_json().decode().encode("utf-16")), "malformed")
    yield case("payload in Latin-1", _raw(payload_bytes=_payload_json()[:-1] + b',"x":"\xe9"}'), "malformed")
    yield case("payload with NaN", _raw(payload_bytes=_payload_json()[:-1] + b',"x":NaN}'), "malformed")
    yield case(
        "payload with a lone surrogate", _raw(payload_bytes=_payload_json()[:-1] + b',"x":"\\ud800"}'), "malformed"
    )
    yield case(
        "payload with a raw control character", _raw(payload_bytes=_payload_json()[:-1] + b',"x":"\x01"}'), "malformed"
    )
    yield case(
        "payload nested deeply",
        _raw(payload_bytes=_payload_json()[:-1] + b',"x":' + b"[" * 1_500 + b"]" * 1_500 + b"}"),
        "malformed",
    )

    for name in (*TEXTS, *TIMES):
        missing: dict[str, Any] = {name: None}
        yield case(f"without {name}", _token(**missing), "invalid")
    for name in TEXTS:
        for value in ("", 1, ["x"], True):
            changes: dict[str, Any] = {"sub": value, "openid": value} if name in ("sub", "openid") else {name: value}
            yield case(f"{name} is {json.dumps(value)}", _token(**changes), "invalid")
    for name in TIMES:
        for value in ("1800000000", 1_800_000_000.0, True, -1, 2**53, [NOW]):
            changes = {name: value}
            yield case(f"{name} is {json.dumps(value)}", _token(**changes), "invalid")
    yield case("sub is not the openid", _token(sub="other"), "invalid")
    yield case("an openid of 129 characters", _token(sub="o" * 129, openid="o" * 129), "invalid")
    yield case("an openid with a slash", _token(sub="a/b", openid="a/b"), "invalid")
    yield case("unionid is null", _raw(payload_bytes=_payload_json()[:-1] + b',"unionid":null}'), "invalid")
    yield case("another issuer", _token(iss="https://evil.example"), "invalid")
    yield case("the issuer with a slash", _token(iss=ISSUER + "/"), "invalid")
    yield case("another audience", _token(aud="other"), "invalid")
    yield case("a list of audiences", _token(aud=[AUDIENCE]), "invalid")
    yield case("another mini-program", good, "invalid", appids=["wx2"])
    yield case("another type of token", _token({"typ": "JWT"}), "invalid")
    yield case("a type in capitals", _token({"typ": "AT+JWT"}), "invalid")
    yield case("issued more than a minute ahead of the clock", _token(iat=NOW + 61), "invalid")
    yield case("on its expiry second", good, "expired", now=NOW + 7_200)
    yield case("long dead", good, "expired", now=NOW + 10**6)
    yield case("on the last second of the leeway", good, "expired", now=NOW + 7_230, leeway_s=30)
    yield case("dead, and for another", _token(aud="other"), "invalid", now=NOW + 7_200)


def _vector(name: str, token: str, now: int, policy: dict[str, Any]) -> dict[str, Any]:
    jwks = {"keys": [public_jwk(key.public_key()).as_dict() for key in KEYS.values()]}
    return {"name": name, "token": token, "jwks": jwks, "policy": POLICY | policy, "now": now}


def _kid(alg: str = "ES256") -> str:
    return public_jwk(KEYS[alg].public_key()).kid


def _header(changes: dict[str, Any] | None = None, *, alg: str = "ES256") -> dict[str, Any]:
    members = {"alg": alg, "kid": _kid(alg), "typ": "at+jwt"} | (changes or {})
    return {name: value for name, value in members.items() if value is not None}


def _token(header_changes: dict[str, Any] | None = None, /, *, alg: str = "ES256", **changes: Any) -> str:
    return signed(_header(header_changes, alg=alg), payload(**changes), KEYS[alg])


def _raw(
    header_changes: dict[str, Any] | None = None,
    *,
    header_bytes: bytes | None = None,
    payload_bytes: bytes | None = None,
    key: PrivateKey | None = None,
) -> str:
    """Signed well, whatever is signed."""
    return signed(header_bytes or _header(header_changes), payload_bytes or payload(), key or KEYS["ES256"])


def _payload_json() -> bytes:
    return json.dumps(payload(), separators=(",", ":")).encode()


def _header_json() -> bytes:
    return json.dumps(_header(), separators=(",", ":")).encode()


def _part(members: dict[str, Any]) -> str:
    return base64url_encode(json.dumps(members).encode())


def _flipped(part: str) -> str:
    data = bytearray(base64url_decode(part))
    data[len(data) // 2] ^= 1
    return base64url_encode(bytes(data))


def _next_letter(letter: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(letter) + 1]


if __name__ == "__main__":
    main()
