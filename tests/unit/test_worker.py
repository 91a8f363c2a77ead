"""The event loop of a worker: what it is told of by granian's thread."""

from __future__ import annotations

import threading
from typing import Any, cast

from authsvc.http.bodies import WhenThere
from authsvc.http.rsgi import FutureBody
from authsvc.http.worker import Loop

SOON_S = 10


def test_a_body_that_is_there_is_handed_on_in_the_thread_that_knows_of_it() -> None:
    loop, seen = Loop(), []
    body = cast(FutureBody, object())
    loop.call_soon_threadsafe(WhenThere(lambda it: seen.append((it, threading.get_ident()))), body, context=None)
    loop.close()
    assert seen == [(body, threading.get_ident())]


def test_all_else_is_done_in_the_thread_of_the_loop() -> None:
    loop, seen = Loop(), []
    is_done = threading.Event()

    def do(what: Any) -> None:
        seen.append((what, threading.get_ident()))
        is_done.set()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.call_soon_threadsafe(do, "a signal")
    assert is_done.wait(SOON_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(SOON_S)
    loop.close()
    assert seen == [("a signal", thread.ident)]
