"""What systemd is told (sd_notify(3)) and what it hands over (sd_listen_fds(3)); without systemd nothing of both."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from authsvc.errors import CannotListen

_FIRST_DESCRIPTOR: Final = 3


class Notifier:
    """Tells the service manager how the main process is doing. Whether it listens is of no concern here."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Takes the address out of `environ`: no other process has to find it there."""
        address = environ.pop("NOTIFY_SOCKET", "")
        # systemd writes an abstract name with "@" in place of the NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        self._tell("READY=1")

    def reloading(self) -> None:
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto("\n".join(lines).encode(), self._address)


def handed_over(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The listening socket that systemd opened for us, if it did.

    Raises: CannotListen if there is more than one, or another kind of it.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return None
    if count != "1":
        raise CannotListen(f"systemd hands over {count} sockets; mend: one ListenStream= in the socket unit")
    try:
        found = socket.socket(fileno=_FIRST_DESCRIPTOR)
    except OSError as error:
        raise CannotListen(f"what systemd hands over is no socket: {error.strerror}") from None
    if found.type != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6):
        raise CannotListen("what systemd hands over is no TCP socket; mend: ListenStream=PORT in the socket unit")
    found.setblocking(False)
    found.set_inheritable(False)
    return found
