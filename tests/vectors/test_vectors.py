"""The vectors that verifiers in any language can be held against: ours first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from authsvc import JwkSet, Policy, TokenError, Verifier
from authsvc.jwk import ALGORITHMS
from tests.support.clock import FakeClock

HERE = Path(__file__).parent
ACCEPT, REJECT = (json.loads((HERE / f"{name}.json").read_text("ascii"))["vectors"] for name in ("accept", "reject"))


def _policy(members: dict[str, Any]) -> Policy:
    tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in members.items()
    }
    return Policy(**tuples)


def _said(vector: dict[str, Any]) -> str:
    verifier = Verifier(JwkSet(vector["jwks"]), _policy(vector["policy"]), clock=FakeClock(vector["now"]))
    answers = []
    for _ in range(2):  # seen and never seen
        try:
            verifier.verify(vector["token"])
            answers.append("accept")
        except TokenError as error:
            answers.append(error.code)
    assert answers[0] == answers[1]
    return answers[0]


@pytest.mark.parametrize("vector", ACCEPT, ids=lambda v: v["name"])
def test_a_vector_to_accept_is_accepted(vector: dict[str, Any]) -> None:
    assert vector["verdict"] == "accept"
    assert _said(vector) == "accept"


@pytest.mark.parametrize("vector", REJECT, ids=lambda v: v["name"])
def test_a_vector_to_reject_is_rejected_for_its_reason(vector: dict[str, Any]) -> None:
    assert vector["verdict"] == "reject"
    assert _said(vector) == vector["reason"]


def test_every_algorithm_and_every_reason_but_revoked_has_a_vector() -> None:
    headers = {vector["name"] for vector in ACCEPT}
    assert set(ALGORITHMS) <= headers
    # A JWKS cannot say that a key was revoked: it is not in it any more.
    assert {vector["reason"] for vector in REJECT} == {"missing", "malformed", "invalid", "expired"}


def test_no_two_vectors_have_one_name() -> None:
    names = [vector["name"] for vector in (*ACCEPT, *REJECT)]
    assert len(set(names)) == len(names)


def test_no_private_key_stands_in_a_vector() -> None:
    for vector in (*ACCEPT, *REJECT):
        assert all(not {"d", "p", "q", "k"} & key.keys() for key in vector["jwks"]["keys"])
