"""Listening sockets that share a port, and how one of them is closed without losing anybody."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from pathlib import Path
from typing import Any, Final

from authsvc.errors import CannotListen

BACKLOG: Final = 4_096
"""Beyond so many connections that nobody has accepted, clients wait. The kernel takes no more than somaxconn."""

ANSWER_TAKEN_WITHIN_MS: Final = 30_000
"""From the moment when a client takes nothing more of its answer to the end of its connection (Linux alone)."""

_SO_ATTACH_FILTER: Final = 26
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_TCP_INFO_BYTES: Final = 104
_UNACKED_AT: Final = 24  # tcpi_unacked, which of a listening socket is the length of its queue
_ESTABLISHED: Final = "01"


Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def free_address(host: str, port: int) -> Address:
    """Where `host` and `port` are, after a look whether anybody listens there. Raises: CannotListen."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # The sockets of our workers share the port, and would share it with those of a second service.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return family, probe.getsockname()
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host} port {port}: {error.strerror}; mend: set AUTHSVC_HOST or AUTHSVC_PORT"
        ) from None


def bound(address: Address) -> socket.socket:
    """A socket for one of several that share the port; the kernel spreads connections over those who listen.

    One socket for all of them would leave most connections to the same worker. Raises: OSError.
    """
    family, where = address
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections have it from here. Without it the second part of an answer waits 40 ms for a client's delayed ACK.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # So too. Whoever never reads would have the answer and a place among the connections for good.
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ANSWER_TAKEN_WITHIN_MS)
        found.bind(where)
        found.setblocking(False)
    except OSError:
        found.close()
        raise
    return found


def refuse_new(listener: socket.socket) -> None:
    """Whoever connects to this one from now on gets no answer; once it is closed, another answers, or nobody: TCP asks
    again a second later.

    A queue that is closed with connections in it resets them, and who is in it has often sent a request already. So
    the door is shut first, and the queue gets empty (see `waiting`). Elsewhere than on Linux this does nothing.
    """

    class Instruction(ctypes.Structure):
        _fields_ = (
            ("code", ctypes.c_ushort),
            ("if_true", ctypes.c_ubyte),
            ("if_false", ctypes.c_ubyte),
            ("value", ctypes.c_uint),
        )

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))

    # socket(7): a filter that returns 0 for every packet drops it.
    drop_all = Instruction(_RETURN, 0, 0, 0)
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(Program(1, ctypes.pointer(drop_all))))


def waiting(listener: socket.socket) -> int:
    """How many connections nobody has accepted yet; 0 where that cannot be known."""
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        found: int = struct.unpack_from("I", info, _UNACKED_AT)[0]
    except (OSError, AttributeError, struct.error):
        return 0
    return found


def is_in_use(port: int) -> bool:
    """Whether somebody is connected to that port of this host; True where that cannot be known."""
    try:
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    except OSError:
        return True
    rows = (line.split() for table in tables for line in table)
    return any(row[1].endswith(f":{port:04X}") and row[3] == _ESTABLISHED for row in rows)
