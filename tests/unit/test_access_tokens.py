"""Access tokens: fetched when needed, by one at a time, shared, and given up only by those that saw them fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from authsvc.errors import AccessTokenRejected, WeChatError, WeChatMisconfigured, WeChatTimeout
from authsvc.wechat import AccessToken, AccessTokens, App, LivingToken
from tests.support.clock import NOW, FakeClock

APP, OTHER = App("wx1", ("secret",)), App("wx2", ("secret",))
TIMEOUT_S = 5


@dataclass
class Share:
    """What the processes of one service share; `claimed` is by somebody else."""

    tokens: dict[str, LivingToken] = field(default_factory=dict)
    claimed: bool = False
    is_broken: bool = False  # it keeps nothing new
    claims: list[int] = field(default_factory=list)
    ended: int = 0

    def token(self, appid: str) -> LivingToken | None:
        return self.tokens.get(appid)

    def put(self, appid: str, token: LivingToken) -> None:
        if not self.is_broken:
            self.tokens[appid] = token

    def claim(self, appid: str, *, for_s: int) -> Callable[[], None] | None:
        if self.claimed:
            return None
        self.claims.append(for_s)
        return self._end

    def _end(self) -> None:
        self.ended += 1


@dataclass
class Source:
    """WeChat's stable_token: numbers its tokens."""

    life_s: int = 7200
    failure: Exception | None = None
    meanwhile: Callable[[], object] = lambda: None
    asked: list[str] = field(default_factory=list)
    always: str | None = None  # the same text at every call
    ends_at: list[float | None] = field(default_factory=list)

    def stable_access_token(self, app: App, *, ends_at: float | None = None) -> AccessToken:
        self.asked.append(app.appid)
        self.ends_at.append(ends_at)
        self.meanwhile()
        if self.failure is not None:
            raise self.failure
        return AccessToken(self.always or f"token-{len(self.asked)}-of-{app.appid}", self.life_s)


@dataclass
class Process:
    """One process with its access tokens."""

    share: Share = field(default_factory=Share)
    source: Source = field(default_factory=Source)
    clock: FakeClock = field(default_factory=FakeClock)
    tokens: AccessTokens = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = AccessTokens(
            self.source, share=self.share, timeout_s=TIMEOUT_S, clock=self.clock, sleep=self.sleep
        )

    def sleep(self, _seconds: float) -> None:
        self.clock.at += 1

    def token(self, app: App = APP) -> str:
        return self.tokens.use(app, lambda token, _ends_at: token)

    def use_up_to(self, refused: int) -> list[str]:
        """The tokens that a call is made with, of which the first `refused` are not taken."""
        seen: list[str] = []

        def call(token: str, _ends_at: float) -> None:
            seen.append(token)
            if len(seen) <= refused:
                raise AccessTokenRejected("x", errcode=40001)

        self.tokens.use(APP, call)
        return seen


@pytest.fixture
def process() -> Process:
    return Process()


def test_nothing_is_fetched_before_it_is_needed_and_then_once(process: Process) -> None:
    assert process.source.asked == []
    assert [process.token() for _ in range(3)] == ["token-1-of-wx1"] * 3
    assert process.source.asked == ["wx1"]


def test_each_app_has_its_own(process: Process) -> None:
    assert (process.token(APP), process.token(OTHER)) == ("token-1-of-wx1", "token-2-of-wx2")
    assert process.token(APP) == "token-1-of-wx1"


@pytest.mark.parametrize(("after_s", "token"), [(6899, "token-1-of-wx1"), (6900, "token-2-of-wx1")])
def test_it_is_renewed_five_minutes_before_its_end(process: Process, after_s: int, token: str) -> None:
    process.token()
    process.clock.at += after_s
    assert process.token() == token


def test_one_that_wechat_has_had_for_long_ends_when_wechat_says(process: Process) -> None:
    process.source.life_s = 345
    process.token()
    process.clock.at += 44
    assert process.token() == "token-1-of-wx1"
    process.clock.at += 1
    assert process.token() == "token-2-of-wx1"


def test_its_end_is_counted_from_before_the_call(process: Process) -> None:
    def slow() -> None:
        process.clock.at += 4

    process.source.meanwhile = slow
    process.token()
    assert process.share.tokens["wx1"].expires_at == NOW + 7200


def test_what_another_process_has_fetched_is_used() -> None:
    share = Share()
    first, second = Process(share), Process(share)
    assert first.token() == second.token()
    assert second.source.asked == []
    assert share.ended == len(share.claims) == 1


def test_while_another_process_fetches_it_is_waited_for() -> None:
    process = Process(Share(claimed=True))

    def sleep(_seconds: float) -> None:
        process.share.tokens["wx1"] = LivingToken("from-another", NOW + 7200)

    process.tokens._sleep = sleep
    assert process.token() == "from-another"
    assert process.source.asked == []


def test_a_process_that_claims_and_never_fetches_is_not_waited_for_longer_than_a_call_may_take() -> None:
    process = Process(Share(claimed=True))
    with pytest.raises(WeChatTimeout):
        process.token()
    assert process.clock.at <= NOW + TIMEOUT_S + 1


def test_what_came_between_the_look_and_the_claim_is_used(process: Process) -> None:
    claim = process.share.claim

    def slow(appid: str, *, for_s: int) -> Callable[[], None] | None:
        process.share.tokens[appid] = LivingToken("from-another", NOW + 7200)
        return claim(appid, for_s=for_s)

    process.share.claim = slow  # type: ignore[method-assign]
    assert process.token() == "from-another"
    assert process.source.asked == []
    assert process.share.ended == 1


def test_a_claim_lasts_longer_than_the_fetch_may_and_not_for_ever(process: Process) -> None:
    process.token()
    assert process.share.claims == [TIMEOUT_S + 2]


def test_a_claim_is_given_back_when_the_fetch_fails(process: Process) -> None:
    process.source.failure = WeChatMisconfigured("x", errcode=40125)
    with pytest.raises(WeChatMisconfigured):
        process.token()
    assert process.share.ended == 1
    process.source.failure = None
    assert process.token() == "token-2-of-wx1"


@pytest.mark.parametrize("is_broken", [False, True])
def test_of_threads_that_need_it_at_once_one_fetches(is_broken: bool) -> None:
    process = Process(Share(is_broken=is_broken))
    began, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        assert may_end.wait(10)

    process.source.meanwhile = slow
    with ThreadPoolExecutor(8) as pool:
        waiting: list[Future[str]] = [pool.submit(process.token) for _ in range(8)]
        assert began.wait(10)
        may_end.set()
        assert {future.result(10) for future in waiting} == {"token-1-of-wx1"}
    assert process.source.asked == ["wx1"]


def test_who_has_one_that_lives_does_not_wait_for_its_successor(process: Process) -> None:
    process.token()
    process.clock.at += 7000
    meanwhile: list[str] = []
    process.source.meanwhile = lambda: meanwhile.append(ThreadPoolExecutor(1).submit(process.token).result(3))
    assert process.token() == "token-2-of-wx1"
    assert meanwhile == ["token-1-of-wx1"]


@pytest.mark.parametrize(("after_s", "good"), [(7199, True), (7200, False)])
def test_when_it_cannot_be_renewed_the_old_one_serves_to_its_end(process: Process, after_s: int, good: bool) -> None:
    process.token()
    process.clock.at += after_s
    process.source.failure = WeChatTimeout("x")
    if good:
        assert process.token() == "token-1-of-wx1"
    else:
        with pytest.raises(WeChatTimeout):
            process.token()


def test_one_that_is_not_taken_is_replaced_and_the_call_made_once_more(process: Process) -> None:
    assert process.use_up_to(1) == ["token-1-of-wx1", "token-2-of-wx1"]
    assert process.token() == "token-2-of-wx1"


def test_a_second_refusal_is_the_end(process: Process) -> None:
    with pytest.raises(AccessTokenRejected):
        process.use_up_to(2)
    assert process.source.asked == ["wx1", "wx1"]


def test_a_refused_one_is_forgotten_for_all_processes() -> None:
    share = Share()
    first, second = Process(share), Process(share)
    first.token()
    assert first.use_up_to(1)[1] == "token-2-of-wx1"
    assert second.token() == "token-2-of-wx1"


def test_one_that_failed_is_dropped_only_if_it_is_still_in_use() -> None:
    share = Share()
    first, second = Process(share), Process(share)
    old = first.token()
    assert second.token() == old
    assert first.use_up_to(1) == [old, "token-2-of-wx1"]
    # The other process meets the refusal later, and finds the new one there.
    assert second.use_up_to(1) == [old, "token-2-of-wx1"]
    assert second.source.asked == []
    assert share.tokens["wx1"].token == "token-2-of-wx1"


@pytest.mark.parametrize("is_broken", [False, True])
def test_threads_that_meet_the_same_refusal_one_after_the_other_fetch_once(is_broken: bool) -> None:
    process = Process(Share(is_broken=is_broken))
    old = process.token()
    seen: list[str] = []

    def call(token: str, _ends_at: float) -> None:
        seen.append(token)
        if token == old:
            if len(seen) == 1:
                process.tokens.use(APP, call)  # another one is refused and served before this refusal arrives
            raise AccessTokenRejected("x", errcode=42001)

    process.tokens.use(APP, call)
    assert seen == [old, old, "token-2-of-wx1", "token-2-of-wx1"]
    assert process.source.asked == ["wx1", "wx1"]


def test_a_refused_token_is_not_taken_from_a_share_that_cannot_change() -> None:
    process = Process(Share(tokens={"wx1": LivingToken("dead", NOW + 7200)}, is_broken=True))
    assert process.use_up_to(1) == ["dead", "token-1-of-wx1"]
    assert process.token() == "token-1-of-wx1"
    # Also under another end than ours.
    process = Process(Share(tokens={"wx1": LivingToken("dead", NOW + 7200)}, is_broken=True))
    process.token()
    process.share.tokens["wx1"] = LivingToken("dead", NOW + 7100)
    assert process.use_up_to(1) == ["dead", "token-1-of-wx1"]


def test_a_token_that_wechat_gives_and_does_not_take_is_asked_for_again_only_after_a_while(process: Process) -> None:
    process.source.always = "the same"
    for refusals in (1, 2):
        assert process.use_up_to(1) == ["the same", "the same"], "the call is made once more all the same"
        assert len(process.source.asked) == 1 + refusals, "it was taken in between"
    for _ in range(3):
        with pytest.raises(AccessTokenRejected):
            process.use_up_to(2)
    assert len(process.source.asked) == 4
    process.clock.at += 5
    with pytest.raises(AccessTokenRejected):
        process.use_up_to(2)
    assert len(process.source.asked) == 5


def test_a_failed_fetch_is_the_answer_to_all_who_wait_for_it() -> None:
    process = Process()
    began, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        assert may_end.wait(10)

    process.source.meanwhile, process.source.failure = hang, WeChatTimeout("x")
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(process.token) for _ in range(8)]
        assert began.wait(10)
        may_end.set()
        errors = [future.exception(10) for future in waiting]
    assert all(isinstance(error, WeChatTimeout) for error in errors)
    assert len({id(error) for error in errors}) == 8
    assert len(process.source.asked) in range(1, 3), "one may have come when it was over"


def test_while_one_goes_to_see_whether_there_is_a_token_again_nobody_waits_for_it(process: Process) -> None:
    process.source.failure = WeChatTimeout("x")
    with pytest.raises(WeChatTimeout):
        process.token()
    others: list[BaseException | None] = []
    process.source.meanwhile = lambda: others.append(ThreadPoolExecutor(1).submit(process.token).exception(3))
    process.source.failure = None
    assert process.token() == "token-2-of-wx1"
    assert [type(error) for error in others] == [WeChatTimeout]


def test_a_renewal_leaves_the_call_two_thirds_of_its_time_and_is_not_tried_by_every_call(process: Process) -> None:
    process.token()
    process.clock.at += 7000
    process.source.failure = WeChatTimeout("x")
    assert [process.token() for _ in range(3)] == ["token-1-of-wx1"] * 3
    assert process.source.ends_at[0] == NOW + TIMEOUT_S
    assert process.source.ends_at[1] == pytest.approx(NOW + 7000 + TIMEOUT_S / 3, rel=0, abs=0.01)
    process.clock.at += 5
    process.token()
    assert len(process.source.asked) == 3


def test_another_error_of_the_call_leaves_the_token_alone(process: Process) -> None:
    def call(_token: str, _ends_at: float) -> None:
        raise WeChatError("x", errcode=50002)

    with pytest.raises(WeChatError):
        process.tokens.use(APP, call)
    assert process.token() == "token-1-of-wx1"


def test_the_call_is_bounded_from_before_the_fetch(process: Process) -> None:
    def slow() -> None:
        process.clock.at += 4

    process.source.meanwhile = slow
    assert process.tokens.use(APP, lambda _token, ends_at: ends_at) == NOW + TIMEOUT_S


def test_nothing_of_a_token_is_in_a_repr() -> None:
    assert "SECRETMARKER" not in repr(LivingToken("SECRETMARKER", NOW)) + repr(AccessToken("SECRETMARKER", 1))
