"""The bodies of requests: read with a time and a size, while no thread waits for any of them."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from threading import Lock
from typing import Any, Final

from werkzeug.exceptions import RequestTimeout

from authsvc.errors import BadRequest, Overloaded
from authsvc.http.rsgi import Exchange, FutureBody

Body = io.RawIOBase | io.BytesIO

SenderOf = Callable[[Mapping[str, str]], Hashable | None]
"""Who has proved in the headers, named as in a WSGI environ, that a long body is his; None for everybody else."""

WITHIN_S: Final = 30.0
"""From the headers to the end of the body: 256 KiB in that time are 70 kbit/s."""
AT_END_WITHIN_S: Final = 4.0
"""From `leave` to the end of a body under way. What is left until the worker is killed is for the login."""
MOST_HELD_BYTES: Final = 33_554_432
"""How much one worker holds until requests are whole: so much of long headers, so much of long bodies of known senders,
so much of those of others. Short ones are bounded by the number of connections.
"""
MOST_OF_A_SENDER_BYTES: Final = 1_048_576
"""Of long bodies: nobody takes the room of all."""
SHORT_BYTES: Final = 4_096

_HEADERS: Final = "headers"
_OF_SENDERS: Final = "bodies of senders"
_OF_OTHERS: Final = "bodies of others"
_ROOMS: Final = (_HEADERS, _OF_SENDERS, _OF_OTHERS)
_MOST_DIGITS: Final = 20
_CUT_SHORT: Final = "the body was cut short"
_LOOK_EVERY_S: Final = 0.25  # at the time: so much more a body may take


class Bodies:
    """Those of one worker process. Safe for two threads, the one that requests come from and that of the loop."""

    def __init__(
        self,
        longest: Callable[[str], int],
        *,
        sender_of: SenderOf,
        within_s: float,
        at_end_within_s: float,
        most_held: int,
        most_of_a_sender: int,
    ) -> None:
        """`longest`: how many bytes a path takes. More are not read, and whoever gets the body has to refuse it."""
        self._longest = longest
        self._sender_of = sender_of
        self._within_s = within_s
        self._at_end_within_s = at_end_within_s
        self._most_held = most_held
        self._most_of_a_sender = most_of_a_sender
        self._lock = Lock()
        self._held: Counter[Hashable] = Counter()  # bytes, by what they are part of
        self._readings: set[_Reading] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` is to run in another thread than the one that calls `read`."""
        self._loop = loop
        loop.call_soon_threadsafe(self._look_at_the_time)

    def leave(self) -> None:
        """From now on bodies have little time, also those that are under way. In the thread of the loop.

        One slow client would have the worker killed, and with it the login of another that had just begun.
        """
        assert self._loop is not None
        self._within_s = min(self._within_s, self._at_end_within_s)
        until = self._loop.time() + self._within_s
        with self._lock:
            for reading in self._readings:
                reading.ends_at = min(reading.ends_at, until)

    def read(self, path: str, headers: Mapping[str, str], exchange: Exchange, then: Callable[[Body], None]) -> None:
        """Call `then` with the body, once, in whichever thread, when all of it is there: or one that raises an error
        when it is read, for whoever reads it. `headers` are named as in a WSGI environ. Waits for nothing.
        """
        assert self._loop is not None
        most = self._longest(path)
        # The server lets digits pass alone, and no number beyond 64 bits: what is longer has zeros before it. Python
        # reads no more than 4,300 digits.
        length = int(headers.get("HTTP_CONTENT_LENGTH", str(most))[-_MOST_DIGITS:])
        if length > most:
            then(io.BytesIO())  # the app sees its length, and does not read it
            return
        reading = _Reading(self._loop.time() + self._within_s, self._holds(headers, length), then)
        with self._lock:
            is_room = all(self._held[what] + size <= self._most(what) for what, size in reading.holds.items())
            if is_room:
                self._held.update(reading.holds)
                self._readings.add(reading)
        if not is_room:
            then(Unreadable(Overloaded("too many long requests are under way")))
        elif "HTTP_CONTENT_LENGTH" in headers:
            self._read_known_length(reading, exchange)
        else:
            self._loop.call_soon_threadsafe(self._read_chunks, reading, exchange, most)

    def _holds(self, headers: Mapping[str, str], length: int) -> dict[Hashable, int]:
        found: dict[Hashable, int] = {}
        # 8,192 connections with 60 KB of headers, each there twice, are more than a GB.
        head = sum(map(len, headers)) + sum(map(len, headers.values()))
        if head > SHORT_BYTES:
            found[_HEADERS] = head
        if length > SHORT_BYTES:
            sender = self._sender_of(headers)
            # Who lets bodies begin and never end keeps those out of whom as little is known, and nobody else.
            found |= {_OF_OTHERS: length} if sender is None else {_OF_SENDERS: length, sender: length}
        return found

    def _most(self, what: Hashable) -> int:
        return self._most_held if what in _ROOMS else self._most_of_a_sender

    def _read_known_length(self, reading: _Reading, exchange: Exchange) -> None:
        try:
            future = exchange()
        except RuntimeError:
            self._end(reading, Unreadable(BadRequest(_CUT_SHORT)))
            return
        reading.cancel = future.cancel
        future.add_done_callback(WhenThere(lambda body: self._end_with(reading, body)), context=None)

    def _read_chunks(self, reading: _Reading, exchange: Exchange, most: int) -> None:
        if reading not in self._readings:
            return  # so late already
        task = asyncio.ensure_future(_all_chunks(exchange, most=most))
        reading.cancel = task.cancel  # also keeps the task alive, which the loop does not
        task.add_done_callback(lambda body: self._end_with(reading, body))

    def _look_at_the_time(self) -> None:
        assert self._loop is not None
        # First: whatever goes wrong with one of them, the others have an end.
        self._loop.call_later(_LOOK_EVERY_S, self._look_at_the_time)
        now = self._loop.time()
        with self._lock:
            late = [reading for reading in self._readings if reading.ends_at <= now]
        for reading in late:
            cancel = reading.cancel
            if self._is_first_to_end(reading):
                cancel()
                reading.then(Unreadable(RequestTimeout()))

    def _end_with(self, reading: _Reading, body: FutureBody | asyncio.Task[bytes]) -> None:
        if not body.cancelled():  # whose result is a CancelledError, which is no Exception
            self._end(reading, _outcome(body.result))

    def _end(self, reading: _Reading, body: Body) -> None:
        if self._is_first_to_end(reading):
            reading.then(body)

    def _is_first_to_end(self, reading: _Reading) -> bool:
        """What comes at the last moment is there and late at once, in two threads."""
        with self._lock:
            if reading not in self._readings:
                return False
            self._readings.remove(reading)
            self._held.subtract(reading.holds)
            for what in reading.holds:
                if not self._held[what]:
                    del self._held[what]  # senders come and go
        # granian's future holds what holds the reading, out of sight of the garbage collector.
        reading.cancel = bool
        return True


class WhenThere:
    """What is to be done when a body is there, at once and wherever that is known (see `worker.Loop`)."""

    __slots__ = ("_do",)

    def __init__(self, do: Callable[[FutureBody], object]) -> None:
        self._do = do

    def __call__(self, body: FutureBody) -> None:
        self._do(body)


class Unreadable(io.RawIOBase):
    """A body that is not there: whoever reads it gets the error, and whoever refuses the request before does not."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: Any) -> int:
        raise self._error


class _Reading:
    """A body under way."""

    __slots__ = ("cancel", "ends_at", "holds", "then")

    def __init__(self, ends_at: float, holds: dict[Hashable, int], then: Callable[[Body], None]) -> None:
        self.ends_at = ends_at  # by the clock of the loop
        self.holds = holds  # bytes, by what they are part of
        self.then = then
        self.cancel: Callable[[], object] = bool


def _outcome(body: Callable[[], bytes]) -> Body:
    try:
        return io.BytesIO(body())
    except Exception as error:  # noqa: BLE001 - it is for the thread that reads the body
        # granian's future holds the error, which holds this frame, which holds the future.
        error.__traceback__ = None
        # Its RSGIProtocolClosed is a RuntimeError: the client went away.
        return Unreadable(BadRequest(_CUT_SHORT) if isinstance(error, RuntimeError) else error)


async def _all_chunks(exchange: Exchange, *, most: int) -> bytes:
    """A body that does not say how long it is, or a little more than `most` of it.

    Raises: BadRequest if it does not come to its end.
    """
    found = bytearray()
    is_over = False
    async for chunk in exchange:
        # granian ends each with an empty one. Where the client went away, or wrote what is no chunk, that is not said
        # otherwise than by an empty one more (RFC 9112, 8); trailers, which nobody here reads, look the same.
        if is_over:
            raise BadRequest(f"{_CUT_SHORT}, or has trailers")
        is_over = not chunk
        found += chunk
        if len(found) > most:
            break
    return bytes(found)
