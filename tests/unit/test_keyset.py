"""The life of keys as a function of their times, and the manifest that says the times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from authsvc.encoding import canonical_json
from authsvc.errors import KeysError
from authsvc.keyset import KeyRecord, Keyset, Kind, Lifecycle, State
from authsvc.manifest import _checksum, dump_manifest, parse_manifest
from tests.support.clock import NOW
from tests.support.keys import keyring

KEYSET = keyring().keyset
SIGNING = [key for key in KEYSET.keys if key.kind is Kind.SIGNING]


def _key(**times: int | None) -> KeyRecord:
    return replace(SIGNING[0], **({"activate_at": None} | times))  # type: ignore[arg-type]


LIFE = {"activate_at": NOW + 10, "retire_at": NOW + 20, "remove_at": NOW + 30}


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (NOW + 9, State.PENDING),
        (NOW + 10, State.ACTIVE),
        (NOW + 19, State.ACTIVE),
        (NOW + 20, State.RETIRING),
        (NOW + 29, State.RETIRING),
        (NOW + 30, State.REMOVED),
    ],
)
def test_a_key_changes_its_state_on_the_very_second(now: int, state: State) -> None:
    assert _key(**LIFE).state(now=now) is state


def test_a_standby_stays_pending_and_an_active_key_active_until_it_is_told() -> None:
    assert _key().state(now=NOW + 10**9) is State.PENDING
    assert _key(activate_at=NOW).state(now=NOW + 10**9) is State.ACTIVE


@pytest.mark.parametrize("now", [NOW + 5, NOW + 15, NOW + 25, NOW + 35])
def test_a_revoked_key_is_out_whatever_else_it_would_be(now: int) -> None:
    assert _key(**LIFE, revoked_at=NOW).state(now=now) is State.REVOKED
    # A host whose clock is behind does not go on with a stolen key until its own clock gets there.
    assert _key(**LIFE, revoked_at=now + 60).state(now=now) is State.REVOKED


def test_the_first_generation_signs_at_once_and_publishes_its_standby() -> None:
    assert KEYSET.active(Kind.SIGNING, now=NOW).id == SIGNING[0].id
    assert KEYSET.active(Kind.SEALING, now=NOW).kind is Kind.SEALING
    assert [key.id for key in KEYSET.published(now=NOW)] == [SIGNING[0].id, SIGNING[1].id]
    assert SIGNING[1].state(now=NOW) is State.PENDING


def test_there_is_no_active_key_before_the_first_one() -> None:
    with pytest.raises(KeysError, match="clock"):
        KEYSET.active(Kind.SIGNING, now=NOW - 1)


def _with_states(now: int) -> Keyset:
    past = replace(SIGNING[0], publish_at=now - 200, activate_at=now - 100)
    return replace(
        KEYSET,
        keys=(
            replace(past, id="retiring", retire_at=now - 10, remove_at=now + 10),
            replace(past, id="removed", retire_at=now - 20, remove_at=now - 10),
            replace(past, id="revoked", revoked_at=now - 1),
            replace(SIGNING[0], id="active", publish_at=now - 50, activate_at=now - 10),
            replace(SIGNING[0], id="standby", publish_at=now, activate_at=None),
            replace(SIGNING[0], id="not yet", publish_at=now + 1, activate_at=None),
        ),
    )


def test_published_are_the_standby_the_active_and_the_retiring_and_no_other() -> None:
    assert {key.id for key in _with_states(NOW).published(now=NOW)} == {"retiring", "active", "standby"}


def test_the_default_lead_is_above_the_least_that_its_policy_allows() -> None:
    assert Lifecycle().minimum_lead_s == 5 + 120 + 300 + 60 + 600 + 60 == 1145
    assert Lifecycle().lead_s == 1800


def test_a_lead_below_the_formula_is_refused() -> None:
    Lifecycle(lead_s=1145)
    with pytest.raises(KeysError, match="1145"):
        Lifecycle(lead_s=1144)


def test_a_longer_lifetime_is_remembered_and_a_shorter_one_changes_nothing() -> None:
    longer = KEYSET.with_lifetimes(token_ttl_s=80_000, session_key_ttl_s=1, now=NOW + 1)
    assert (longer.lifecycle.ttl_max_s, longer.generation, longer.updated_at) == (80_000, 2, NOW + 1)
    assert longer.with_lifetimes(token_ttl_s=7_200, session_key_ttl_s=1, now=NOW + 2) is longer


def test_a_manifest_read_back_is_the_keyset_written() -> None:
    every_time = replace(_key(**LIFE), revoked_at=NOW + 40, reason="compromised")
    for keyset in (KEYSET, replace(KEYSET, keys=(every_time, *KEYSET.keys[1:]))):
        assert parse_manifest(dump_manifest(keyset)) == keyset


def test_the_manifest_has_no_private_part() -> None:
    text = dump_manifest(KEYSET)
    assert not {"d", "p", "q", "k"} & set(json.loads(text)["keys"][0]["jwk"])
    assert b"PRIVATE" not in text


def _edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(dump_manifest(KEYSET))
    del document["sha256"]
    edit(document)
    document["sha256"] = _checksum(document)
    return canonical_json(document)


def test_the_edited_manifests_below_are_refused_for_their_edit_alone() -> None:
    assert parse_manifest(_edited(lambda document: None)) == KEYSET


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda d: d.update(format="authsvc-keyset/2"),
    "no generation": lambda d: d.pop("generation"),
    "a bool for a generation": lambda d: d.update(generation=True),
    "an unknown purpose": lambda d: d.update(purpose="testing"),
    "a list for a purpose": lambda d: d.update(purpose=["production"]),
    "an unknown member": lambda d: d.update(comment="hello"),
    "an unknown member of a key": lambda d: d["keys"][0].update(comment="hello"),
    "an unknown policy": lambda d: d["policy"].update(comment=1),
    "a missing policy": lambda d: d["policy"].pop("skew"),
    "a lead that is too short": lambda d: d["policy"].update(lead=5),
    "no keys": lambda d: d.update(keys=[]),
    "keys that are none": lambda d: d.update(keys=[1]),
    "no sealing key": lambda d: d.update(keys=[k for k in d["keys"] if k["kind"] != "sealing"]),
    "no signing key": lambda d: d.update(keys=[k for k in d["keys"] if k["kind"] != "signing"]),
    "a key twice": lambda d: d["keys"].append(d["keys"][0]),
    "an unknown kind": lambda d: d["keys"][0].update(kind="encryption"),
    "another kid": lambda d: d["keys"][0].update(id="A" * 43),
    "another alg": lambda d: d["keys"][0].update(alg="RS256"),
    "another file": lambda d: d["keys"][0].update(file="../sign.pem"),
    "a file of another key": lambda d: d["keys"][0].update(file=d["keys"][1]["file"]),
    "a sealing id with a path in it": lambda d: d["keys"][2].update(id="../../x", file="seal-../../x.key"),
    "a private jwk": lambda d: d["keys"][0]["jwk"].update(d="AAAA"),
    "no jwk": lambda d: d["keys"][0].pop("jwk"),
    "a float for a time": lambda d: d["keys"][0].update(publish_at=1.5),
    "a negative time": lambda d: d["keys"][0].update(publish_at=-1),
    "active before published": lambda d: d["keys"][0].update(activate_at=1),
    "retired before active": lambda d: d["keys"][0].update(retire_at=NOW - 1, remove_at=NOW),
    "retired without an end": lambda d: d["keys"][0].update(retire_at=NOW + 1),
    "retired without having been active": lambda d: d["keys"][1].update(retire_at=NOW, remove_at=NOW),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(KeysError):
        parse_manifest(_edited(EDITS[name]))


def test_a_manifest_edited_by_hand_is_refused_for_its_checksum() -> None:
    with pytest.raises(KeysError, match="checksum"):
        parse_manifest(dump_manifest(KEYSET).replace(b'"ttl_max": 7200', b'"ttl_max": 1'))


def test_a_manifest_that_was_cut_short_is_refused_at_every_length() -> None:
    text = dump_manifest(KEYSET).rstrip()
    for length in range(0, len(text), 7):
        with pytest.raises(KeysError):
            parse_manifest(text[:length])
