"""Connections to PostgreSQL that do not wait for ever.

`statement_timeout` is kept by the server, and `tcp_user_timeout` by its kernel: of a server that hangs with its sockets
open neither is heard. The driver has no limit of its own for an answer.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Final

import psycopg

# What psycopg sends into its generators when the socket was quiet for `interval` seconds.
_NOT_READY: Final = 0


class BoundedConnection(psycopg.Connection[Any]):
    """Is closed, with an OperationalError, when the server says nothing for `answer_within_s`."""

    answer_within_s: float

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return super().wait(_bounded(gen, within_s=self.answer_within_s), *args, **kwargs)
        except _NoAnswer:
            self.pgconn.finish()  # what is asked on it next would get the answer to this
            raise


def connect(arguments: dict[str, Any], *, answer_within_s: float) -> BoundedConnection:
    connection = BoundedConnection.connect(**arguments)
    connection.answer_within_s = answer_within_s
    return connection


class _NoAnswer(psycopg.OperationalError):
    pass


def _bounded(gen: Generator[Any, Any, Any], *, within_s: float) -> Generator[Any, Any, Any]:
    """The same generator, until it has waited for so long without a byte."""
    quiet_since_s = time.monotonic()
    ready = None  # begins it
    while True:
        try:
            wanted = gen.send(ready)
        except StopIteration as done:
            return done.value
        ready = yield wanted
        now_s = time.monotonic()
        if ready != _NOT_READY:
            quiet_since_s = now_s
        elif now_s - quiet_since_s > within_s:
            gen.close()
            raise _NoAnswer("no answer in time")
