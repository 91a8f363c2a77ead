"""base64url and JSON have one spelling."""

from __future__ import annotations

import traceback

import pytest

from authsvc.encoding import (
    NotCanonical,
    base64_decode,
    base64url_decode,
    base64url_encode,
    canonical_json,
    parse_json_object,
)


@pytest.mark.parametrize(("data", "text"), [(b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"\xfb\xff", "-_8")])
def test_base64url_is_that_of_rfc_4648_without_padding(data: bytes, text: str) -> None:
    assert base64url_encode(data) == text
    assert base64url_decode(text) == data


@pytest.mark.parametrize(
    "text", ["", "Zg==", "Zg=", "Z", "Zh", "Zm9", "Zm9v\n", " Zm9v", "Zm 9v", "+/8", "Zg\x00", "Zé"]
)
def test_base64url_takes_no_other_spelling(text: str) -> None:
    with pytest.raises(NotCanonical):
        base64url_decode(text)


@pytest.mark.parametrize("text", ["Zg", "Zh==", "Zg==\n", "Z g==", "Zg===", "-_8=", "é"])
def test_base64_takes_no_other_spelling(text: str) -> None:
    with pytest.raises(NotCanonical):
        base64_decode(text)
    assert base64_decode("Zg==") == b"f"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b"{} {}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": [{"b": 1, "b": 2}]}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": [-1E400]}',
        b'{"a": -Infinity}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
        b'{"a": "\n"}',
        b"[" * 5_000,
        b'{"a":' * 5_000,
        b'{"a": ' + b"1" * 5_000 + b"}",
        b'{"a": ' + b"[" * 1_000 + b"]" * 1_000 + b"}",
    ],
)
def test_only_one_json_object_in_utf_8_without_duplicates_is_read(data: bytes) -> None:
    with pytest.raises(NotCanonical):
        parse_json_object(data)


def test_an_object_is_read_as_it_stands() -> None:
    assert parse_json_object('{"a": "é\\u00e9", "b": [1, {"a": null}]}'.encode()) == {"a": "éé", "b": [1, {"a": None}]}


def test_raw_control_characters_are_read_only_where_they_are_asked_for() -> None:
    assert parse_json_object(b'{"a": "\x01\n"}', control_characters=True) == {"a": "\x01\n"}
    with pytest.raises(NotCanonical):
        parse_json_object(b'{"a": "\xff\x01"}', control_characters=True)


def test_canonical_json_is_sorted_and_has_no_white_space() -> None:
    assert canonical_json({"b": [1, 2], "a": "é"}) == '{"a":"é","b":[1,2]}'.encode()


@pytest.mark.parametrize("text", ["SECRET==", "SECRET!", "SECRETé"])
def test_an_error_never_quotes_the_text_it_refuses(text: str) -> None:
    for decode in (base64url_decode, base64_decode):
        with pytest.raises(NotCanonical) as refused:
            decode(text)
        assert "SECRET" not in "".join(traceback.format_exception(refused.value, limit=0))


def test_an_error_never_quotes_the_json_it_refuses() -> None:
    with pytest.raises(NotCanonical) as refused:
        parse_json_object(b'{"SECRET')
    assert "SECRET" not in "".join(traceback.format_exception(refused.value, limit=0))
