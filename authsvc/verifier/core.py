"""The verifier itself: a token and the keys of its issuer in, claims or one of two errors out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import TimeoutError as NotInTime
from typing import Any, Final, Self

from authsvc.claims import Claims, Policy
from authsvc.clock import Clock, SystemClock
from authsvc.errors import KeysUnavailable, TokenExpired
from authsvc.tokens import JwkSet, UnknownKey, open_token
from authsvc.verifier.memory import Memory
from authsvc.verifier.remote import IssuerKeys
from authsvc.verifier.sources import Asked, KeySource, Loud

REMEMBERED: Final = 10_000
MEMORY_BYTES: Final = 16 << 20

_RETRY_AFTER_S: Final = 1


class Verifier:
    """Verifies tokens under one policy, in any thread, in asyncio, over fork(2). There are three outcomes:

    the claims · a TokenError, whose `code` says why: answer 401 · KeysUnavailable, when it cannot be told because a key
    cannot be had: answer 503, with its `retry_after_s`, and nobody is logged out.
    """

    def __init__(
        self,
        keys: str | KeySource | Mapping[str, Any],
        policy: Policy | None = None,
        *,
        audience: str | tuple[str, ...] | None = None,
        appids: tuple[str, ...] | None = None,
        remember: int = REMEMBERED,
        clock: Clock | None = None,
    ) -> None:
        """`Verifier("https://auth.example.com", audience="api")`, the short form: the issuer's URL, from which its
        metadata and keys are read, and for whom its tokens have to be. `Verifier(keys, policy)`, the full form, with
        JwkSet, RemoteKeys, IssuerKeys, FileKeys, or the JSON of a JWKS.

        `appids`: the mini-programs whose users you take; without it, all of this issuer. `remember`: how many verified
        tokens are remembered, 0 for none; a remembered one is looked at for its expiry, and forgotten with its key.
        Raises: TypeError, ValueError for what makes no sense.
        """
        if policy is None:
            if not isinstance(keys, str) or audience is None:
                raise TypeError("Verifier(issuer_url, audience=...) or Verifier(keys, Policy(...))")
            policy = Policy(keys, audience, appids=appids)
        elif audience is not None or appids is not None or isinstance(keys, str):
            raise TypeError("with a policy, audience and appids stand in that, and keys are no plain URL")
        self._clock = clock or SystemClock()
        self._policy = policy
        self._keys = _source(keys, self._clock)
        self._memory = Memory(remember, max_bytes=MEMORY_BYTES) if remember > 0 else None
        self._first_appid: str | None = None
        self._loud = Loud(self._clock)

    def verify(self, token: str) -> Claims:
        """The claims of a genuine, living token for this policy.

        It waits for the network only where no key is at hand, and never longer than two fetches may take.
        Raises: TokenError; KeysUnavailable.
        """
        try:
            return self._open(token)
        except UnknownKey as unknown:
            asked = self._ask(unknown)
        try:
            asked.answer.result(asked.wait_s)
        except (KeysUnavailable, NotInTime) as error:
            return self._open_after(token, asked, error)
        return self._open_after(token, asked)

    async def verify_async(self, token: str) -> Claims:
        """As `verify`, for asyncio: the loop goes on while keys are waited for."""
        try:
            return self._open(token)
        except UnknownKey as unknown:
            asked = self._ask(unknown)
        try:
            answer = asyncio.wrap_future(asked.answer)
            # Should we give up before it comes: nobody is to hear of an exception that nobody looked at.
            answer.add_done_callback(lambda future: future.cancelled() or future.exception())
            # Shielded: others wait for the same answer.
            await asyncio.wait_for(asyncio.shield(answer), asked.wait_s)
        except (KeysUnavailable, TimeoutError) as error:
            return self._open_after(token, asked, error)
        return self._open_after(token, asked)

    def close(self) -> None:
        """End the thread that keeps remote keys fresh, if there is one."""
        close = getattr(self._keys, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, token: str) -> Claims:
        now = self._clock.now()
        memory = self._memory
        if memory is None:
            return self._noted(open_token(token, self._keys, self._policy, now=now))
        # Before the token is opened: what is put under this epoch was verified under its keys, or newer ones.
        epoch = self._keys.epoch
        claims = memory.get(token, epoch) if isinstance(token, str) else None
        if claims is None:
            claims = self._noted(open_token(token, self._keys, self._policy, now=now))
            memory.put(token, claims, epoch)
        elif now >= claims.expires_at + self._policy.leeway_s:
            raise TokenExpired("expired")
        return claims

    def _ask(self, unknown: UnknownKey) -> Asked:
        # A foreign or dead token is not worth a fetch, whoever sends a thousand of them.
        claims = unknown.unverified_claims
        asked = self._keys.ask(issued_at=claims.issued_at) if claims is not None else None
        if asked is None:
            raise unknown from None
        return asked

    def _open_after(self, token: str, asked: Asked, failure: Exception | None = None) -> Claims:
        try:
            # Also after a failure: with it older keys may have come into their own.
            return self._open(token)
        except UnknownKey:
            if isinstance(failure, KeysUnavailable):
                # One of our own: theirs is raised in every thread that waits for the same answer.
                raise KeysUnavailable(str(failure), retry_after_s=failure.retry_after_s) from None
            if failure is None and asked.settles_it():
                raise
            raise KeysUnavailable("the key of this token is not known yet", retry_after_s=_RETRY_AFTER_S) from None

    def _noted(self, claims: Claims) -> Claims:
        first = self._first_appid
        if self._policy.appids is None and claims.appid != first:
            self._first_appid = claims.appid if first is None else ""  # said once
            if first:
                self._loud.say(
                    "the issuer %s serves several mini-programs, %s and %s among them, and this verifier takes the "
                    "users of all of them; name yours with appids=(...)",
                    self._policy.issuer,
                    first,
                    claims.appid,
                )
        return claims


def _source(keys: str | KeySource | Mapping[str, Any], clock: Clock) -> KeySource:
    if isinstance(keys, str):
        return IssuerKeys(keys, clock=clock)
    if isinstance(keys, Mapping):
        return JwkSet(keys)
    return keys
