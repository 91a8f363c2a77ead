"""Login codes in this process: each is exchanged by one request, and not again once it has been used."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from authsvc.errors import AuthsvcError, CodeUsed, WeChatTimeout

# A code ends after five minutes (wx.login); from then on WeChat's own answer says so.
REMEMBERED_S: Final = 300
_MOST_REMEMBERED: Final = 20_000

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class LoginCode:
    """A code, for the app that it is said to be of. What is remembered of it is a digest."""

    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, appid: str, code: str) -> LoginCode:
        return cls(hashlib.sha256(f"{len(appid)} {appid} {code}".encode()).digest())


class Codes(Generic[_Answer]):
    """Which codes are being exchanged, with what answer, and which have been. Thread-safe.

    A double tap, or a proxy that sends a request again, would lose against itself otherwise: WeChat takes a code once.
    Best effort: another process does not know, and WeChat tells it.
    """

    def __init__(self, *, wait_s: float, monotonic: Callable[[], float]) -> None:
        """`wait_s`: how long the second of two requests waits for the answer to the first."""
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._running: dict[LoginCode, _Exchange[_Answer]] = {}
        self._used: OrderedDict[LoginCode, float] = OrderedDict()  # until when; the oldest first

    def once(self, code: LoginCode, client: str, exchange: Callable[[], _Answer]) -> _Answer:
        """What `exchange` gives, or fails with; for a request of the same client that comes meanwhile, the same.

        `client` is its address: who has got hold of another's code does not get that one's token too.
        Raises: CodeUsed for a code of another client that is under way, or one that was used; WeChatTimeout.
        """
        with self._lock:
            other = self._running.get(code)
            if other is None:
                self._refuse_used(code)
                mine: _Exchange[_Answer] = _Exchange(client)
                self._running[code] = mine
            elif other.client != client:
                raise CodeUsed("the code is being used by another client; call wx.login again")
        if other is not None:
            try:
                return other.answer.result(self._wait_s)
            except NotInTime:
                raise WeChatTimeout("the same code is under way and has no answer yet") from None
            except AuthsvcError as error:
                # One object in many threads would gather the tracebacks of them all.
                raise copy.copy(error).with_traceback(None) from None
        try:
            answer = exchange()
        except BaseException as error:
            mine.answer.set_exception(error)
            raise
        else:
            mine.answer.set_result(answer)
            return answer
        finally:
            # Only now: who comes before it finds the answer, who comes after it what is remembered.
            with self._lock:
                del self._running[code]
            del mine  # or a failed one would hold itself, by way of the traceback, until the garbage collector comes

    def note_used(self, code: LoginCode) -> None:
        """WeChat has taken it."""
        now = self._monotonic()
        with self._lock:
            self._used[code] = now + REMEMBERED_S
            self._used.move_to_end(code)
            while len(self._used) > _MOST_REMEMBERED or next(iter(self._used.values())) <= now:
                self._used.popitem(last=False)

    def _refuse_used(self, code: LoginCode) -> None:
        if self._used.get(code, 0.0) > self._monotonic():
            raise CodeUsed("the code has been used; call wx.login again")


@dataclass(frozen=True, slots=True)
class _Exchange(Generic[_Answer]):
    client: str
    answer: Future[_Answer] = field(default_factory=Future, repr=False)
