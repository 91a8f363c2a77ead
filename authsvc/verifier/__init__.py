"""The door for whoever has to trust a token: keys and a policy in, claims or a TokenError out. No network, no store.

verifier = Verifier(JwkSet(jwks), Policy(issuer="https://auth.example.com", audience="api"))
claims = verifier.verify(token)
"""

from __future__ import annotations

from authsvc.claims import Claims, Policy
from authsvc.clock import Clock, SystemClock
from authsvc.tokens import JwkSet, VerificationKeys, open_token

__all__ = ["Claims", "JwkSet", "Policy", "Verifier"]


class Verifier:
    """Verifies tokens under one policy. Thread-safe; a new one costs nothing."""

    def __init__(self, keys: VerificationKeys, policy: Policy, *, clock: Clock | None = None) -> None:
        self._keys = keys
        self._policy = policy
        self._clock = clock or SystemClock()

    def verify(self, token: str) -> Claims:
        """The claims of a genuine, living token for this policy. Raises: TokenError; its `code` says why."""
        return open_token(token, self._keys, self._policy, now=self._clock.now())
