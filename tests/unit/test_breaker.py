"""The breaker: when it opens, and that it closes again by itself."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import pytest

from authsvc.errors import CodeInvalid, WeChatBadReply, WeChatBusy, WeChatMisconfigured, WeChatTimeout
from authsvc.wechat.breaker import OPEN_S, Breaker

DOWN_FOR_S = 10.0


@dataclass
class Calls:
    """WeChat behind a breaker, and a clock that stands still unless told."""

    at: float = 100.0
    made: int = 0
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker("jscode2session", down_for_s=DOWN_FOR_S, monotonic=lambda: self.at)

    def call(self, outcome: Exception | None = None, *, took_s: float = 0.0) -> None:
        """Raises what the caller would see."""
        with self.breaker.guarded():
            self.made += 1
            self.at += took_s
            if outcome is not None:
                raise outcome

    def fail(self, times: int, *, took_s: float = 0.0) -> None:
        for _ in range(times):
            with contextlib.suppress(WeChatTimeout):
                self.call(WeChatTimeout("silence"), took_s=took_s)

    def refuses(self) -> bool:
        before = self.made
        try:
            self.call()
        except WeChatBusy:
            assert self.made == before
            return True
        return False


@pytest.fixture
def calls() -> Calls:
    return Calls()


def _open(calls: Calls) -> None:
    calls.fail(4)
    calls.fail(1, took_s=DOWN_FOR_S)


def test_it_opens_after_five_failures_and_ten_seconds_without_an_answer(calls: Calls) -> None:
    _open(calls)
    assert calls.refuses()


def test_that_it_opens_and_closes_is_said_once_with_the_cause(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.suppress(WeChatTimeout), calls.breaker.guarded():  # one from before, which fails later
        _open(calls)
        raise WeChatTimeout("silence")
    with pytest.raises(WeChatBusy, match="silence"):
        calls.call()
    calls.at += OPEN_S
    for _ in range(3):
        calls.call()
    said = [record.getMessage() for record in caplog.records if record.name == "authsvc.wechat"]
    assert said == [
        "WeChat is down: jscode2session failed 5 times in a row, the last time: silence",
        "WeChat is back: jscode2session was answered",
    ]


def test_four_failures_however_long_are_no_outage(calls: Calls) -> None:
    calls.fail(4, took_s=60)
    assert not calls.refuses()


def test_many_failures_in_less_than_ten_seconds_are_no_outage(calls: Calls) -> None:
    calls.fail(100, took_s=0.09)
    assert not calls.refuses()


@pytest.mark.parametrize("outcome", [None, CodeInvalid("x"), WeChatMisconfigured("x"), ValueError("a bug of ours")])
def test_any_answer_begins_the_count_anew(calls: Calls, outcome: Exception | None) -> None:
    calls.fail(4, took_s=5)
    with contextlib.suppress(CodeInvalid, WeChatMisconfigured, ValueError):
        calls.call(outcome)
    calls.fail(4, took_s=5)
    assert not calls.refuses()


@pytest.mark.parametrize("outcome", [WeChatTimeout("x"), WeChatBadReply("x"), WeChatBusy("x")])
def test_silence_nonsense_and_busyness_are_failures(calls: Calls, outcome: Exception) -> None:
    for _ in range(6):
        with pytest.raises(type(outcome)):
            calls.call(outcome, took_s=2)
    assert calls.refuses()


def test_after_five_seconds_one_scout_goes_and_the_others_wait_for_it(calls: Calls) -> None:
    _open(calls)
    calls.at += OPEN_S - 0.01
    assert calls.refuses()
    calls.at += 0.01
    with calls.breaker.guarded():
        assert calls.refuses()
    assert not calls.refuses()
    assert not calls.refuses()


def test_a_scout_that_fails_leaves_it_open_for_another_five_seconds(calls: Calls) -> None:
    _open(calls)
    calls.at += OPEN_S
    with pytest.raises(WeChatTimeout):
        calls.call(WeChatTimeout("still silent"), took_s=3)
    calls.at += OPEN_S - 0.01
    assert calls.refuses()
    calls.at += 0.01
    assert not calls.refuses()


def test_a_scout_that_never_comes_back_is_followed_by_another(calls: Calls) -> None:
    _open(calls)
    calls.at += OPEN_S
    lost = calls.breaker.guarded()
    lost.__enter__()
    assert calls.refuses()
    calls.at += OPEN_S
    assert not calls.refuses()


def test_an_answer_to_a_call_from_before_closes_it(calls: Calls) -> None:
    slow = calls.breaker.guarded()
    slow.__enter__()
    _open(calls)
    assert calls.refuses()
    slow.__exit__(None, None, None)
    assert not calls.refuses()
