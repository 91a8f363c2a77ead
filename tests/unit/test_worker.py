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


def _run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


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

_TOLD_TO_END_AT_ONCE = """
import os, signal, time
# Called before a worker's own: the time that a new process may take to its first step.
os.register_at_fork(after_in_child=lambda: time.sleep(0.5))
from authsvc.http.worker import END, expect_workers
expect_workers()
os.kill(os.getpid(), END)
if not (worker := os.fork()):
    time.sleep(5)
    os._exit(0)
os.kill(worker, END)
print(signal.Signals(os.WTERMSIG(os.waitpid(worker, 0)[1])) is END)
"""


def test_a_worker_that_is_told_to_end_before_it_has_begun_ends_and_the_main_process_does_not() -> None:
    done = _run(_TOLD_TO_END_AT_ONCE)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_a_worker_whose_main_process_was_killed_at_once_does_not_begin() -> None:
    done = _run(_ORPHAN)
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
