"""The listening socket: who gets in, who waits, who is turned away."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import pytest

from authsvc.errors import CannotListen
from authsvc.http.listener import is_in_use, listen, refuse_new, stop_accepting, waiting
from tests.support.processes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what it does elsewhere is nothing")

SOON_S: Final = 10


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(listen("127.0.0.1", 0)) as it:
        yield it


def connect(listener: socket.socket, *, timeout_s: float = SOON_S) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2], timeout=timeout_s)


def test_a_port_that_is_taken_is_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(CannotListen, match=f"port {port}: Address already in use"):
        listen("127.0.0.1", port)


def test_a_name_that_leads_nowhere_is_named() -> None:
    with pytest.raises(CannotListen, match=r"nowhere\.invalid"):
        listen("nowhere.invalid", 0)


def test_who_is_in_the_queue_is_counted_until_accepted(listener: socket.socket) -> None:
    assert waiting(listener) == 0
    with connect(listener), connect(listener):
        assert waiting(listener) == 2
        accepted, _ = listener.accept()
        accepted.close()
        assert waiting(listener) == 1


def test_after_the_door_is_shut_the_queue_is_served_and_who_comes_later_is_refused(listener: socket.socket) -> None:
    with connect(listener) as early:
        early.sendall(b"early")
        refuse_new(listener)
        with pytest.raises(TimeoutError):
            connect(listener, timeout_s=0.2)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(5) == b"early"
            accepted.sendall(b"served")
        assert early.recv(6) == b"served"
    assert waiting(listener) == 0
    address = listener.getsockname()[:2]
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=SOON_S)


OTHER: Final = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(True)
print("there", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(b"other")
    connection.close()
"""


def test_a_process_that_accepts_no_more_leaves_everything_to_the_others(listener: socket.socket) -> None:
    kept = listener.dup()
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(listener.fileno())], pass_fds=[listener.fileno()], stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            address = listener.getsockname()[:2]
            stop_accepting(listener)
            for _ in range(10):
                with socket.create_connection(address, timeout=SOON_S) as connection:
                    assert connection.recv(5) == b"other"
            for mine in (listener, kept):
                mine.setblocking(False)
                with pytest.raises(BlockingIOError):
                    mine.accept()
        finally:
            other.kill()
            kept.close()


def test_a_port_is_in_use_while_somebody_is_connected(listener: socket.socket) -> None:
    assert not is_in_use(listener)
    with connect(listener):
        accepted, _ = listener.accept()
        assert is_in_use(listener)
        accepted.close()
    until(lambda: not is_in_use(listener), within_s=SOON_S)


def test_where_nothing_can_be_known_a_port_is_taken_to_be_in_use(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_table(_path: object, *_args: object, **_kwargs: object) -> str:
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.read_text", no_table)
    assert is_in_use(listener)
