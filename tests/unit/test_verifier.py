"""The verifier: three outcomes, what comes before any fetch, and what it remembers."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authsvc import JwkSet, KeysUnavailable, Policy, TokenError, Verifier
from authsvc.claims import Claims
from authsvc.errors import TokenExpired, TokenInvalid, TokenMalformed, TokenRevoked
from authsvc.jwk import ALGORITHMS
from authsvc.tokens import VerificationKey, sign_token
from authsvc.verifier.memory import Memory
from authsvc.verifier.sources import Asked
from tests.support.clock import NOW, FakeClock
from tests.support.keys import AUDIENCE, CLAIMS, ISSUER, POLICY, header, keyring, payload, signed

RING = keyring()
KID = RING.signing_key(now=NOW).kid
OTHER_KID = "x" * 43


def _token(**changes: Any) -> str:
    return sign_token(replace(CLAIMS, **changes), RING.signing_key(now=NOW), typ="at+jwt")


class Keys:
    """A source that the test opens and shuts, and that counts what it is asked."""

    def __init__(self, keys: Any = RING) -> None:
        self.keys = keys
        self.asked: list[Future[bool]] = []
        self.found = 0
        self.answers: Any = lambda _: None
        self.is_ours = True

    @property
    def epoch(self) -> object:
        return self.keys

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        self.found += 1
        key: VerificationKey | None = self.keys.find(unverified_kid, now=now) if self.keys else None
        return key

    def ask(self, *, issued_at: int) -> Asked | None:
        answer: Future[bool] = Future()
        self.asked.append(answer)
        self.answers(answer)
        return Asked(answer, self.is_ours, 5.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def _verifier(keys: Any, clock: FakeClock, *, policy: Policy = POLICY, remember: int = 100) -> Verifier:
    return Verifier(keys, policy, remember=remember, clock=clock)


# ---- the policy ---------------------------------------------------------------------------------


def _reason(token: str, policy: Policy, *, now: int = NOW) -> str:
    try:
        Verifier(JwkSet(RING.jwks(now=NOW)), policy, clock=FakeClock(now)).verify(token)
    except TokenError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(ISSUER, ("other", AUDIENCE)), "ok"),
        (Policy(ISSUER, ("other", "another")), "invalid"),
        (Policy(ISSUER, AUDIENCE[:-1]), "invalid"),
        (Policy(ISSUER + "/", AUDIENCE), "invalid"),
        (Policy(ISSUER, AUDIENCE, algorithms=("ES256",)), "ok"),
        (Policy(ISSUER, AUDIENCE, algorithms=("EdDSA", "RS256")), "invalid"),
        (Policy(ISSUER, AUDIENCE, typ=("JWT",)), "invalid"),
        (Policy(ISSUER, AUDIENCE, appids=(CLAIMS.appid, "wx2")), "ok"),
        (Policy(ISSUER, AUDIENCE, appids=("wx2",)), "invalid"),
    ],
)
def test_a_token_has_to_be_what_the_policy_insists_on(policy: Policy, reason: str) -> None:
    assert _reason(_token(), policy) == reason


@pytest.mark.parametrize(("leeway_s", "late_s", "reason"), [(0, 0, "expired"), (30, 29, "ok"), (30, 30, "expired")])
def test_a_token_lives_for_the_leeway_longer_and_not_a_second_more(leeway_s: int, late_s: int, reason: str) -> None:
    policy = Policy(ISSUER, AUDIENCE, leeway_s=leeway_s)
    assert _reason(_token(), policy, now=CLAIMS.expires_at + late_s) == reason


@pytest.mark.parametrize(
    "wrong",
    [
        {"audience": ""},
        {"audience": ()},
        {"audience": ["api"]},
        {"issuer": ""},
        {"issuer": None},
        {"typ": "at+jwt"},
        {"typ": ()},
        {"appids": "wx1"},
        {"appids": ()},
        {"algorithms": ("HS256",)},
        {"algorithms": ("none",)},
        {"algorithms": "ES256"},
        {"leeway_s": -1},
        {"leeway_s": 301},
        {"leeway_s": True},
        {"leeway_s": 1.5},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Policy(**{"issuer": ISSUER, "audience": AUDIENCE} | wrong)


@pytest.mark.parametrize(
    "arguments",
    [
        {"keys": ISSUER},
        {"keys": {"keys": []}, "audience": AUDIENCE},
        {"keys": ISSUER, "policy": POLICY},
        {"keys": RING, "policy": POLICY, "audience": AUDIENCE},
        {"keys": RING, "policy": POLICY, "appids": ("wx1",)},
    ],
)
def test_a_verifier_is_made_in_one_of_two_ways_and_never_without_an_audience(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Verifier(**arguments)


@pytest.mark.parametrize(
    "issuer", ["http://auth.example.com", "auth.example.com", "https://", "https://a/?b", "https://a/", "https://u@a"]
)
def test_an_issuer_that_could_be_anybody_is_refused_at_once(issuer: str) -> None:
    with pytest.raises(ValueError, match=r"URL|https"):
        Verifier(issuer, audience=AUDIENCE)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_keys_from_a_document_a_set_or_pem_verify_the_same(alg: str, clock: FakeClock) -> None:
    ring = keyring(alg)
    token = sign_token(CLAIMS, ring.signing_key(now=NOW), typ="at+jwt")
    document = ring.jwks(now=NOW)
    found = ring.find(ring.signing_key(now=NOW).kid, now=NOW)
    assert found is not None
    pem = found.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for keys in (document, JwkSet(document), JwkSet.from_pem(pem), JwkSet.from_pem(pem.decode()), ring):
        assert _verifier(keys, clock).verify(token) == CLAIMS


# ---- without a key ------------------------------------------------------------------------------


def _under(header_changes: dict[str, Any], **changes: Any) -> str:
    """Signed well, and under a kid that nobody knows unless `header_changes` says another."""
    return signed(header(RING, **{"kid": OTHER_KID} | header_changes), payload(**changes), RING.private_keys[KID])


NOT_WORTH_A_FETCH: dict[str, str] = {
    "nothing": "",
    "no token": "undefined",
    "too long": _token() + "A" * 9_000,
    "another issuer": _under({}, iss="https://evil.example"),
    "another audience": _under({}, aud="other"),
    "dead": _under({}, exp=NOW),
    "not yet issued": _under({}, iat=NOW + 61),
    "another type": _under({"typ": "JWT"}),
    "a kid of another form": _under({"kid": "1"}),
    "another algorithm": _under({"alg": "HS256"}),
    "jku": _under({"jku": "https://evil.example"}),
    "no openid": _under({}, openid=None),
}


@pytest.mark.parametrize("what", NOT_WORTH_A_FETCH)
def test_a_foreign_or_dead_token_causes_no_fetch(what: str, clock: FakeClock) -> None:
    keys = Keys()
    with pytest.raises(TokenError):
        _verifier(keys, clock).verify(NOT_WORTH_A_FETCH[what])
    assert keys.asked == []


def test_a_token_under_an_unknown_key_is_good_when_the_answer_brings_the_key(clock: FakeClock) -> None:
    keys = Keys(keys=None)

    def bring(answer: Future[bool]) -> None:
        keys.keys = RING
        answer.set_result(True)

    keys.answers = bring
    assert _verifier(keys, clock).verify(_token()) == CLAIMS
    assert len(keys.asked) == 1


def test_a_token_whose_key_the_issuer_does_not_have_is_invalid(clock: FakeClock) -> None:
    keys = Keys()
    keys.answers = lambda answer: answer.set_result(True)
    with pytest.raises(TokenInvalid):
        _verifier(keys, clock).verify(_under({}))


def test_an_answer_from_before_the_question_leaves_it_open(clock: FakeClock) -> None:
    keys = Keys()
    keys.answers, keys.is_ours = lambda answer: answer.set_result(True), False
    with pytest.raises(KeysUnavailable) as undecided:
        _verifier(keys, clock).verify(_under({}))
    assert undecided.value.retry_after_s == 1


def test_an_answer_that_a_cache_has_kept_leaves_it_open(clock: FakeClock) -> None:
    keys = Keys()
    keys.answers = lambda answer: answer.set_result(False)
    with pytest.raises(KeysUnavailable):
        _verifier(keys, clock).verify(_under({}))


def test_without_an_answer_nobody_is_logged_out(clock: FakeClock) -> None:
    keys = Keys()
    keys.answers = lambda answer: answer.set_exception(KeysUnavailable("the issuer is down", retry_after_s=7))
    with pytest.raises(KeysUnavailable, match="down") as undecided:
        _verifier(keys, clock).verify(_under({}))
    assert undecided.value.retry_after_s == 7
    assert not isinstance(undecided.value, TokenError)


def test_a_known_token_is_good_though_the_fetch_for_another_failed_and_so_old_keys_serve_on(clock: FakeClock) -> None:
    keys = Keys(keys=None)

    def fail(answer: Future[bool]) -> None:
        keys.keys = RING
        answer.set_exception(KeysUnavailable("the issuer is down", retry_after_s=7))

    keys.answers = fail
    assert _verifier(keys, clock).verify(_token()) == CLAIMS


def test_in_asyncio_the_loop_goes_on_while_keys_are_waited_for(clock: FakeClock) -> None:
    keys = Keys(keys=None)
    verifier = _verifier(keys, clock)

    async def both() -> tuple[Claims, list[str]]:
        seen: list[str] = []
        task = asyncio.create_task(verifier.verify_async(_token()))
        while not keys.asked:
            await asyncio.sleep(0)
        seen.append("the loop goes on")
        keys.keys = RING
        threading.Thread(target=keys.asked[0].set_result, args=(True,)).start()
        return await task, seen

    claims, seen = asyncio.run(both())
    assert claims == CLAIMS
    assert seen == ["the loop goes on"]


def test_in_asyncio_one_who_gives_up_takes_the_answer_from_nobody_else(clock: FakeClock) -> None:
    keys = Keys(keys=None)
    verifier = _verifier(keys, clock)
    shared: Future[bool] = Future()
    keys.ask = lambda *, issued_at: Asked(shared, True, 5.0)  # type: ignore[method-assign]

    async def both() -> Claims:
        impatient = asyncio.create_task(verifier.verify_async(_token()))
        patient = asyncio.create_task(verifier.verify_async(_token()))
        await asyncio.sleep(0.01)
        impatient.cancel()
        await asyncio.sleep(0.01)
        keys.keys = RING
        shared.set_result(True)
        return await patient

    assert asyncio.run(both()) == CLAIMS


@pytest.mark.parametrize(
    ("token", "error"),
    [
        ("", TokenError),
        ("a.b", TokenMalformed),
        (_token(audience="x"), TokenInvalid),
        (_token(expires_at=NOW), TokenExpired),
    ],
)
def test_in_asyncio_the_errors_are_the_same(token: str, error: type[Exception], clock: FakeClock) -> None:
    with pytest.raises(error):
        asyncio.run(_verifier(RING, clock).verify_async(token))


# ---- the memory ---------------------------------------------------------------------------------


def test_a_token_seen_before_costs_no_signature_check(clock: FakeClock) -> None:
    keys = Keys()
    verifier = _verifier(keys, clock)
    first = verifier.verify(_token())
    assert verifier.verify(_token()) is not first, "another token, with another signature"
    token = _token()
    seen = verifier.verify(token)
    found = keys.found
    assert verifier.verify(token) is seen
    assert keys.found == found


@pytest.mark.parametrize("leeway_s", [0, 30])
def test_a_remembered_token_dies_on_its_second(clock: FakeClock, leeway_s: int) -> None:
    verifier = _verifier(RING, clock, policy=Policy(ISSUER, AUDIENCE, leeway_s=leeway_s))
    token = _token()
    verifier.verify(token)
    clock.at = CLAIMS.expires_at + leeway_s - 1
    verifier.verify(token)
    clock.at += 1
    with pytest.raises(TokenExpired):
        verifier.verify(token)


def test_a_remembered_token_is_forgotten_with_its_key(clock: FakeClock) -> None:
    keys = Keys(JwkSet(RING.jwks(now=NOW)))
    verifier = _verifier(keys, clock)
    token = _token()
    verifier.verify(token)
    keys.keys = JwkSet(keyring(made_at=NOW - 1).jwks(now=NOW))
    keys.answers = lambda answer: answer.set_result(True)
    with pytest.raises(TokenInvalid):
        verifier.verify(token)


def test_a_remembered_token_is_refused_as_revoked_from_the_moment_its_key_is(clock: FakeClock) -> None:
    kid = RING.signing_key(now=NOW).kid
    keys = Keys()
    verifier = _verifier(keys, clock)
    token = _token()
    verifier.verify(token)
    burnt = tuple(replace(key, revoked_at=NOW) if key.id == kid else key for key in RING.keyset.keys)
    keys.keys = replace(RING, keyset=replace(RING.keyset, keys=burnt))
    with pytest.raises(TokenRevoked):
        verifier.verify(token)


def test_a_remembered_token_is_not_taken_while_no_key_can_be_relied_upon(clock: FakeClock) -> None:
    keys = Keys()
    verifier = _verifier(keys, clock)
    token = _token()
    verifier.verify(token)
    keys.keys = None
    keys.answers = lambda answer: answer.set_exception(KeysUnavailable("too old", retry_after_s=1))
    with pytest.raises(KeysUnavailable):
        verifier.verify(token)


def test_what_was_refused_is_not_remembered(clock: FakeClock) -> None:
    keys = Keys()
    verifier = _verifier(keys, clock)
    for token in (_token(audience="other"), _token(expires_at=NOW), _token()[:-4] + "AAAA"):
        for _ in range(2):
            found = keys.found
            with pytest.raises(TokenError):
                verifier.verify(token)
            assert keys.found == found + 1


def test_with_no_memory_every_token_is_checked(clock: FakeClock) -> None:
    keys = Keys()
    verifier = _verifier(keys, clock, remember=0)
    token = _token()
    for count in (1, 2):
        verifier.verify(token)
        assert keys.found == count


def _remembered(memory: Memory, epoch: object, tokens: list[str]) -> int:
    return sum(memory.get(token, epoch) is not None for token in tokens)


def test_the_memory_holds_no_more_tokens_than_it_may_and_those_that_come_again_stay() -> None:
    memory, epoch = Memory(100, max_bytes=1 << 30), object()
    tokens = [f"token-{n}" for n in range(1_000)]
    for token in tokens:
        memory.put(token, CLAIMS, epoch)
        assert memory.get("token-0", epoch) is CLAIMS
    assert 50 <= _remembered(memory, epoch, tokens) <= 100


def test_the_memory_holds_no_more_bytes_than_it_may() -> None:
    memory, epoch = Memory(1_000_000, max_bytes=1 << 20), object()
    tokens = [f"{n:08000}" for n in range(1_000)]
    for token in tokens:
        memory.put(token, CLAIMS, epoch)
    kept = _remembered(memory, epoch, tokens)
    assert 50 <= kept <= (1 << 20) / 9_300
    memory.put("x" * (1 << 20), CLAIMS, epoch)
    assert memory.get("x" * (1 << 20), epoch) is None


def test_without_keys_nothing_is_remembered_and_nothing_comes_out() -> None:
    memory = Memory(10, max_bytes=1 << 20)
    memory.put("token", CLAIMS, None)
    assert memory.get("token", None) is None
    memory.put("token", CLAIMS, epoch := object())
    assert memory.get("token", epoch) is CLAIMS
    assert memory.get("token", None) is None


# ---- what is said aloud -------------------------------------------------------------------------


def test_that_users_of_several_mini_programs_are_taken_is_said_once(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = _verifier(RING, clock)
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        for _ in range(3):
            verifier.verify(_token())
        assert caplog.records == []
        for appid in ("wx2", "wx3", "wx2", "wx3"):
            clock.at += 61
            verifier.verify(_token(appid=appid))
    assert [("appids=" in record.getMessage(), "wx2" in record.getMessage()) for record in caplog.records] == [
        (True, True)
    ]


def test_a_log_that_fails_refuses_no_token(clock: FakeClock) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise KeyError("a fault of somebody else")

    broken, logger = Broken(), logging.getLogger("authsvc.verifier")
    verifier = _verifier(RING, clock)
    logger.addFilter(broken)
    try:
        for appid in ("wx1", "wx2", "wx3"):
            assert verifier.verify(_token(appid=appid)).appid == appid
    finally:
        logger.removeFilter(broken)


def test_with_the_mini_programs_named_there_is_nothing_to_say(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = _verifier(RING, clock, policy=Policy(ISSUER, AUDIENCE, appids=("wx2", CLAIMS.appid)))
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        for appid in ("wx2", CLAIMS.appid):
            verifier.verify(_token(appid=appid))
    assert caplog.records == []
