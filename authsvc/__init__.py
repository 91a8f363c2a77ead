"""Login for WeChat mini-programs: a code in, a signed token out, verified by anyone with no lookup.

The names below are the verifying side, which needs PyJWT and cryptography alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from authsvc.errors import KeysUnavailable, TokenError
    from authsvc.verifier import Claims, FileKeys, IssuerKeys, JwkSet, Policy, RemoteKeys, Verifier

__all__ = [
    "Claims",
    "FileKeys",
    "IssuerKeys",
    "JwkSet",
    "KeysUnavailable",
    "Policy",
    "RemoteKeys",
    "TokenError",
    "Verifier",
]


def __getattr__(name: str) -> Any:
    # Looked up when asked for: `import authsvc.errors` must not load a cryptography library.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from authsvc import errors, verifier

    return getattr(verifier, name, None) or getattr(errors, name)
