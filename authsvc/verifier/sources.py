"""Where a verifier has its keys from: what every source answers, and the file that is read again when it changes."""

from __future__ import annotations

import contextlib
import logging
import os
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from authsvc.clock import Clock, SystemClock
from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import KeysUnavailable
from authsvc.jwk import BadJwk
from authsvc.tokens import JwkSet, VerificationKey

MAX_JWKS_BYTES: Final = 131_072
"""A JWKS of ours has a few keys, of less than a kilobyte each."""

_LOOK_EVERY_S: Final = 1.0
_SAY_EVERY_S: Final = 60.0

_log = logging.getLogger("authsvc.verifier")


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody is being asked for newer keys."""

    answer: Future[bool]  # whether it is as new as the asking; KeysUnavailable if there was none
    is_ours: bool  # the asking came after this very question
    wait_s: float  # longer than an answer may take

    def settles_it(self) -> bool:
        """Whether a key that is not in the answer is none of the issuer's."""
        return self.is_ours and self.answer.result(0)


class KeySource(Protocol):
    """Keys for a Verifier. Every method may be called from any thread, and none of them waits for a network."""

    @property
    def epoch(self) -> object:
        """Another object whenever the keys may be others; None while there are none that can be relied upon."""

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        """The key that is trusted, or known as revoked, at `now` (Unix seconds); None if there is none at hand."""

    def ask(self, *, issued_at: int) -> Asked | None:
        """Have the keys fetched anew, for a kid that is not at hand, in a token that says it was issued at that time.

        None: what is at hand is all there is, or was, long after that.
        Raises: KeysUnavailable if that cannot be, or was done a moment ago.
        """


class FileKeys:
    """The keys of a JWKS in a file, as `authsvc keys export` writes it: looked at once a second, read when it is
    another one, symlink swaps included. What cannot be used never takes the place of what could."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self._path = Path(path)
        self._clock = clock or SystemClock()
        self._keys: JwkSet | None = None
        self._version: object = None
        self._loud = Loud(self._clock)
        self._look()

    @property
    def epoch(self) -> object:
        if self._clock.monotonic() >= self._look_at:
            self._look()
        return self._keys

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        keys = self.epoch
        return keys.find(unverified_kid, now=now) if isinstance(keys, JwkSet) else None

    def ask(self, *, issued_at: int) -> Asked | None:  # noqa: ARG002 - a file is what it is
        if self._keys is None:
            raise KeysUnavailable(f"{self._path} has no keys that can be used", retry_after_s=round(_LOOK_EVERY_S))
        return None

    def _look(self) -> None:
        # While one thread looks the others go on with what there is. No lock: a fork could leave it held for ever.
        self._look_at = self._clock.monotonic() + _LOOK_EVERY_S
        try:
            found = os.stat(self._path)
            version = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
            if version == self._version:
                return
            with self._path.open("rb") as file:
                keys = parse_jwks(file.read(MAX_JWKS_BYTES + 1))
        except OSError as error:
            self._loud.say("%s cannot be read: %s", self._path, error.strerror)
        except BadJwk as error:
            self._loud.say("%s cannot be used: %s", self._path, error)
        else:
            self._version, self._keys = version, keys


def parse_jwks(data: bytes) -> JwkSet:
    """Raises: BadJwk if it is too large, no JWKS, or has no key that can be used."""
    if len(data) > MAX_JWKS_BYTES:
        raise BadJwk(f"larger than {MAX_JWKS_BYTES} bytes")
    try:
        return JwkSet(parse_json_object(data))
    except NotCanonical:
        raise BadJwk("not a JWKS in JSON") from None


class Loud:
    """Says a problem at once, and then once a minute while it lasts. Where the log fails, nothing else does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def say(self, message: str, *args: object, level: int = logging.WARNING) -> None:
        now = self._clock.monotonic()
        if now >= self._said.get(message, float("-inf")) + _SAY_EVERY_S:
            self._said[message] = now
            with contextlib.suppress(Exception):
                _log.log(level, message, *args)
