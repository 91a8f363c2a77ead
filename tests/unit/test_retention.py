"""The purge: when, how much at once, by whom."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from authsvc.errors import StoreUnavailable
from authsvc.retention import PURGE_EVERY_S, Purger, purge
from authsvc.store.memory import MemoryStore
from authsvc.store.rows import LoginRow
from tests.support.clock import NOW as CLOCK_NOW
from tests.support.clock import FakeClock
from tests.support.users import login, rows_of


def filled(count: int, *, ends_at: int) -> MemoryStore:
    store = MemoryStore()
    for n in range(count):
        store.put_login(login("s1", openid=f"oUser{n}", at=ends_at - 10, ttl_s=10), unionid=None)
    return store


def purger(store: MemoryStore, clock: FakeClock, sleep: Callable[[float], None] = lambda _: None) -> Purger:
    numbers = itertools.count()
    return Purger(store, clock=clock, random_bytes=lambda n: next(numbers).to_bytes(n, "big"), sleep=sleep)


def test_all_that_is_over_goes_in_batches_with_pauses_between() -> None:
    pauses: list[float] = []
    store = filled(1_100, ends_at=CLOCK_NOW)
    batches: list[int] = []
    take = store.purge
    store.purge = lambda *, now, at_most: batches.append(took := take(now=now, at_most=at_most)) or took  # type: ignore[method-assign, func-returns-value]
    assert purge(store, now=CLOCK_NOW, sleep=pauses.append) == 1_100
    assert batches == [500, 500, 100, 0]
    assert len(pauses) == 3
    assert min(pauses) > 0


def test_what_has_a_second_to_live_stays() -> None:
    store = filled(3, ends_at=CLOCK_NOW + 1)
    assert purge(store, now=CLOCK_NOW, sleep=lambda _: None) == 0
    assert len(rows_of(store, LoginRow)) == 3


def test_of_several_workers_one_purges_in_a_minute() -> None:
    clock = FakeClock()
    store = filled(2, ends_at=clock.now())
    workers = [purger(store, clock) for _ in range(3)]
    with capture_logs() as said:
        for worker in workers:
            worker.look()
    assert [line["event"] for line in said] == ["store_purged"]
    assert said[0]["rows"] == 2
    store.put_login(login("s1", at=clock.now() - 10, ttl_s=10), unionid=None)
    workers[1].look()
    assert len(rows_of(store, LoginRow)) == 1, "not again in the same minute"
    clock.at += PURGE_EVERY_S
    with capture_logs() as said:
        workers[2].look()
    assert [line["event"] for line in said] == ["store_purged"]


def test_a_purge_of_nothing_says_nothing() -> None:
    with capture_logs() as said:
        purger(MemoryStore(), FakeClock()).look()
    assert said == []


@pytest.mark.parametrize("method", ["share_first", "purge"])
def test_a_store_that_does_not_answer_is_said_and_tried_again(method: str) -> None:
    clock = FakeClock()
    store = filled(1, ends_at=clock.now())

    def fail(*_args: object, **_kwargs: object) -> None:
        raise StoreUnavailable("gone")

    works = getattr(store, method)
    setattr(store, method, fail)
    worker = purger(store, clock)
    with capture_logs() as said:
        worker.look()
    assert [(line["event"], line["problem"]) for line in said] == [("store_not_purged", "gone")]
    setattr(store, method, works)
    clock.at += PURGE_EVERY_S
    worker.look()
    assert rows_of(store, LoginRow) == []
