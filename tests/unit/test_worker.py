"""A worker before it serves, and its event loop: what that is told of by granian's thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any, cast

from authsvc.http.bodies import WhenThere
from authsvc.http.rsgi import FutureBody
from authsvc.http.worker import Loop

SOON_S = 10

_ORPHAN = """
import os, time
from authsvc.http.worker import begin
main = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == main:
    time.sleep(0.01)
begin(main=main)
print("it begins")
"""


def test_a_worker_whose_main_process_was_killed_at_once_does_not_begin() -> None:
    done = subprocess.run([sys.executable, "-c", _ORPHAN], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("", "")


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
