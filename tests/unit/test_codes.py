"""Login codes in one process: one exchange for each, whoever sends it how often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from authsvc.codes import REMEMBERED_S, Codes, LoginCode
from authsvc.errors import CodeUsed, WeChatBusy, WeChatTimeout
from tests.support.clock import FakeClock

CODE = LoginCode.of("wx1", "code")
PHONE, THIEF = "198.51.100.7", "203.0.113.9"


class Exchange:
    """Takes as long as the test wants."""

    def __init__(self, outcome: str | Exception = "token") -> None:
        self.calls = 0
        self.began = threading.Event()
        self.may_end = threading.Event()
        self._outcome = outcome

    def __call__(self) -> str:
        self.calls += 1
        self.began.set()
        assert self.may_end.wait(10)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def _codes(clock: FakeClock | None = None, *, wait_s: float = 10) -> Codes[str]:
    return Codes[str](wait_s=wait_s, monotonic=(clock or FakeClock()).monotonic)


def _never() -> str:
    raise AssertionError("exchanged once more")


def _while(exchange: Exchange, codes: Codes[str], act: Callable[[ThreadPoolExecutor], None]) -> str:
    """The first request's answer; `act` while it is under way."""
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(codes.once, CODE, PHONE, exchange)
        try:
            assert exchange.began.wait(10)
            act(pool)
        finally:
            exchange.may_end.set()
        return first.result(10)


def test_the_same_code_of_the_same_client_at_once_is_exchanged_once_and_both_have_the_answer() -> None:
    codes, exchange = _codes(), Exchange()
    others: list[Future[str]] = []

    def double_tap(pool: ThreadPoolExecutor) -> None:
        others.extend(pool.submit(codes.once, CODE, PHONE, _never) for _ in range(3))

    assert _while(exchange, codes, double_tap) == "token"
    assert [other.result(10) for other in others] == ["token"] * 3
    assert exchange.calls == 1


def test_the_same_code_of_another_client_at_once_is_refused_as_used() -> None:
    codes, exchange = _codes(), Exchange()

    def steal(_pool: ThreadPoolExecutor) -> None:
        with pytest.raises(CodeUsed):
            codes.once(CODE, THIEF, _never)

    assert _while(exchange, codes, steal) == "token"


def test_a_code_that_wechat_has_taken_is_still_joined_while_its_login_is_kept() -> None:
    codes, exchange = _codes(), Exchange()
    others: list[Future[str]] = []

    def tap(pool: ThreadPoolExecutor) -> None:
        codes.note_used(CODE)
        others.append(pool.submit(codes.once, CODE, PHONE, _never))

    _while(exchange, codes, tap)
    assert others[0].result(10) == "token"


def test_a_failure_is_shared_too_and_the_code_is_free_again() -> None:
    codes, exchange = _codes(), Exchange(WeChatBusy("x"))
    others: list[Future[str]] = []

    def tap(pool: ThreadPoolExecutor) -> None:
        others.append(pool.submit(codes.once, CODE, PHONE, _never))

    with pytest.raises(WeChatBusy) as first:
        _while(exchange, codes, tap)
    with pytest.raises(WeChatBusy):
        others[0].result(10)
    assert others[0].exception() is not first.value, "one object in two threads would gather the tracebacks of both"
    assert codes.once(CODE, THIEF, lambda: "token") == "token"


def test_the_second_request_does_not_wait_for_ever() -> None:
    codes, exchange = _codes(wait_s=0.01), Exchange()

    def tap(_pool: ThreadPoolExecutor) -> None:
        with pytest.raises(WeChatTimeout):
            codes.once(CODE, PHONE, _never)

    _while(exchange, codes, tap)


def test_codes_that_differ_or_are_of_different_apps_have_nothing_to_do_with_each_other() -> None:
    codes, exchange = _codes(), Exchange()

    def others(_pool: ThreadPoolExecutor) -> None:
        for appid, code in (("wx1", "cod"), ("wx1", "code2"), ("wx2", "code"), ("wx", "1 code"), ("wx1 c", "ode")):
            assert codes.once(LoginCode.of(appid, code), THIEF, lambda: "another") == "another"

    assert _while(exchange, codes, others) == "token"


@pytest.mark.parametrize(("after_s", "refused"), [(0, True), (REMEMBERED_S - 1, True), (REMEMBERED_S, False)])
def test_a_used_code_is_refused_for_as_long_as_wechat_would_know_it(after_s: int, refused: bool) -> None:
    clock = FakeClock()
    codes = _codes(clock)
    codes.note_used(CODE)
    clock.at += after_s
    if refused:
        with pytest.raises(CodeUsed):
            codes.once(CODE, PHONE, _never)
    else:
        assert codes.once(CODE, PHONE, lambda: "token") == "token"


def test_a_code_that_was_not_used_may_come_again() -> None:
    codes = _codes()
    assert [codes.once(CODE, PHONE, lambda: "token") for _ in range(2)] == ["token", "token"]


def test_of_used_codes_the_last_twenty_thousand_are_remembered() -> None:
    codes = _codes()
    used = [LoginCode.of("wx1", f"code{number}") for number in range(20_001)]
    for code in used:
        codes.note_used(code)
    assert codes.once(used[0], PHONE, lambda: "token") == "token"
    for code in (used[1], used[-1]):
        with pytest.raises(CodeUsed):
            codes.once(code, PHONE, _never)


def test_a_code_that_is_used_again_is_remembered_anew() -> None:
    codes = _codes()
    used = [LoginCode.of("wx1", f"code{number}") for number in range(20_001)]
    for code in (*used[:20_000], used[0], used[20_000]):
        codes.note_used(code)
    assert codes.once(used[1], PHONE, lambda: "token") == "token"
    with pytest.raises(CodeUsed):
        codes.once(used[0], PHONE, _never)


def test_where_an_appid_ends_and_a_code_begins_is_not_guessed() -> None:
    assert LoginCode.of("wx1", "2 x") != LoginCode.of("wx1 2", "x")


def test_nothing_of_a_code_is_in_its_repr() -> None:
    assert repr(LoginCode.of("wx1", "SECRETMARKER")) == "LoginCode()"
