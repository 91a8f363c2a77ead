"""The manifest, `keyset.json`: a keyset as text for people to read, with a checksum; read back whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, NoReturn

from authsvc.encoding import NotCanonical, canonical_json, parse_json_object
from authsvc.errors import KeysError
from authsvc.jwk import BadJwk, parse_public_jwk
from authsvc.keyset import INDEX_ALG, SEALING_ALG, KeyRecord, Keyset, Kind, Lifecycle, Purpose

FORMAT: Final = "authsvc-keyset/1"

# Any number: keys that were revoked stay, and a reason may be of brackets alone. Only the folder's owner writes it.
_MAX_OPENINGS: Final = 1 << 20


def dump_manifest(keyset: Keyset) -> bytes:
    """The manifest's text: for people to read, with a checksum over its canonical form."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "generation": keyset.generation,
        "purpose": keyset.purpose.value,
        "updated_at": keyset.updated_at,
        "policy": {name.removesuffix("_s"): value for name, value in asdict(keyset.lifecycle).items()},
        "keys": [_dump_key(key) for key in keyset.keys],
    }
    document["sha256"] = _checksum(document)
    return json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"


def parse_manifest(data: bytes) -> Keyset:
    """Raises: KeysError, saying what is wrong, unless the manifest is whole and makes sense."""
    try:
        document = parse_json_object(data, max_openings=_MAX_OPENINGS)
    except NotCanonical as error:
        raise KeysError(f"it is {error}") from None
    if document.get("format") != FORMAT:
        raise KeysError(f"its format is not {FORMAT}: another version of authsvc wrote it")
    claimed = document.pop("sha256", None)
    if claimed != _checksum(document):
        raise KeysError("its checksum does not fit: it was cut short or edited by hand")
    reader = _Reader(document)
    keyset = Keyset(
        generation=reader.count("generation"),
        purpose=Purpose(reader.choice("purpose", Purpose)),
        updated_at=reader.count("updated_at"),
        lifecycle=_parse_lifecycle(reader.members("policy")),
        keys=tuple(_parse_key(_Reader(key)) for key in reader.objects("keys")),
    )
    reader.end("format")
    _check_keyset(keyset)
    return keyset


# ---- the manifest's parts -----------------------------------------------------------------------

_KEY_ID: Final = re.compile(r"[0-9a-f]{8}")
# A leading "-" would be taken for an option by shells and proxies; such a key is thrown away when it is made.
_KID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{42}")

_PART: Final = re.compile(r"[^.]+(\.(?P<number>[1-9][0-9]{0,8}))?\.[a-z]+")


def _dump_key(key: KeyRecord) -> dict[str, Any]:
    return {
        "kind": key.kind.value,
        "id": key.id,
        "alg": key.alg,
        "file": key.file,
        "created_at": key.created_at,
        "publish_at": key.publish_at,
        "activate_at": key.activate_at,
        "retire_at": key.retire_at,
        "remove_at": key.remove_at,
        "revoked_at": key.revoked_at,
        "reason": key.reason,
        **({"jwk": key.jwk.as_dict()} if key.jwk else {}),
    }


def _parse_lifecycle(members: dict[str, Any]) -> Lifecycle:
    reader = _Reader(members)
    values = {f.name: reader.count(f.name.removesuffix("_s")) for f in fields(Lifecycle)}
    reader.end()
    return Lifecycle(**values)


def _parse_key(reader: _Reader) -> KeyRecord:
    kind = Kind(reader.choice("kind", Kind))
    jwk = None
    if kind is Kind.SIGNING:
        try:
            jwk = parse_public_jwk(reader.members("jwk"))
        except BadJwk as error:
            raise KeysError(f"a jwk in it is unusable: {error}") from None
    key = KeyRecord(
        kind=kind,
        id=reader.text("id"),
        alg=reader.text("alg"),
        created_at=reader.count("created_at"),
        publish_at=reader.count("publish_at"),
        activate_at=reader.optional_count("activate_at"),
        retire_at=reader.optional_count("retire_at"),
        remove_at=reader.optional_count("remove_at"),
        revoked_at=reader.optional_count("revoked_at"),
        reason=reader.optional_text("reason"),
        jwk=jwk,
    )
    expected_alg = jwk.alg if jwk else SEALING_ALG if kind is Kind.SEALING else INDEX_ALG
    if not (_KID if jwk else _KEY_ID).fullmatch(key.id) or (jwk and jwk.kid != key.id) or key.alg != expected_alg:
        raise KeysError("the id or alg of a key in it does not fit the key")
    key = replace(key, part=_part_number(reader.text("file"), key))
    reader.end()
    return key


def _part_number(file: str, key: KeyRecord) -> int:
    found = _PART.fullmatch(file)
    part = int(found["number"] or 1) if found else 0
    if replace(key, part=part).file != file or part < 1:
        raise KeysError("the file of a key in it is not named after the key")
    return part


def _check_keyset(keyset: Keyset) -> None:
    ids = [key.id for key in keyset.keys]
    if len(set(ids)) != len(ids):
        raise KeysError("two keys in it have one id")
    for kind in Kind:
        if not any(keyset.of(kind)):
            raise KeysError(f"it has no {kind} key")
    for key in keyset.keys:
        if key.is_discarded:
            steps, complete = [key.publish_at, key.remove_at], key.retire_at is None
        else:
            steps = [key.publish_at, key.activate_at, key.retire_at, key.remove_at]
            complete = (key.retire_at is None) == (key.remove_at is None)
        known = [step for step in steps if step is not None]
        in_order = all(earlier <= later for earlier, later in pairwise(known))
        # The steps that are decided come first: a key cannot retire that was never to become active.
        if not complete or not in_order or steps[: len(known)] != known:
            raise KeysError(f"the times of key {key.id} are out of order")


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()


class _Reader:
    """Takes the members of an object one by one, each with its exact type, and knows what is left."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._left = dict(members)

    def text(self, name: str) -> str:
        value: str = self._take(name, _is_text, "a text")
        return value

    def optional_text(self, name: str) -> str | None:
        value: str | None = self._take(name, lambda v: v is None or _is_text(v), "a text")
        return value

    def count(self, name: str) -> int:
        value: int = self._take(name, _is_count, "a whole number")
        return value

    def optional_count(self, name: str) -> int | None:
        value: int | None = self._take(name, lambda v: v is None or _is_count(v), "a whole number")
        return value

    def choice(self, name: str, choices: type[StrEnum]) -> str:
        value: str = self._take(name, lambda v: _is_text(v) and v in set(choices), " or ".join(choices))
        return value

    def members(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = self._take(name, _is_object, "an object")
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = self._take(
            name, lambda v: type(v) is list and all(map(_is_object, v)), "a list of objects"
        )
        return value

    def end(self, *known: str) -> None:
        if self._left.keys() - set(known):
            # A member that we would drop at the next write may be one that somebody's safety hangs on.
            self._fail("it has members that this version of authsvc does not know")

    def _take(self, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self._left.pop(name, _MISSING)
        if value is _MISSING or not fits(value):
            self._fail(f"{name} in it is not {expected}")
        return value

    @staticmethod
    def _fail(message: str) -> NoReturn:
        raise KeysError(message)


_MISSING: Final = object()


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_object(value: object) -> bool:
    return type(value) is dict


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
