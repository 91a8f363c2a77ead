"""The HTTP server: granian, with worker processes, and with nobody lost when they come and go.

What is added to granian: a worker listens once it can answer; before it ends it lets go of its clients, and leaves no
connection in its queue; its successor is there before it goes, and where that cannot start, it stays.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.mp import MPServer

from authsvc.errors import AuthsvcError
from authsvc.http.gateway import Gateway
from authsvc.http.listener import BACKLOG, Address, bound, is_in_use, refuse_new, waiting
from authsvc.http.worker import END, LEAVE, MOST_CONNECTIONS, expect_workers, work

LoadGateway: TypeAlias = Callable[[], Gateway]

# A token of 8 KiB and a generous set of headers. hyper looks after it has read, so it refuses some twice of it at last.
_HEADER_BUFFER_BYTES: Final = 65_536
# Longer than a load balancer keeps an idle connection (mostly 60 s), or it would write into one that is being closed.
_HEADERS_WITHIN_MS: Final = 75_000

# From "close your connection" to the end of those who did not ask again. They come back on another one.
_LEAVE_S: Final = 0.5
# From the moment when nobody gets in any more: who just got in has sent a request by then.
_LAST_CALL_S: Final = 0.1
_QUEUE_EMPTY_WITHIN_S: Final = 2.0
_LOOK_EVERY_S: Final = 0.01
_READY_WITHIN_S: Final = 30.0
_OTHER_FILES: Final = 1_024
# A worker that ended within so many seconds of its start has its successor wait, longer from time to time.
_SOON_S: Final = 10.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0

_log = logging.getLogger("authsvc.server")


def hold_reloads() -> None:
    """As early as can be: SIGHUP, which would end this process, waits until `serve` can see to it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def serve(
    load_gateway: LoadGateway,
    *,
    address: Address,
    workers: int,
    stop_within_s: int,
    on_listening: Callable[[], None],
    on_ready: Callable[[], None],
    on_reload: Callable[[], LoadGateway | None],
    on_stopping: Callable[[], None],
    on_worker_end: Callable[[], None],
    hangup_ends: bool,
) -> None:
    """Serve until SIGINT or SIGTERM. `load_gateway` runs once in each worker process.

    A worker that has not answered what it accepted `stop_within_s` seconds after the signal is killed. On SIGHUP all
    workers are replaced by those of what `on_reload` gives, one by one; None is for leaving them as they are. With
    `hangup_ends` it is as good as SIGTERM. `on_ready`: each worker can answer, after the start or a reload.
    `on_worker_end`: one has ended.
    """
    # Workers inherit what was read before they were: keys above all. Python 3.14 has another default.
    multiprocessing.set_start_method("fork", force=True)
    expect_workers()
    _allow_files()
    host, port = address[1][:2]
    server = _Server(
        target="authsvc",
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=_HEADERS_WITHIN_MS, max_buffer_size=_HEADER_BUFFER_BYTES),
        websockets=False,
        workers=workers,
        # One hands the requests to the gateway, which has its own for what takes time.
        blocking_threads=1,
        backpressure=MOST_CONNECTIONS,
        respawn_failed_workers=True,
        workers_kill_timeout=stop_within_s,
        # Its records go the way of all others. Its access log stays off: it has `?token=` in it.
        log_access=False,
        log_dictconfig={"formatters": {}, "handlers": {}, "loggers": {"_granian": {"propagate": True}}},
    )
    server.take(
        load_gateway,
        address=address,
        on_ready=on_ready,
        on_reload=on_reload,
        on_stopping=on_stopping,
        on_worker_end=on_worker_end,
    )
    if hangup_ends:
        server.signal_handler_reload = server.signal_handler_interrupt  # type: ignore[method-assign]
    server.on_startup(on_listening)
    try:
        load: Any = server.load  # to granian, any object that its workers know what to do with
        server.serve(spawn_target=work, target_loader=load, wrap_loader=False)
    except Exception as error:  # noqa: BLE001 - whatever it is
        # Whoever started this has to see that it ended: granian's threads would keep the process, deaf to signals.
        _log.error("the main process failed, and ends", exc_info=error)
        for worker in server.wrks:
            worker.kill()  # type: ignore[no-untyped-call]
        os._exit(1)


class _Server(MPServer):
    """What it overrides is granian's own business and may change with any version: pyproject.toml names one."""

    def take(
        self,
        load_gateway: LoadGateway,
        *,
        address: Address,
        on_ready: Callable[[], None],
        on_reload: Callable[[], LoadGateway | None],
        on_stopping: Callable[[], None],
        on_worker_end: Callable[[], None],
    ) -> None:
        self._on_worker_end = on_worker_end
        self._load_gateway = load_gateway
        self._address = address
        self._listeners: list[socket.socket] = []  # of workers that may be alive; the last is that of the newest
        self._on_ready = on_ready
        self._new_gateway = on_reload
        self._on_stopping = on_stopping
        self._ready = _Ready()
        self._pauses: dict[int, float] = {}
        self._paused: set[int] = set()
        self.main_loop_interrupt: Any = _Interrupt(self._has_something_to_do)

    def load(self) -> Gateway:
        """In the worker, as the last thing before it answers."""
        *of_others, own = self._listeners
        for other in of_others:
            other.close()  # or it would go on listening here when that worker is gone
        try:
            gateway = self._load_gateway()
        except Exception as error:  # noqa: BLE001 - an unknown one may have a secret in its words
            _log.error("a worker cannot start: %s", _said_by(error), exc_info=error)
            logging.shutdown()
            os._exit(1)
        own.listen(BACKLOG)
        self._ready.say()
        return gateway

    # ---- what granian calls ----

    def _init_shared_socket(self) -> None:
        """There is none: each worker has its own. But granian has just set its handlers."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:  # type: ignore[override]
        listener = bound(self._address)
        self._listeners.append(listener)
        # As granian has it where a socket comes from the main process.
        holder: Any = SocketHolder
        self._ssp, self._shd, self._sso = None, holder(listener.fileno(), False, BACKLOG), listener
        worker: Any = super()._spawn_worker(idx, target, callback_loader)
        worker.listener = listener
        return worker

    def _drop_shared_socket(self) -> None:
        """The beginning of the end: everybody who got in is answered, and told to close the connection."""
        self._on_stopping()
        # The workers go on accepting until there is nobody left.
        self._shut(*self.wrks)
        for worker in self.wrks:
            _tell(worker, LEAVE)
        give_up_at = time.monotonic() + _LEAVE_S
        while is_in_use(self._address[1][1]) and time.monotonic() < give_up_at:
            time.sleep(_LOOK_EVERY_S)
        for listener in self._listeners:
            listener.close()

    def _stop_workers(self) -> None:
        """Its own takes one that has just ended for one that will not."""
        workers: list[Any] = self.wrks
        give_up_at = time.monotonic() + (self.workers_kill_timeout or 0)
        for worker in workers:
            self._tell_to_end(worker)
        for worker in workers:
            self._wait_for_end(worker, give_up_at)

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        super()._spawn_workers(spawn_target, target_loader)  # type: ignore[no-untyped-call]
        # Beside the main loop, which has to see signals: a worker may wait for keys as long as it likes.
        threading.Thread(target=self._say_when_ready, daemon=True).start()

    def _reload(self, spawn_target: Any, target_loader: Any) -> None:
        self.reload_signal = False
        load_gateway = self._new_gateway()
        if load_gateway is None:
            self._on_ready()  # as before
            return
        before, self._load_gateway = self._load_gateway, load_gateway
        if not all(self._replace(index, spawn_target, target_loader) for index in range(self.workers)):
            self._load_gateway = before
        self._on_ready()

    def _respawn_workers(self, workers: list[int], spawn_target: Any, target_loader: Any) -> None:  # type: ignore[override]
        """Its own ends the service when a worker dies twice in a row."""
        for index in workers:
            old: Any = self.wrks[index]
            if not old.is_alive() and self._is_due(index, old):
                self._replace(index, spawn_target, target_loader)

    # ---- our own ----

    def _has_something_to_do(self) -> bool:
        return bool(self.interrupt_signal or self.reload_signal or self.interrupt_children)

    def _replace(self, index: int, spawn_target: Any, target_loader: Any) -> bool:
        """False if the old one stays, or if nobody is there and it is tried again later."""
        old: Any = self.wrks[index]
        is_dead = not old.is_alive()
        if is_dead:
            self._forget(old)  # first of all: its queue is still open here, and nobody is at it
        try:
            new: Any = self._spawn_worker(idx=index, target=spawn_target, callback_loader=target_loader)
            new.interrupt_by_parent = not is_dead  # it is no crash of the service if this one cannot start
            new.start()
        except (OSError, RuntimeError) as error:
            _log.error("no new worker could be made: %s", type(error).__name__)
            self._close_unused()
            if is_dead:
                self._try_again(index, after_s=_FIRST_PAUSE_S)
            return False
        if is_dead:
            self.wrks[index] = new
            return True
        if not self._ready.wait_for(new, within_s=_READY_WITHIN_S, look=self._look, unless=self._is_ending):
            if not self.interrupt_signal:
                _log.error("a new worker cannot answer; the old one stays")
            self._end(new)
            return False
        self.wrks[index] = new
        new.interrupt_by_parent = False
        if not new.is_alive():  # meanwhile, when nobody looked
            self.interrupt_children.append(index)
            self.main_loop_interrupt.set()
        _tell(old, LEAVE)
        time.sleep(_LEAVE_S)
        self._shut(old)
        time.sleep(_LAST_CALL_S)
        self._end(old)
        return True

    def _close_unused(self) -> None:
        """Sockets of workers that never came to be."""
        workers: list[Any] = self.wrks
        used = [worker.listener for worker in workers]
        for listener in [one for one in self._listeners if one not in used]:
            listener.close()
            self._listeners.remove(listener)

    def _is_ending(self) -> bool:
        return bool(self.interrupt_signal)

    def _look(self) -> None:
        """While the main loop waits for one worker: nobody may be left waiting at another that has died."""
        workers: list[Any] = self.wrks
        for worker in workers:
            if not worker.is_alive():
                worker.listener.close()
        time.sleep(_LOOK_EVERY_S)

    def _shut(self, *workers: Any) -> None:
        """Let nobody else in, and wait until the worker has accepted who is."""
        for worker in workers:
            refuse_new(worker.listener)
        give_up_at = time.monotonic() + _QUEUE_EMPTY_WITHIN_S
        while any(waiting(worker.listener) for worker in workers) and time.monotonic() < give_up_at:
            time.sleep(_LOOK_EVERY_S)

    def _forget(self, worker: Any) -> None:
        """One that has ended; also if it is done already."""
        self._ready.forget(worker)
        worker.listener.close()
        if worker.listener in self._listeners:
            self._listeners.remove(worker.listener)
            self._on_worker_end()

    def _end(self, worker: Any) -> None:
        self._tell_to_end(worker)
        # The worker itself listens no more. With this copy of its socket open, the kernel would still give it clients.
        worker.listener.close()
        self._wait_for_end(worker, time.monotonic() + (self.workers_kill_timeout or 0))
        self._forget(worker)

    def _tell_to_end(self, worker: Any) -> None:
        worker.interrupt_by_parent = True
        _tell(worker, END)

    def _wait_for_end(self, worker: Any, give_up_at: float) -> None:
        # Not join(): granian has a thread that waits for it too, and who comes second is told that it still lives.
        while worker.is_alive() and time.monotonic() < give_up_at:
            self._look()
        if worker.is_alive():
            _log.warning("a worker did not stop in time and is killed")
            worker.kill()
            worker.join()

    def _is_due(self, index: int, old: Any) -> bool:
        """Whether the successor of a dead worker is to come now; if not, it is tried again after a pause."""
        if index in self._paused:
            self._paused.discard(index)
            return True
        if time.monotonic() - old.birth > _SOON_S:
            self._pauses.pop(index, None)
            return True
        pause_s = self._pauses.get(index, 0.0)
        self._pauses[index] = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
        if not pause_s:
            return True
        self._forget(old)
        self._try_again(index, after_s=pause_s)
        return False

    def _try_again(self, index: int, *, after_s: float) -> None:
        def is_time() -> None:
            self._paused.add(index)
            self.interrupt_children.append(index)
            self.main_loop_interrupt.set()

        timer = threading.Timer(after_s, is_time)
        timer.daemon = True
        timer.start()

    def _say_when_ready(self) -> None:
        while not self.interrupt_signal:
            workers = list(self.wrks)
            if all(self._ready.wait_for(worker, within_s=1.0) for worker in workers) and workers == self.wrks:
                self._on_ready()
                return
            time.sleep(_LOOK_EVERY_S)


class _Interrupt:
    """In place of the Event that granian's signal handlers set.

    They meet the main thread anywhere, and an Event that is set while it is being set or waited for takes its lock
    twice. And they are run by the main thread alone, while the signal may reach another, which does not wake it.
    """

    def __init__(self, is_wanted: Callable[[], bool]) -> None:
        """`is_wanted` tells whether there is something to do."""
        self._is_wanted = is_wanted
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of them
            os.write(self._writer, b"!")

    def clear(self) -> None:
        """Nothing: what was done is wanted no more."""

    def wait(self) -> None:
        while not self._is_wanted():
            select.select([self._reader], [], [])
            with contextlib.suppress(BlockingIOError):
                while os.read(self._reader, 4_096):
                    pass


class _Ready:
    """Workers say that they can answer; the main process waits for it."""

    def __init__(self) -> None:
        self._said: set[int] = set()
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)
        self._lock = threading.Lock()

    def say(self) -> None:
        # In one piece, however many workers write.
        os.write(self._writer.fileno(), os.getpid().to_bytes(4, "big"))

    def forget(self, worker: Any) -> None:
        """One that has ended: another may get its number."""
        self._said.discard(worker.inner.pid)

    def wait_for(
        self,
        worker: Any,
        *,
        within_s: float,
        look: Callable[[], None] = lambda: time.sleep(_LOOK_EVERY_S),
        unless: Callable[[], bool] = lambda: False,
    ) -> bool:
        """False if it has ended, or if that takes too long. `look` is called again and again meanwhile."""
        give_up_at = time.monotonic() + within_s
        while True:
            with self._lock:
                while self._reader.poll(0):
                    self._said.add(int.from_bytes(os.read(self._reader.fileno(), 4), "big"))
                if worker.inner.pid in self._said:
                    return True
            if not worker.is_alive() or time.monotonic() > give_up_at or unless():
                return False
            look()


def _allow_files() -> None:
    """As many as a worker may have connections, and some, if the system lets us: it often begins with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _tell(worker: Any, number: int) -> None:
    if worker.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.inner.pid, number)


def _said_by(error: Exception) -> str:
    return str(error) if isinstance(error, AuthsvcError) else type(error).__name__
