"""The listening socket: who gets in, who waits, who is turned away."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import pytest

from authsvc.errors import CannotListen
from authsvc.http.listener import bound, free_address, is_in_use, refuse_new, waiting
from tests.support.processes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what it does elsewhere is nothing")

SOON_S: Final = 10


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(bound((socket.AF_INET, ("127.0.0.1", 0)))) as it:
        it.listen()
        yield it


def connect(listener: socket.socket, *, timeout_s: float = SOON_S) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2], timeout=timeout_s)


def test_a_port_that_is_taken_is_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(CannotListen, match=f"port {port}: Address already in use"):
        free_address("127.0.0.1", port)


def test_a_name_that_leads_nowhere_is_named() -> None:
    with pytest.raises(CannotListen, match=r"nowhere\.invalid"):
        free_address("nowhere.invalid", 0)


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


def test_a_socket_that_only_shares_the_port_gets_nobody_until_it_listens(listener: socket.socket) -> None:
    with closing(bound((socket.AF_INET, listener.getsockname()))) as other, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(listener))
        assert waiting(listener) == 20
        other.listen()
        for _ in range(40):
            stack.enter_context(connect(listener))
        assert waiting(listener) + waiting(other) == 60
        assert waiting(other) > 5


def test_an_answer_in_two_parts_does_not_wait_for_the_clients_acknowledgement(listener: socket.socket) -> None:
    with connect(listener):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_who_takes_nothing_of_an_answer_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authsvc.http.listener.ANSWER_TAKEN_WITHIN_MS", 500)
    with closing(bound((socket.AF_INET, ("127.0.0.1", 0)))) as listener:
        listener.listen()
        with connect(listener):
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(SOON_S)
                with pytest.raises(TimeoutError, match="Connection timed out"):  # the system's, and not Python's
                    accepted.sendall(b"x" * 50_000_000)  # more than the buffers of both take


def test_a_port_is_in_use_while_somebody_is_connected(listener: socket.socket) -> None:
    assert not is_in_use(listener.getsockname()[1])
    with connect(listener):
        accepted, _ = listener.accept()
        assert is_in_use(listener.getsockname()[1])
        accepted.close()
    until(lambda: not is_in_use(listener.getsockname()[1]), within_s=SOON_S)


def test_where_nothing_can_be_known_a_port_is_taken_to_be_in_use(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_table(_path: object, *_args: object, **_kwargs: object) -> str:
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.read_text", no_table)
    assert is_in_use(listener.getsockname()[1])
