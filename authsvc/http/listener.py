"""The listening socket: one for all workers, and how those who accept from it stop without losing anybody."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final

from authsvc.errors import CannotListen

BACKLOG: Final = 4_096
"""Beyond so many connections that nobody has accepted, clients wait. The kernel takes no more than somaxconn."""

_SO_ATTACH_FILTER: Final = 26
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_TCP_INFO_BYTES: Final = 104
_UNACKED_AT: Final = 24  # tcpi_unacked, which of a listening socket is the length of its queue
_ESTABLISHED: Final = "01"


def listen(host: str, port: int) -> socket.socket:
    """Raises: CannotListen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host} port {port}: {error.strerror}; mend: set AUTHSVC_HOST or AUTHSVC_PORT"
        ) from None
    listener.setblocking(False)
    return listener


def refuse_new(listener: socket.socket) -> None:
    """Whoever connects from now on gets no answer, and is refused once the socket is closed: TCP asks again.

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


def stop_accepting(listener: socket.socket) -> None:
    """Have this process accept nothing more, while others go on with the same socket.

    Each descriptor of it here becomes one of a socket that nobody can reach. For who waits at it nothing happens.
    """
    found = os.fstat(listener.fileno())
    with socket.create_server(("127.0.0.1", 0)) as lonely:
        refuse_new(lonely)
        lonely.setblocking(False)
        for name in os.listdir("/proc/self/fd"):
            try:
                other = os.fstat(int(name))
            except OSError as error:
                if error.errno != errno.EBADF:  # that of the listing itself
                    raise
                continue
            if (other.st_dev, other.st_ino) == (found.st_dev, found.st_ino):
                os.dup2(lonely.fileno(), int(name))


def is_in_use(listener: socket.socket) -> bool:
    """Whether somebody is connected to its port on this host; True where that cannot be known."""
    port = f"{listener.getsockname()[1]:04X}"
    try:
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    except OSError:
        return True
    rows = (line.split() for table in tables for line in table)
    return any(row[1].endswith(f":{port}") and row[3] == _ESTABLISHED for row in rows)
