"""The HTTP server: granian, with worker processes of blocking threads."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server import Server

from authsvc.errors import CannotListen

WSGIApp: TypeAlias = Callable[..., Any]

# A token of 8 KiB and a generous set of headers; more is refused by the server itself.
_HEADER_BUFFER_BYTES: Final = 65_536
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def free_address(host: str, port: int) -> str:
    """The numeric address of `host`, which granian wants, after a look whether it can be listened on.

    Raises: CannotListen.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        # granian sets SO_REUSEPORT: without this look a second service would share the port and take half the requests.
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host} port {port}: {error.strerror}; mend: set AUTHSVC_HOST or AUTHSVC_PORT"
        ) from None
    return str(address[0])


def serve(
    load_app: Callable[[], WSGIApp],
    *,
    address: str,
    port: int,
    workers: int,
    threads: int,
    stop_within_s: int,
    on_listening: Callable[[], None],
) -> None:
    """Serve on an address of `free_address` until SIGINT or SIGTERM. `load_app` runs once in each worker process.

    A worker that has not answered what it accepted `stop_within_s` seconds after the signal is killed.
    """
    logging.getLogger("_granian").addFilter(_is_news)
    os.register_at_fork(before=_hold_sigterm, after_in_parent=_release_sigterm, after_in_child=_begin_worker)
    server = Server(
        target="authsvc",
        address=address,
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=_HEADER_BUFFER_BYTES),
        websockets=False,
        workers=workers,
        # Every request has a thread to itself; logins that wait for WeChat are capped below this number.
        blocking_threads=threads,
        respawn_failed_workers=True,
        workers_kill_timeout=stop_within_s,
        # Its records go the way of all others. Its access log stays off: it has `?token=` in it.
        log_access=False,
        log_dictconfig={"formatters": {}, "handlers": {}, "loggers": {"_granian": {"propagate": True}}},
    )
    server.on_startup(on_listening)
    server.serve(target_loader=load_app, wrap_loader=False)


def _hold_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _begin_worker() -> None:
    """The first thing in a new worker process."""
    # Until granian has handlers of its own, those of the main process would swallow the signal that ends the worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release_sigterm()
    # Ctrl-C reaches every process of the terminal, and the main process then sends the workers SIGTERM. granian's
    # workers hang when the second signal meets the handler of the first, so they get to see the SIGTERM alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if sys.platform == "linux":
        # If the main process is killed, nobody would be left to stop this one, and it would keep the port.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_news(record: logging.LogRecord) -> bool:
    # It advises fewer threads than cores would keep busy; ours wait for WeChat, and 64 of them were measured best.
    return "Configuration allows spawning up to" not in record.getMessage()
