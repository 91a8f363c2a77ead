"""What the server hands over of a request: RSGI, granian's own interface (docs/spec/RSGI.md there)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

Headers = list[tuple[str, str]]


class Scope(Protocol):
    """The request but for its body. Header fields that are not ASCII are left out."""

    method: str
    path: str  # decoded, with U+FFFD for what is no UTF-8
    query_string: str  # as it came
    http_version: str
    authority: str | None  # of a target that is a whole URL
    client: str
    server: str

    @property
    def headers(self) -> Any: ...


class FutureBody(Protocol):
    """A body that says how long it is. Reading it begins with the callback, of which there is one."""

    def add_done_callback(self, callback: Callable[[FutureBody], object], *, context: None) -> None: ...

    def result(self) -> bytes:
        """Raises: RuntimeError where the client went away before the end."""

    def cancel(self) -> bool:
        """The callback is called nonetheless."""

    def cancelled(self) -> bool: ...


class Exchange(Protocol):
    """granian's end of a request. The first answer is the one that counts; from any thread."""

    def __call__(self) -> FutureBody: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None: ...
