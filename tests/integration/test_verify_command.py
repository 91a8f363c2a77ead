"""`authsvc verify`, as somebody at a shell runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from authsvc.testing import FakeIssuer
from tests.support.service import authsvc, clean_environment

ISSUER = "https://auth.test.example"


@pytest.fixture
def issuer() -> FakeIssuer:
    return FakeIssuer(ISSUER)


@pytest.fixture
def jwks(issuer: FakeIssuer, tmp_path: Path) -> str:
    (tmp_path / "jwks.json").write_text(json.dumps(issuer.jwks()))
    return str(tmp_path / "jwks.json")


@pytest.fixture
def served(issuer: FakeIssuer) -> Iterator[str]:
    with issuer.served() as url:
        yield url


def test_a_good_token_is_good_and_its_claims_are_shown(issuer: FakeIssuer, jwks: str, tmp_path: Path) -> None:
    token = issuer.token("oAlice", expires_in_s=3 * 86_400)
    done = authsvc("verify", token, "--issuer", ISSUER, "--jwks", jwks, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "GOOD"), done.stderr
    for shown in ("oAlice", "expires_at", "in 3 days", ISSUER):
        assert shown in done.stdout


def test_a_token_that_lives_longer_than_a_calendar_is_good_all_the_same(
    issuer: FakeIssuer, jwks: str, tmp_path: Path
) -> None:
    token = issuer.token(expires_at=2**53 - 1)
    done = authsvc("verify", token, "--issuer", ISSUER, "--jwks", jwks, cwd=tmp_path)
    assert (done.returncode, str(2**53 - 1) in done.stdout, done.stderr) == (0, True, "")


def test_as_json_it_is_for_programs(issuer: FakeIssuer, jwks: str, tmp_path: Path) -> None:
    done = authsvc("verify", issuer.token("oAlice"), "--issuer", ISSUER, "--jwks", jwks, "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert (done.returncode, said["valid"], said["claims"]["openid"]) == (0, True, "oAlice")


def test_a_token_of_another_issuer_is_not_said_to_lack_a_key_alone(served: str, tmp_path: Path) -> None:
    """localhost in place of 127.0.0.1 is enough, and then the keys are not even asked for."""
    done = authsvc("verify", FakeIssuer().token(), "--issuer", served, cwd=tmp_path)
    assert (done.returncode, "another issuer" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--audience", "other"), "invalid"),
        (("--appid", "wx2"), "invalid"),
        (("--issuer", "https://b.example"), "invalid"),
    ],
)
def test_a_token_that_is_not_what_was_asked_for_is_not_good(
    issuer: FakeIssuer, jwks: str, tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    done = authsvc("verify", issuer.token(), "--issuer", ISSUER, "--jwks", jwks, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout.startswith(f"NOT GOOD: {code}")) == (1, True)


def test_an_expired_token_says_so_in_json_too(issuer: FakeIssuer, jwks: str, tmp_path: Path) -> None:
    done = authsvc("verify", issuer.expired_token(), "--jwks", jwks, "--json", cwd=tmp_path, ISSUER=ISSUER)
    assert (done.returncode, json.loads(done.stdout)["valid"], json.loads(done.stdout)["code"]) == (1, False, "expired")


def test_from_the_issuer_itself_nothing_else_is_needed(issuer: FakeIssuer, served: str, tmp_path: Path) -> None:
    assert authsvc("verify", issuer.token(), cwd=tmp_path, ISSUER=served).returncode == 0
    url = f"{served}/.well-known/jwks.json"
    assert authsvc("verify", issuer.token(), "--jwks", url, cwd=tmp_path, ISSUER=served).returncode == 0


def test_a_token_from_standard_input_stands_in_no_shell_history(issuer: FakeIssuer, jwks: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "authsvc", "verify", "-", "--issuer", ISSUER, "--jwks", jwks],
        cwd=tmp_path,
        env=clean_environment(),
        input=f"Bearer {issuer.token()}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "GOOD" in done.stdout) == (0, True)


def test_an_issuer_that_cannot_be_reached_is_no_verdict(issuer: FakeIssuer, tmp_path: Path) -> None:
    with issuer.served() as url:
        token = issuer.token()
    done = authsvc("verify", token, cwd=tmp_path, ISSUER=url)
    assert (done.returncode, done.stdout.startswith("CANNOT BE TOLD: keys_unavailable")) == (3, True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--issuer"),
        (("--issuer", "http://auth.example.com"), "plain http"),
        (("--issuer", ISSUER, "--jwks", "nowhere.json"), "no file"),
        (("--issuer", ""), "--issuer"),
        (("--issuer", ISSUER, "--appid", ""), "appids"),
        (("--issuer", ISSUER, "--jwks", "http://auth.example.com/"), "plain http"),
    ],
)
def test_a_question_that_makes_no_sense_is_said_to(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = authsvc("verify", "a.b.c", *options, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
