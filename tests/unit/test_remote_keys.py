"""Keys over HTTP, without HTTP: when they are fetched, when not, and what is done with the answers."""

from __future__ import annotations

import gc
import json
import logging
import math
import stat
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from authsvc import IssuerKeys, KeysUnavailable, RemoteKeys, Verifier
from authsvc.errors import TokenInvalid
from authsvc.tokens import sign_token
from authsvc.verifier.fetch import Fetched, FetchFailed
from authsvc.verifier.sources import Asked
from tests.support.clock import NOW, FakeClock
from tests.support.keys import CLAIMS, ISSUER, POLICY, keyring

RING, NEXT = keyring(), keyring(made_at=NOW - 1)
URL = f"{ISSUER}/.well-known/jwks.json"
KID, NEXT_KID = (ring.signing_key(now=NOW).kid for ring in (RING, NEXT))


def _jwks(ring: Any = RING) -> bytes:
    return json.dumps(ring.jwks(now=NOW)).encode()


class Host:
    """What the issuer answers, and what it was asked."""

    def __init__(self) -> None:
        self.body: bytes | None = _jwks()
        self.etag: str | None = '"1"'
        self.fresh_s: int | None = 300
        self.date: int | None = None
        self.problem: Exception | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.asked: list[tuple[str, str | None]] = []
        self.closed = 0
        self.abandoned = 0
        self.within_s: list[float] = []
        self.past_caches: list[bool] = []
        self.age_s = 0

    def get(self, url: str, *, within_s: float, etag: str | None = None, past_caches: bool = False) -> Fetched:
        self.asked.append((url, etag))
        self.within_s.append(within_s)
        self.past_caches.append(past_caches)
        self.meanwhile()
        if self.problem is not None:
            raise self.problem
        return Fetched(self.body, self.etag, self.fresh_s, self.date, self.age_s)

    def close(self) -> None:
        self.closed += 1

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Source:
    """A source whose thread is played by the test: `run` does what is due."""

    def __init__(self, host: Host, clock: FakeClock, *, of: type[RemoteKeys] = RemoteKeys, **options: Any) -> None:
        self.clock = clock
        self.threads: list[Callable[[], None]] = []
        self.keys = of(
            ISSUER if of is IssuerKeys else URL,
            clock=clock,
            jitter=lambda: 0.5,
            new_fetcher=lambda: host,
            start_thread=self.threads.append,
            **options,
        )

    def ask(self) -> Asked:
        """For a token that was issued at this moment."""
        return _ask(self.keys)

    def run(self) -> None:
        if self.keys._wanted is not None or self.clock.monotonic() >= self.keys._due_at:
            self.keys.fetch()

    def live(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.at += 1
            self.run()

    def knows(self, kid: str = KID) -> bool:
        return self.keys.find(kid, now=self.clock.at) is not None

    def started(self) -> Source:
        assert not self.knows()
        self.run()
        return self


@pytest.fixture
def source(host: Host, clock: FakeClock) -> Source:
    return Source(host, clock)


def _ask(keys: RemoteKeys) -> Asked:
    asked = keys.ask(issued_at=keys._clock.now())
    assert asked is not None
    return asked


def _answered(asked: Asked) -> bool:
    return asked.answer.done() and asked.answer.exception() is None


# ---- when keys are fetched ----------------------------------------------------------------------


def test_nothing_is_fetched_and_no_thread_runs_before_the_first_question(source: Source, host: Host) -> None:
    assert (source.threads, host.asked) == ([], [])
    assert not source.knows()
    assert len(source.threads) == 1
    source.run()
    assert source.knows()
    assert len(source.threads) == 1
    assert host.asked == [(URL, None)]


def test_keys_are_refreshed_when_four_fifths_of_their_max_age_are_over_and_nobody_waits(
    source: Source, host: Host
) -> None:
    source.started()
    source.live(239)
    assert len(host.asked) == 1
    source.live(1)
    assert host.asked[1:] == [(URL, '"1"')]
    for _ in range(2_000):
        source.live(1)
        assert source.knows()
    assert len(host.asked) == 2 + 2_000 // 240


@pytest.mark.parametrize(
    ("fresh_s", "due_s"), [(None, 240), (0, 24), (29, 24), (30, 24), (100, 80), (3_600, 2_880), (10**9, 2_880)]
)
def test_what_the_host_says_of_caching_is_believed_within_bounds(
    source: Source, host: Host, fresh_s: int | None, due_s: int
) -> None:
    host.fresh_s = fresh_s
    source.started()
    source.live(due_s - 1)
    assert len(host.asked) == 1
    source.live(1)
    assert len(host.asked) == 2


@pytest.mark.parametrize(("jitter", "due_s"), [(0.0, 216), (1.0, 264)])
def test_not_all_verifiers_refresh_at_the_same_moment_and_none_too_late(
    host: Host, clock: FakeClock, jitter: float, due_s: int
) -> None:
    source = Source(host, clock)
    source.keys._jitter = lambda: jitter
    source.started()
    source.live(due_s - 1)
    assert len(host.asked) == 1
    source.live(1)
    assert len(host.asked) == 2
    assert due_s < 300


def test_the_same_keys_again_are_no_news(source: Source, host: Host) -> None:
    source.started()
    epoch = source.keys.epoch
    host.body = None  # 304
    source.live(300)
    assert source.keys.epoch is epoch
    host.body = _jwks()
    source.live(300)
    assert source.keys.epoch is epoch
    assert len(host.asked) == 3


def test_other_keys_are_in_force_with_the_answer(source: Source, host: Host) -> None:
    source.started()
    epoch = source.keys.epoch
    host.body = _jwks(NEXT)
    source.live(240)
    assert source.keys.epoch is not epoch
    assert (source.knows(KID), source.knows(NEXT_KID)) == (False, True)


# ---- the budget ---------------------------------------------------------------------------------


def test_for_unknown_kids_keys_are_fetched_once_in_a_cool_down_however_many_come(source: Source, host: Host) -> None:
    source.started()
    refused = []
    for _ in range(100):
        source.live(1)
        for _ in range(10):
            try:
                assert source.ask().is_ours
            except KeysUnavailable as unavailable:
                refused.append(unavailable.retry_after_s)
    assert len(host.asked) == 1 + 4  # at 1, 31, 61, 91 s
    assert (min(refused), max(refused)) == (1, 29)


def test_a_fetch_that_is_due_anyway_is_on_nobodys_account(source: Source, host: Host, clock: FakeClock) -> None:
    asked = source.ask()
    source.run()
    assert _answered(asked)
    clock.at += 1
    assert source.ask().is_ours
    source.run()
    clock.at += 1
    with pytest.raises(KeysUnavailable):
        source.ask()


def test_failed_fetches_count_against_the_budget_too(source: Source, host: Host) -> None:
    source.started()
    host.problem = FetchFailed("down")
    source.ask()
    source.run()
    before = len(host.asked)
    for _ in range(50):
        with pytest.raises(KeysUnavailable):
            source.ask()
    assert len(host.asked) == before


def test_all_who_ask_while_a_fetch_is_due_get_its_answer(source: Source, host: Host) -> None:
    source.started()
    source.live(1)
    asked = [source.ask() for _ in range(8)]
    with pytest.raises(KeysUnavailable) as crowded:
        source.ask()
    assert crowded.value.retry_after_s == 1, "no more threads are to wait with who sends forged tokens"
    source.run()
    assert len(host.asked) == 2
    assert all(_answered(one) and one.settles_it() for one in asked)


def test_while_there_are_no_keys_at_all_everybody_may_wait_for_the_first(source: Source, host: Host) -> None:
    asked = [source.ask() for _ in range(500)]
    source.run()
    assert len(host.asked) == 1
    assert all(_answered(one) for one in asked)


def test_for_an_unknown_kid_caches_on_the_way_are_told_to_ask_the_host(source: Source, host: Host) -> None:
    source.started()
    source.live(1)
    asked = source.ask()
    source.run()
    assert host.past_caches == [False, True]
    assert asked.settles_it()
    source.live(300)
    assert host.past_caches[2:] == [False]


def test_what_a_cache_answers_all_the_same_settles_nothing(source: Source, host: Host) -> None:
    """It may be from before the key of this token: the issuer's last revocation, say."""
    source.started()
    source.live(1)
    host.age_s = 17
    asked = source.ask()
    source.run()
    assert _answered(asked)
    assert not asked.settles_it()


def test_who_asks_while_a_fetch_is_under_way_shares_its_answer_which_may_be_from_before(
    source: Source, host: Host
) -> None:
    asked: list[Asked] = []
    source.started()
    host.meanwhile = lambda: asked.append(source.ask())
    source.live(240)
    (late,) = asked
    assert _answered(late)
    assert not late.settles_it()


def test_where_there_were_no_keys_at_all_the_fetch_under_way_settles_it(source: Source, host: Host) -> None:
    asked: list[Asked] = []
    host.meanwhile = lambda: asked.append(source.ask())
    source.started()
    (early,) = asked
    assert early.settles_it()


# ---- while the host cannot be had ---------------------------------------------------------------

BROKEN: dict[str, Any] = {
    "down": FetchFailed("no connection"),
    "empty": b"",
    "HTML": b"<html>503</html>",
    "an empty set": b'{"keys": []}',
    "no set": b"[]",
    "null": b"null",
    "duplicate kids": json.dumps({"keys": RING.jwks(now=NOW)["keys"] * 2}).encode(),
    "duplicate members": b'{"keys": [], "keys": ' + json.dumps(RING.jwks(now=NOW)["keys"]).encode() + b"}",
    "unknown types alone": b'{"keys": [{"kty": "AKP"}, {"kty": "oct", "k": "AAAA"}, 1, null]}',
    "too large": b" " * 200_000 + _jwks(),
    "deep": b'{"keys": ' + b"[" * 50_000,
    "a fault of ours": RuntimeError("MARKER"),
}


def _break(host: Host, what: str) -> None:
    how = BROKEN[what]
    if isinstance(how, Exception):
        host.problem = how
    else:
        host.body = how


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_answer_never_takes_the_place_of_good_keys_and_is_said_aloud(
    source: Source, host: Host, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.started()
    epoch = source.keys.epoch
    _break(host, what)
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        source.live(299)
        assert source.keys.epoch is epoch
        source.live(3_600)
    assert source.keys.epoch is epoch
    said = [record for record in caplog.records if "cannot be had" in record.getMessage()]
    assert 55 <= len(said) <= 65, "once a minute"
    source.live(1)
    assert source.keys.epoch is None
    assert not source.knows()


@pytest.mark.parametrize("what", BROKEN)
def test_without_any_good_answer_nothing_is_known_and_the_host_is_not_stormed(
    source: Source, host: Host, what: str
) -> None:
    _break(host, what)
    source.started()
    for _ in range(600):
        source.live(1)
        assert not source.knows()
    assert len(host.asked) < 30
    host.problem, host.body = None, _jwks()
    source.live(30)
    assert source.knows()


def test_the_times_between_failures_grow_to_the_cool_down(source: Source, host: Host, clock: FakeClock) -> None:
    times: list[int] = []
    host.problem = FetchFailed("down")
    host.meanwhile = lambda: times.append(clock.at - NOW)
    source.started()
    source.live(110)
    assert times == [0, 1, 3, 8, 18, 48, 78, 108]


def test_who_asks_while_the_host_is_down_is_told_when_it_is_tried_again(source: Source, host: Host) -> None:
    host.problem = FetchFailed("down")
    source.started()
    source.live(20)
    first = source.ask()
    source.run()
    failure = first.answer.exception()
    assert isinstance(failure, KeysUnavailable)
    assert failure.retry_after_s == 30
    with pytest.raises(KeysUnavailable) as spent:
        source.ask()
    assert spent.value.retry_after_s == 30


def test_keys_that_no_fetch_has_failed_for_do_not_outlive_their_max_age(source: Source, clock: FakeClock) -> None:
    """A process that was stopped for a while asks first: the host may be well, and its keys revoked."""
    source.started()
    clock.at += 300
    assert not source.knows()
    asked = source.ask()
    source.run()
    assert _answered(asked)
    assert source.knows()


def test_when_the_host_is_back_that_is_said(source: Source, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    source.started()
    host.problem = FetchFailed("down")
    source.live(300)
    host.problem = None
    caplog.clear()
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        source.live(60)
    assert ["can be had again" in record.getMessage() for record in caplog.records] == [True]


# ---- odd answers --------------------------------------------------------------------------------


def test_a_private_key_in_the_set_is_not_used_and_said_aloud(
    source: Source, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    jwks = RING.jwks(now=NOW)
    jwks["keys"][0]["d"] = "MARKER"
    host.body = json.dumps(jwks).encode()
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        source.started()
    assert not source.knows(jwks["keys"][0]["kid"])
    assert source.knows(jwks["keys"][1]["kid"])
    assert ["a private key" in record.getMessage() for record in caplog.records] == [True]
    assert "MARKER" not in caplog.text


def test_a_304_for_what_was_never_fetched_is_no_answer(source: Source, host: Host) -> None:
    host.body = None
    source.started()
    assert not source.knows()


@pytest.mark.parametrize(("off_s", "is_said"), [(60, False), (-61, True), (61, True)])
def test_a_clock_that_is_not_the_issuers_is_said_aloud(
    source: Source, host: Host, caplog: pytest.LogCaptureFixture, off_s: int, is_said: bool
) -> None:
    host.date = NOW + off_s
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        source.started()
    assert [f"differ by {abs(off_s)} s" in record.getMessage() for record in caplog.records] == [True] * is_said


def test_a_query_in_the_url_stands_in_no_log_and_no_error(
    host: Host, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    host.problem = FetchFailed("down")
    keys = RemoteKeys(f"{URL}?key=MARKER", clock=clock, new_fetcher=lambda: host, start_thread=lambda _: None)
    asked = _ask(keys)
    keys.fetch()
    assert host.asked[0][0].endswith("MARKER")
    assert "MARKER" not in caplog.text + str(asked.answer.exception())


# ---- the issuer's metadata ----------------------------------------------------------------------


class Issuer(Host):
    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = {"issuer": ISSUER, "jwks_uri": URL}
        self.takes: Callable[[], object] = lambda: None

    def get(self, url: str, *, within_s: float, etag: str | None = None, past_caches: bool = False) -> Fetched:
        if url.endswith("/.well-known/openid-configuration"):
            self.asked.append((url, etag))
            self.takes()
            return Fetched(json.dumps(self.metadata).encode(), None, 300, None)
        return super().get(url, within_s=within_s, etag=etag, past_caches=past_caches)


def test_an_issuers_keys_are_where_its_metadata_says_and_that_is_asked_once(clock: FakeClock) -> None:
    issuer = Issuer()
    source = Source(issuer, clock, of=IssuerKeys).started()
    assert source.knows()
    source.live(240)
    assert [url.removeprefix(ISSUER) for url, _ in issuer.asked] == [
        "/.well-known/openid-configuration",
        "/.well-known/jwks.json",
        "/.well-known/jwks.json",
    ]


def test_when_its_keys_cannot_be_had_the_metadata_is_read_again_for_they_may_have_moved(clock: FakeClock) -> None:
    issuer = Issuer()
    source = Source(issuer, clock, of=IssuerKeys).started()
    issuer.problem = FetchFailed("404")
    source.live(240)
    issuer.problem, issuer.metadata["jwks_uri"] = None, f"{ISSUER}/elsewhere"
    source.live(1)
    assert issuer.asked[-1][0] == f"{ISSUER}/elsewhere"
    assert source.knows()


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"issuer": ISSUER + "/"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": 1},
        {"jwks_uri": "http://auth.example.com/jwks.json"},
        {"jwks_uri": "http://127.0.0.1/jwks.json"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "https://user@auth.example.com/"},
        {"jwks_uri": ""},
    ],
)
def test_metadata_that_speaks_for_another_issuer_or_names_no_safe_url_is_not_believed(
    clock: FakeClock, change: dict[str, Any]
) -> None:
    issuer = Issuer()
    issuer.metadata |= change
    source = Source(issuer, clock, of=IssuerKeys).started()
    assert not source.knows()
    assert [url for url, _ in issuer.asked] == [f"{ISSUER}/.well-known/openid-configuration"]


# ---- the copy on disk ---------------------------------------------------------------------------


def test_a_process_that_starts_while_the_host_is_down_has_the_keys_of_the_last_one(
    host: Host, clock: FakeClock, tmp_path: Path
) -> None:
    kept_in = tmp_path / "jwks.json"
    Source(host, clock, kept_in=kept_in).started()
    assert stat.S_IMODE(kept_in.stat().st_mode) == 0o600
    host.problem = FetchFailed("down")
    clock.at += 100
    source = Source(host, clock, kept_in=kept_in)
    assert source.knows(), "fresh still"
    source.run()
    assert source.knows()
    clock.at += 300
    source = Source(host, clock, kept_in=kept_in)
    assert not source.knows(), "stale: the host is asked first"
    source.run()
    assert source.knows(), "and it does not answer"
    source.live(3_600 - 100 - 1)
    assert source.knows()
    source.live(1)
    assert not source.knows()


def test_when_the_host_answers_the_copy_on_disk_is_news_of_yesterday(
    host: Host, clock: FakeClock, tmp_path: Path
) -> None:
    Source(host, clock, kept_in=tmp_path / "jwks.json").started()
    host.body = _jwks(NEXT)
    clock.at += 301
    source = Source(host, clock, kept_in=tmp_path / "jwks.json").started()
    assert (source.knows(KID), source.knows(NEXT_KID)) == (False, True)


@pytest.mark.parametrize("how", ["cut", "empty", "another issuer", "the future", "no JSON", "a folder", "no keys"])
def test_a_copy_that_cannot_be_used_is_said_aloud_and_stops_nothing(
    host: Host, clock: FakeClock, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept_in = tmp_path / "jwks.json"
    Source(host, clock, kept_in=kept_in).started()
    document = json.loads(kept_in.read_bytes())
    if how == "cut":
        kept_in.write_bytes(kept_in.read_bytes()[:100])
    elif how == "empty":
        kept_in.write_bytes(b"")
    elif how == "another issuer":
        kept_in.write_text(json.dumps(document | {"source": "https://evil.example"}))
    elif how == "the future":
        kept_in.write_text(json.dumps(document | {"fetched_at": NOW + 61}))
    elif how == "no JSON":
        kept_in.write_bytes(b"\x00\xff")
    elif how == "no keys":
        kept_in.write_text(json.dumps(document | {"jwks": '{"keys": []}'}))
    else:
        kept_in.unlink()
        kept_in.mkdir()
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        source = Source(host, clock, kept_in=kept_in)
        assert not source.knows()
    assert ["cannot be used" in record.getMessage() for record in caplog.records] == [True]
    source.run()
    assert source.knows()


def test_a_copy_that_cannot_be_written_is_said_aloud_and_stops_nothing(
    host: Host, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "authsvc.verifier"):
        source = Source(host, clock, kept_in=tmp_path / "no" / "such" / "folder").started()
    assert source.knows()
    assert ["cannot be kept" in record.getMessage() for record in caplog.records] == [True]


# ---- its own end, and the child of a fork -------------------------------------------------------


def test_what_is_closed_fetches_no_more_and_says_so(source: Source, host: Host) -> None:
    source.started()
    source.keys.close()
    assert host.closed == 1
    assert source.knows()
    with pytest.raises(KeysUnavailable, match="closed"):
        source.ask()
    source.threads[0]()  # it ends


def test_who_asked_before_it_was_closed_is_told_so(source: Source) -> None:
    source.started()
    source.live(1)
    asked = source.ask()
    source.keys.close()
    with pytest.raises(KeysUnavailable, match="closed"):
        asked.answer.result(0)


def test_what_was_closed_before_a_fork_is_closed_in_the_child(source: Source, host: Host) -> None:
    source.started()
    source.keys.close()
    source.keys._begin_anew()
    assert source.knows()
    with pytest.raises(KeysUnavailable, match="closed"):
        source.ask()


def test_the_child_of_a_fork_keeps_the_keys_and_has_a_thread_and_connections_of_its_own(
    host: Host, clock: FakeClock
) -> None:
    made: list[Host] = []

    def new_fetcher() -> Host:
        made.append(host)
        return host

    threads: list[Callable[[], None]] = []
    keys = RemoteKeys(URL, clock=clock, new_fetcher=new_fetcher, start_thread=threads.append)
    keys.find(KID, now=NOW)
    keys.fetch()
    with keys._changed:  # as a thread of the parent may hold it in the moment of the fork
        keys._under_way = _ask(keys).answer
        keys._begin_anew()
    assert keys.find(KID, now=NOW) is not None
    assert (len(made), len(threads)) == (2, 2)
    asked = _ask(keys)
    keys.fetch()
    assert _answered(asked)


def test_a_verifier_over_it_tells_the_three_outcomes_apart(source: Source, host: Host, clock: FakeClock) -> None:
    token = sign_token(CLAIMS, NEXT.signing_key(now=NOW), typ="at+jwt")
    verifier = Verifier(source.keys, POLICY, clock=clock)
    source.started()
    ask = source.keys.ask

    def asked(*, issued_at: int) -> Asked | None:
        answer = ask(issued_at=issued_at)
        source.run()
        return answer

    source.keys.ask = asked  # type: ignore[method-assign]
    with pytest.raises(TokenInvalid):
        verifier.verify(token)
    with pytest.raises(KeysUnavailable) as undecided:
        verifier.verify(token)
    assert undecided.value.retry_after_s == 30
    host.body = _jwks(NEXT)
    clock.at += 30
    assert verifier.verify(token) == CLAIMS


# ---- what must not stop it ----------------------------------------------------------------------


def test_a_thread_that_cannot_be_had_is_no_verdict_and_is_tried_for_again(host: Host, clock: FakeClock) -> None:
    threads: list[Callable[[], None]] = []

    def start(run: Callable[[], None]) -> None:
        if not threads:
            threads.append(run)
            raise RuntimeError("can't start new thread")
        threads.append(run)

    keys = RemoteKeys(URL, clock=clock, new_fetcher=lambda: host, start_thread=start)
    with pytest.raises(KeysUnavailable, match="thread"):
        keys.find(KID, now=NOW)
    assert keys.find(KID, now=NOW) is None
    assert len(threads) == 2


def test_a_log_that_fails_stops_no_answer_and_no_thread(source: Source, host: Host, clock: FakeClock) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise KeyError("a fault of somebody else")

    broken = Broken()
    logger = logging.getLogger("authsvc.verifier")
    host.problem = FetchFailed("down")
    logger.addFilter(broken)
    try:
        asked = source.ask()
        source.run()
        assert isinstance(asked.answer.exception(0), KeysUnavailable)
        source.keys._say = lambda *_, **__: 1 / 0  # type: ignore[method-assign, assignment]
        source.keys._left_s = lambda: (source.keys.close(), -1.0)[1]  # type: ignore[method-assign, func-returns-value]
        source.threads[0]()  # it goes on to its end
    finally:
        logger.removeFilter(broken)


def test_nothing_is_logged_while_others_are_locked_out(
    source: Source, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    class Watching(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            free = source.keys._changed._is_owned()  # type: ignore[attr-defined]
            seen.append(not free)

    watching = Watching()
    logger = logging.getLogger("authsvc.verifier")
    logger.addHandler(watching)
    try:
        host.problem = FetchFailed("down")
        source.started()
        host.problem = None
        source.live(10)
    finally:
        logger.removeHandler(watching)
    assert len(seen) == 2
    assert all(seen)


def test_keys_that_nobody_has_any_more_are_freed_and_their_thread_ends(host: Host, clock: FakeClock) -> None:
    threads: list[Callable[[], None]] = []
    keys = RemoteKeys(URL, clock=clock, new_fetcher=lambda: host, start_thread=threads.append)
    keys.find(KID, now=NOW)
    gone = weakref.ref(keys)
    del keys
    gc.collect()
    assert gone() is None
    assert host.closed == 1
    threads[0]()


def test_an_etag_is_not_sent_again_after_a_failure_nor_to_another_url(source: Source, host: Host) -> None:
    """It may be what the host does not like; and of another URL it would vouch for other keys."""
    source.started()
    host.problem = FetchFailed("431")
    source.live(240)
    host.problem = None
    source.live(1)
    assert [etag for _, etag in host.asked] == [None, '"1"', None]
    source.keys._url = f"{ISSUER}/elsewhere"
    source.live(240)
    assert host.asked[-1] == (f"{ISSUER}/elsewhere", None)


def test_metadata_and_keys_share_one_deadline(clock: FakeClock) -> None:
    issuer = Issuer()

    def takes_two_seconds() -> None:
        clock.at += 2

    issuer.takes = takes_two_seconds
    Source(issuer, clock, of=IssuerKeys, timeout_s=3).started()
    assert issuer.within_s == [1.0]


def test_known_keys_serve_on_while_their_refresh_takes_longer_than_they_are_fresh(
    source: Source, host: Host, clock: FakeClock
) -> None:
    host.fresh_s = 30
    source.started()
    known: list[bool] = []

    def slow() -> None:
        clock.at += 7
        known.append(source.knows())

    source.keys._timeout_s = 8
    host.meanwhile = slow
    source.live(24)
    assert known == [True]


@pytest.mark.parametrize(
    "how",
    ["open to others", "a link", "fresh for ever", "of a year ago", "of the beginning of all time", "no number"],
)
def test_a_copy_on_disk_that_others_may_have_written_or_that_makes_no_sense_is_not_trusted(
    host: Host, clock: FakeClock, tmp_path: Path, how: str
) -> None:
    kept_in = tmp_path / "jwks.json"
    Source(host, clock, kept_in=kept_in).started()
    document = json.loads(kept_in.read_bytes())
    if how == "open to others":
        kept_in.chmod(0o666)
    elif how == "a link":
        kept_in.rename(tmp_path / "elsewhere")
        kept_in.symlink_to(tmp_path / "elsewhere")
    elif how == "fresh for ever":
        kept_in.write_text(json.dumps(document | {"fresh_s": 10**9}))
    elif how == "of the beginning of all time":
        kept_in.write_text(json.dumps(document).replace(f'"fetched_at": {NOW}', '"fetched_at": -1' + "0" * 400))
    elif how == "of a year ago":
        kept_in.write_text(json.dumps(document | {"fetched_at": NOW - 365 * 86_400}))
    else:
        kept_in.write_text(json.dumps(document).replace('"fresh_s": 300', '"fresh_s": 1e999'))
    host.problem = FetchFailed("down")
    source = Source(host, clock, kept_in=kept_in).started()
    assert not source.knows()


# ---- what an answer is worth --------------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"keys": []}', b"<html>back soon</html>"])
def test_an_answer_that_is_none_does_not_come_back_as_a_304_that_vouches_for_the_keys_at_hand(
    source: Source, host: Host, body: bytes
) -> None:
    source.started()
    host.body, host.etag = body, '"maintenance"'
    source.live(240)
    assert host.asked[-1][1] == '"1"'
    source.live(4_000)
    assert {etag for _, etag in host.asked[2:]} == {None}
    assert not source.knows()


def test_one_mangled_answer_does_not_cut_off_from_a_host_that_is_well_again(source: Source, host: Host) -> None:
    host.body = b"{"
    source.started()
    host.body = _jwks()
    source.live(1)
    assert source.knows()


@pytest.mark.parametrize(("older_s", "is_settled"), [(186, True), (185, False), (0, False), (-60, False)])
def test_a_token_issued_long_before_the_keys_at_hand_were_asked_for_is_settled_by_them(
    source: Source, host: Host, clock: FakeClock, older_s: int, is_settled: bool
) -> None:
    """Its key would be among them, so it was withdrawn, or never there: nobody has to be asked, nobody to wait."""
    host.date, host.age_s = NOW - 20, 20
    source.started()
    assert (source.keys.ask(issued_at=NOW - 20 - older_s) is None) is is_settled


def test_keys_that_cannot_be_relied_upon_settle_nothing(source: Source, clock: FakeClock) -> None:
    source.started()
    clock.at += 300
    assert source.keys.ask(issued_at=NOW - 1_000) is not None


def test_a_304_that_does_not_repeat_the_etag_leaves_it_as_it_is(source: Source, host: Host) -> None:
    source.started()
    host.body = host.etag = None
    source.live(480)
    assert [etag for _, etag in host.asked] == [None, '"1"', '"1"']


def test_a_304_vouches_for_the_keys_at_hand_anew(source: Source, host: Host) -> None:
    source.started()
    host.body = None
    source.live(240)
    assert source.keys.ask(issued_at=NOW + 240 - 186) is None


def test_after_a_revocation_most_of_its_users_are_told_to_log_in_again_at_once(
    source: Source, host: Host, clock: FakeClock
) -> None:
    source.started()
    verifier = Verifier(source.keys, POLICY, clock=clock)
    tokens = [
        sign_token(replace(CLAIMS, issued_at=NOW - age_s, openid=f"o{age_s}"), RING.signing_key(now=NOW), typ="at+jwt")
        for age_s in range(0, 7_000, 70)
    ]
    assert {_said(verifier, token) for token in tokens} == {"ok"}
    host.body, host.etag = _jwks(NEXT), '"2"'
    source.live(240)
    said = Counter(_said(verifier, token) for token in tokens)
    assert said == {"invalid": 100}


def _said(verifier: Verifier, token: str) -> str:
    try:
        verifier.verify(token)
    except (TokenInvalid, KeysUnavailable) as error:
        return error.code
    return "ok"


def test_the_disk_and_the_log_come_after_the_answer(
    host: Host, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(host, clock, kept_in=tmp_path / "jwks.json")
    asked = source.ask()
    host.date = NOW - 1_000  # which is said
    seen: list[bool] = []
    monkeypatch.setattr("authsvc.verifier.remote.durable.replace", lambda *_, **__: seen.append(asked.answer.done()))
    monkeypatch.setattr(source.keys._loud, "say", lambda *_, **__: seen.append(asked.answer.done()))
    source.run()
    assert seen == [True, True]


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": math.inf},
        {"cool_down_s": math.nan},
        {"cool_down_s": -1},
        {"max_stale_s": math.inf},
    ],
)
def test_seconds_that_are_none_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="number of seconds"):
        RemoteKeys(URL, **options)


def test_the_thread_ends_also_when_it_held_the_keys_last(host: Host, clock: FakeClock) -> None:
    threads: list[Callable[[], None]] = []
    held = [RemoteKeys(URL, clock=clock, new_fetcher=lambda: host, start_thread=threads.append)]
    held[0].find(KID, now=NOW)
    held[0].fetch()
    left_s = held[0]._left_s
    held[0]._left_s = lambda: (held.clear(), 1_000.0)[1]  # type: ignore[method-assign, func-returns-value]
    del left_s
    threads[0]()
    assert host.closed == 1
