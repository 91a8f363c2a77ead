"""What systemd is told of the main process (sd_notify(3)); without systemd nothing."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import MutableMapping


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
