"""Keys from a JWKS in a file that somebody else writes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from authsvc import FileKeys, KeysUnavailable, Verifier, durable
from authsvc.errors import TokenInvalid
from authsvc.tokens import sign_token
from tests.support.clock import NOW, FakeClock
from tests.support.keys import CLAIMS, POLICY, keyring

RING, NEXT = keyring(), keyring(made_at=NOW - 1)


def _token(ring: Any = RING) -> str:
    return sign_token(CLAIMS, ring.signing_key(now=NOW), typ="at+jwt")


def _jwks(ring: Any = RING) -> bytes:
    return json.dumps(ring.jwks(now=NOW)).encode()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "jwks.json").write_bytes(_jwks())
    return tmp_path / "jwks.json"


def test_a_file_that_is_replaced_is_read_within_a_second(path: Path, clock: FakeClock) -> None:
    verifier = Verifier(FileKeys(path, clock=clock), POLICY, clock=clock)
    assert verifier.verify(_token()) == CLAIMS
    durable.replace(path.parent, path.name, _jwks(NEXT))
    assert verifier.verify(_token()) == CLAIMS
    clock.at += 1
    assert verifier.verify(_token(NEXT)) == CLAIMS
    with pytest.raises(TokenInvalid):
        verifier.verify(_token())


def test_a_swapped_link_is_followed_to_the_new_file(path: Path, clock: FakeClock, tmp_path: Path) -> None:
    for name, ring in (("one", RING), ("two", NEXT)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "jwks.json").write_bytes(_jwks(ring))
        os.utime(tmp_path / name / "jwks.json", (NOW, NOW))
    (tmp_path / "..data").symlink_to("one")
    path.unlink()
    path.symlink_to("..data/jwks.json")
    keys = FileKeys(path, clock=clock)
    assert keys.find(RING.signing_key(now=NOW).kid, now=NOW) is not None
    (tmp_path / "..new").symlink_to("two")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    clock.at += 1
    assert keys.find(NEXT.signing_key(now=NOW).kid, now=NOW) is not None
    assert keys.find(RING.signing_key(now=NOW).kid, now=NOW) is None


@pytest.mark.parametrize("what", [b"", b"{", b'{"keys": []}', b"null", b" " * 200_000, None], ids=repr)
def test_what_cannot_be_used_takes_no_good_keys_away_and_is_said_once_a_minute(
    path: Path, clock: FakeClock, what: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = Verifier(FileKeys(path, clock=clock), POLICY, remember=0, clock=clock)
    if what is None:
        path.unlink()
    else:
        path.write_bytes(what)
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        for _ in range(61):
            clock.at += 1
            assert verifier.verify(_token()) == CLAIMS
    assert len(caplog.records) == 2
    path.write_bytes(_jwks(NEXT))
    clock.at += 1
    assert verifier.verify(_token(NEXT)) == CLAIMS


def test_a_file_that_is_not_there_yet_logs_nobody_out(path: Path, clock: FakeClock) -> None:
    path.unlink()
    verifier = Verifier(FileKeys(path, clock=clock), POLICY, clock=clock)
    for _ in range(2):
        with pytest.raises(KeysUnavailable):
            verifier.verify(_token())
    path.write_bytes(_jwks())
    clock.at += 1
    assert verifier.verify(_token()) == CLAIMS


def test_a_file_that_has_not_changed_is_not_read_again(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = FileKeys(path, clock=clock)
    epoch = keys.epoch
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was read"))
    clock.at += 10
    assert keys.epoch is epoch
