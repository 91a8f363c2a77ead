"""The door for whoever has to trust a token: `Verifier("https://auth.example.com", audience="api").verify(token)`.

Claims, or a TokenError (401), or KeysUnavailable (503). It needs PyJWT and cryptography alone.
"""

from __future__ import annotations

from authsvc.claims import Claims, Policy
from authsvc.tokens import JwkSet
from authsvc.verifier.core import Verifier
from authsvc.verifier.remote import IssuerKeys, RemoteKeys
from authsvc.verifier.sources import FileKeys, KeySource

__all__ = ["Claims", "FileKeys", "IssuerKeys", "JwkSet", "KeySource", "Policy", "RemoteKeys", "Verifier"]
