"""Which thread of a worker runs first: what each asks of Linux, and that it asks for itself alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from authsvc.http.gateway import Gateway
from authsvc.http.turns import come_first, come_last, let_others_finish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sched(7) is Linux's")


def standing() -> tuple[int, int]:
    """Of the thread that asks."""
    return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)


def after(*asked: Callable[[], None]) -> tuple[int, int]:
    """The standing of a new thread that asked for all of these."""
    with ThreadPoolExecutor(1) as pool:
        for each in asked:
            pool.submit(each).result()
        return pool.submit(standing).result()


def test_a_thread_that_lets_others_finish_interrupts_nobody_and_keeps_its_share() -> None:
    assert after(let_others_finish) == (os.SCHED_BATCH, standing()[1])


def test_a_thread_that_comes_first_is_as_every_thread_is() -> None:
    assert after(let_others_finish, come_first) == (os.SCHED_OTHER, standing()[1])


def test_a_thread_that_comes_last_interrupts_nobody_and_gets_a_fifth_of_the_share_of_others() -> None:
    assert after(come_last) == (os.SCHED_BATCH, min(19, standing()[1] + 7))


def test_a_thread_that_comes_last_leaves_the_others_of_its_process_as_they_were() -> None:
    before = standing()
    after(come_last)
    assert standing() == before


def test_a_thread_goes_on_where_the_system_forbids_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_of_call: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    monkeypatch.setattr(os, "setpriority", forbidden)
    assert after(let_others_finish, come_first, come_last) == standing()


def test_the_threads_that_the_app_runs_in_come_after_the_one_that_takes_requests() -> None:
    def app(_environ: dict[str, Any], _start_response: Callable[..., Any]) -> list[bytes]:
        raise AssertionError("nobody asks it")

    taker = standing()
    it = Gateway(app, threads=2, longest_body=lambda _path: 100)
    assert {it._threads.submit(standing).result() for _ in range(4)} == {(os.SCHED_BATCH, min(19, taker[1] + 7))}
