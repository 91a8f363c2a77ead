"""Connections whose timeout is a deadline: over name resolution, every address, the TLS handshake, and all that comes.

The timeout of a plain socket bounds each read, so a server that sends a byte a second is never met by it.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

# Everything received for one call, headers included: http.client alone would take 6 MB of headers, and parsing their
# cookies would go on for long after the deadline.
MAX_RECEIVED_BYTES: Final = 262_144


class TooMuchReceived(ConnectionError):
    """More came than any answer has that we ask for."""


class _DeadlineMixin:
    """A socket whose timeout covers everything received since it was set, not each read, and that ends a flood.

    http.client reads headers line by line; a server that sends a byte a second, or `100 Continue` without end, would
    never meet a timeout of each read. Setting the timeout anew starts the next deadline.
    """

    _ends_at: float | None = None
    _bytes_left = MAX_RECEIVED_BYTES

    def settimeout(self, value: float | None) -> None:
        self._ends_at = None if value is None else time.monotonic() + value
        self._bytes_left = MAX_RECEIVED_BYTES
        super().settimeout(value)  # type: ignore[misc]

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self._ends_at is not None:
            left_s = self._ends_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("deadline")
            super().settimeout(left_s)  # type: ignore[misc]
        received: int = super().recv_into(*args, **kwargs)  # type: ignore[misc]
        self._bytes_left -= received
        if self._bytes_left < 0:
            raise TooMuchReceived("too much was received")
        return received


class DeadlineSocket(_DeadlineMixin, socket.socket):
    """See `connect`."""


class DeadlineTLSSocket(_DeadlineMixin, ssl.SSLSocket):
    """For `SSLContext.sslsocket_class`, so that what wraps a DeadlineSocket is one too."""


def connect(host: str, port: int, *, timeout_s: float, options: Iterable[tuple[Any, ...]] = ()) -> DeadlineSocket:
    """A connected socket, with what is left of `timeout_s` as its timeout: for the TLS handshake, over the whole of
    which OpenSSL keeps to it. `options` are arguments of setsockopt(2).

    Raises: TimeoutError; OSError if no address answers.
    """
    ends_at = time.monotonic() + timeout_s
    addresses = _RESOLVER.addresses(host, port, timeout_s=timeout_s)
    if addresses is None:
        raise TimeoutError("name resolution")
    for number, (family, kind, protocol, _name, address) in enumerate(addresses):
        left_s = ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("connect")
        sock = DeadlineSocket(family, kind, protocol)
        try:
            for option in options:
                sock.setsockopt(*option)
            # One that swallows everything, as broken IPv6 does, leaves the others their share.
            sock.settimeout(left_s / (len(addresses) - number))
            sock.connect(address)
            sock.settimeout(max(ends_at - time.monotonic(), 0.001))
            return sock
        except OSError:
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise ConnectionError("no address answers")


class _Resolver:
    """getaddrinfo with a deadline. It knows no timeout and cannot be stopped, so it runs in a thread of its own, and
    whoever asks for the same name meanwhile waits for the same answer: at most one such thread hangs for each name."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """In the child of a fork, where no thread of the parent runs on, nor lets go of a lock."""
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], _Lookup] = {}

    def addresses(self, host: str, port: int, *, timeout_s: float) -> list[Any] | None:
        """What getaddrinfo says, an empty list if the name has no address, None if it takes longer.

        Raises: OSError if no thread can be had.
        """
        _watch_forks()
        with self._lock:
            lookup = self._running.get((host, port))
            if lookup is None:
                lookup = _Lookup()
                try:
                    threading.Thread(target=self._look_up, args=(host, port, lookup), daemon=True).start()
                except RuntimeError:
                    raise OSError("no thread can be had to look the name up") from None
                self._running[host, port] = lookup
        return lookup.addresses if lookup.done.wait(timeout_s) else None

    def _look_up(self, host: str, port: int, lookup: _Lookup) -> None:
        try:
            lookup.addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            pass  # no address: the list stays empty
        finally:
            with self._lock:
                self._running.pop((host, port), None)
            lookup.done.set()


class _Lookup:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.addresses: list[Any] = []


_RESOLVER: Final = _Resolver()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_RESOLVER.begin_anew)
