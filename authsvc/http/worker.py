"""What a worker process of the HTTP server runs: granian's HTTP, and the gateway behind it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextvars import Context
from functools import cache, partial
from threading import get_ident
from typing import Any, Final

from granian._granian import CallbackScheduler, RSGIWorker, WorkerSignal
from granian.http import HTTP1Settings
from granian.server.mp import WorkerProcess

from authsvc.http.bodies import WhenThere
from authsvc.http.gateway import Gateway
from authsvc.http.turns import come_first, let_others_finish

MOST_CONNECTIONS: Final = 8_192
"""Of one worker, idle ones among them. Those beyond wait in the queue of its listening socket."""
LEAVE: Final = signal.SIGUSR1
"""To a worker: tell everybody to close the connection (see Gateway.leave)."""
END: Final = signal.SIGUSR2
"""To a worker: stop listening, answer what was accepted, end. Ends it at once while it cannot answer yet."""

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def expect_workers() -> None:
    """In the main process, before it makes the first one."""
    # Who rotates logs sends one of them: not to be the end of the service.
    for number in (LEAVE, END):
        signal.signal(number, signal.SIG_IGN)
    # Whoever is told to end before it has begun learns of it then: one that is blocked is kept, also if it is ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, {END})
    os.register_at_fork(after_in_child=partial(begin, main=os.getpid()))


def begin(*, main: int) -> None:
    """The first thing in a new worker process. `main` is the process that it works for."""
    # What a terminal or a supervisor sends to the whole group is for the main process: it ends the workers, one step
    # after the other, with a signal of their own.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, LEAVE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(END, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {END})
    signal.set_wakeup_fd(-1)
    let_others_finish()
    if sys.platform == "linux":
        # If the main process is killed, nobody would be left to stop this one, and it would keep the port.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, END)
    if os.getppid() != main:  # killed before that was said
        os._exit(1)


@WorkerProcess.wrap_target  # type: ignore[untyped-decorator]
def work(
    worker_id: int,
    gateway: Gateway,
    sock: Any,
    ipc: Any,
    granians_loop: asyncio.AbstractEventLoop,
    _runtime_mode: Any,
    threads: int,
    io_threads: int,
    py_threads: int,
    py_threads_idle_s: int,
    most_connections: int,
    _task_impl: Any,
    http_mode: Any,
    http1: HTTP1Settings,
    http2: Any,
    websockets: bool,
    static_path: Any,
    _log_format: Any,
    tls: tuple[Any, ...],
    _scope_options: Any,
    metrics: Any,
) -> None:
    """Serve until END, and until what was accepted is answered.

    In place of granian's own function for RSGI; the order of the arguments is granian's.
    """
    granians_loop.close()
    loop = Loop()
    asyncio.set_event_loop(loop)
    stop = WorkerSignal()
    stopping = asyncio.Event()
    stop.add_cb(lambda: loop.call_soon_threadsafe(stopping.set))
    # Once: the third `set` in a row waits for ever, with the GIL (granian's channel holds one). The kernel sends END
    # as often as the main process has threads when that is killed: a child goes from one dying thread to the next.
    loop.add_signal_handler(END, cache(stop.set))
    loop.add_signal_handler(LEAVE, gateway.leave)
    gateway.begin(loop)
    # What is there by now stays: looking for garbage in it stops every thread of the worker for 100 ms, now and then.
    gc.collect()
    gc.freeze()
    make: Any = RSGIWorker  # its stub is out of date
    worker = make(
        *(worker_id, sock, ipc, threads, io_threads, py_threads, py_threads_idle_s, most_connections),
        *(http_mode, http1, http2, websockets, static_path, *tls, metrics),
    )
    worker.serve_str(_Scheduler(loop, gateway.take, None, None, None), loop, stop)
    loop.run_until_complete(stopping.wait())


class Loop(asyncio.SelectorEventLoop):
    """The event loop that granian tells of what has come."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        # Not by way of this loop's thread: waking it takes a twentieth of the CPU of a login.
        if isinstance(callback, WhenThere):
            return callback(*args)
        return super().call_soon_threadsafe(callback, *args, context=context)


class _Scheduler(CallbackScheduler):
    """Whom granian hands its requests to, in a thread of its own. Its own schedulers begin a task for each."""

    __slots__ = ()

    def __init__(self, _loop: Any, take: Callable[[Any, Any], None], *_of_tasks: None) -> None:
        super().__init__()
        known = 0

        def hand_over(watcher: Any) -> None:
            nonlocal known
            if (thread := get_ident()) != known:  # granian starts another when there was nothing to do for long
                known = thread
                come_first()  # a check that is answered in this thread does not wait for logins
            take(watcher.scope, watcher.proto)

        self._schedule_fn = hand_over
