"""The time that bodies have, by a clock that stands still between two looks at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from werkzeug.exceptions import RequestTimeout

from authsvc.http.bodies import Bodies, Body
from authsvc.http.rsgi import Exchange

HEADERS = {"HTTP_CONTENT_LENGTH": "5"}


class ClockLoop:
    """An event loop whose time is told to it."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._later: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self._now

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        callback()

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> None:
        self._later.append((self._now + delay_s, callback))

    def pass_s(self, seconds: float) -> None:
        ends_at = self._now + seconds
        while due := [each for each in self._later if each[0] <= ends_at]:
            first = min(due, key=lambda each: each[0])
            self._later.remove(first)
            self._now = first[0]
            first[1]()
        self._now = ends_at


class Never:
    """A body that does not come."""

    def __call__(self) -> Never:
        return self

    def add_done_callback(self, callback: Callable[..., object], *, context: None) -> None: ...

    def cancel(self) -> bool:
        return True


class Reader:
    def __init__(self) -> None:
        self.loop = ClockLoop()
        self._bodies = Bodies(
            lambda _path: 100,
            sender_of=lambda _headers: None,
            within_s=30,
            at_end_within_s=4,
            most_held=0,
            most_of_a_sender=0,
        )
        self._bodies.begin(cast(Any, self.loop))
        self.leave = self._bodies.leave

    def begin(self, then: Callable[[Body], None] | None = None) -> list[Body]:
        """What is handed over, once it is."""
        found: list[Body] = []
        self._bodies.read("/login", HEADERS, cast(Exchange, Never()), then or found.append)
        return found


def is_late(found: list[Body]) -> bool:
    for body in found:
        with pytest.raises(RequestTimeout):
            body.read()
    return bool(found)


def ends_in(found: list[Body], seconds: float, loop: ClockLoop) -> bool:
    """In so many seconds from now, within half a second."""
    loop.pass_s(seconds - 0.5)
    was_late = is_late(found)
    loop.pass_s(1)
    return is_late(found) and not was_late


def test_a_body_has_thirty_seconds_and_no_more() -> None:
    it = Reader()
    assert ends_in(it.begin(), 30, it.loop)


def test_a_body_that_is_late_is_handed_over_once() -> None:
    it = Reader()
    body = it.begin()
    it.loop.pass_s(100)
    assert len(body) == 1


def test_a_body_that_has_long_has_four_seconds_once_the_worker_leaves() -> None:
    it = Reader()
    body = it.begin()
    it.loop.pass_s(10)
    it.leave()
    assert ends_in(body, 4, it.loop)


def test_a_body_that_is_nearly_out_of_time_does_not_get_more_when_the_worker_leaves() -> None:
    it = Reader()
    body = it.begin()
    it.loop.pass_s(28)
    it.leave()
    assert ends_in(body, 2, it.loop)


def test_a_body_that_begins_once_the_worker_leaves_has_four_seconds() -> None:
    it = Reader()
    it.leave()
    assert ends_in(it.begin(), 4, it.loop)


def test_a_fault_with_one_late_body_does_not_give_the_others_all_time() -> None:
    def fail(_body: Body) -> None:
        raise ZeroDivisionError

    it = Reader()
    it.begin(then=fail)
    with pytest.raises(ZeroDivisionError):
        it.loop.pass_s(31)
    assert ends_in(it.begin(), 30, it.loop)
