"""Private parts as bytes, in clear and under a passphrase."""

from __future__ import annotations

import json
import os
import traceback

import pytest

from authsvc.encoding import base64_encode
from authsvc.jwk import ALGORITHMS, public_jwk
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
from authsvc.keyset import Kind

PASSPHRASE = "correct horse battery, 正确"
SECRET = bytes(range(32))
SECRET_ID = secret_key_id(SECRET)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["in clear", "encrypted"])
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_signing_key_comes_back_as_it_was_written(alg: str, passphrase: str | None) -> None:
    key = generate_key(alg)
    jwk = public_jwk(key.public_key())
    data = dump_signing_key(key, passphrase, random_bytes=os.urandom)
    found = parse_signing_key(data, jwk, passphrase)
    assert public_jwk(found.public_key()) == jwk or public_jwk(found.public_key()).kid == jwk.kid
    assert (b"ENCRYPTED" in data) is (passphrase is not None)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["in clear", "encrypted"])
@pytest.mark.parametrize("kind", [Kind.SEALING, Kind.INDEX])
def test_a_secret_key_comes_back_as_it_was_written(kind: Kind, passphrase: str | None) -> None:
    data = dump_secret_key(SECRET, kind, passphrase, random_bytes=os.urandom)
    assert parse_secret_key(data, kind, SECRET_ID, passphrase) == SECRET
    assert (base64_encode(SECRET).encode() in data) is (passphrase is None)


def test_the_same_key_under_the_same_passphrase_never_looks_the_same() -> None:
    key = generate_key("ES256")
    assert len({dump_signing_key(key, PASSPHRASE, random_bytes=os.urandom) for _ in range(3)}) == 3
    assert len({dump_secret_key(SECRET, Kind.INDEX, PASSPHRASE, random_bytes=os.urandom) for _ in range(3)}) == 3


def test_without_the_passphrase_an_encrypted_part_is_told_from_a_broken_one() -> None:
    key = generate_key("ES256")
    jwk = public_jwk(key.public_key())
    pem = dump_signing_key(key, PASSPHRASE, random_bytes=os.urandom)
    line = dump_secret_key(SECRET, Kind.SEALING, PASSPHRASE, random_bytes=os.urandom)
    for wrong in (None, "another passphrase"):
        with pytest.raises(PassphraseNeeded):
            parse_signing_key(pem, jwk, wrong)
        with pytest.raises(PassphraseNeeded):
            parse_secret_key(line, Kind.SEALING, SECRET_ID, wrong)


def test_a_part_in_clear_is_refused_where_a_passphrase_is_set() -> None:
    key = generate_key("EdDSA")
    with pytest.raises(PartInClear):
        parse_signing_key(
            dump_signing_key(key, None, random_bytes=os.urandom), public_jwk(key.public_key()), PASSPHRASE
        )
    with pytest.raises(PartInClear):
        parse_secret_key(
            dump_secret_key(SECRET, Kind.INDEX, None, random_bytes=os.urandom), Kind.INDEX, SECRET_ID, PASSPHRASE
        )


def test_an_encrypted_part_opens_under_its_own_name_alone() -> None:
    line = dump_secret_key(SECRET, Kind.SEALING, PASSPHRASE, random_bytes=os.urandom)
    for kind, key_id in ((Kind.INDEX, SECRET_ID), (Kind.SEALING, "00000000")):
        with pytest.raises(BadPart):
            parse_secret_key(line, kind, key_id, PASSPHRASE)
    one, other = generate_key("ES256"), generate_key("ES256")
    with pytest.raises(BadPart, match="another key"):
        parse_signing_key(
            dump_signing_key(one, PASSPHRASE, random_bytes=os.urandom), public_jwk(other.public_key()), PASSPHRASE
        )


@pytest.mark.parametrize("change", [{"n": 2**30}, {"r": 10**6}, {"p": 10**6}, {"salt": None}, {"more": 1}])
def test_parameters_of_somebody_elses_choice_are_not_computed_with(change: dict[str, object]) -> None:
    document = json.loads(dump_secret_key(SECRET, Kind.SEALING, PASSPHRASE, random_bytes=os.urandom))
    document["scrypt"].update(change)
    with pytest.raises(BadPart):
        parse_secret_key(json.dumps(document).encode(), Kind.SEALING, SECRET_ID, PASSPHRASE)


@pytest.mark.parametrize("data", [b"", b"{}", b"{", b'{"scrypt": 1}', b"\xff\xfe", b"MARKER", b"[1]"])
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_what_is_no_part_is_refused_without_being_quoted(data: bytes, passphrase: str | None) -> None:
    jwk = public_jwk(generate_key("ES256").public_key())
    for parse in (
        lambda: parse_signing_key(data, jwk, passphrase),
        lambda: parse_secret_key(data, Kind.SEALING, SECRET_ID, passphrase),
    ):
        with pytest.raises(BadPart) as refused:
            parse()
        assert "MARKER" not in "".join(traceback.format_exception(refused.value))
        assert PASSPHRASE not in "".join(traceback.format_exception(refused.value))
