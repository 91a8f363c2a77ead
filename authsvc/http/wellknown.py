"""What verifiers read: the public keys, and where they are (RFC 7517, RFC 8414, OpenID Connect Discovery 1.0)."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from flask import Blueprint, Response, request

from authsvc.http.services import services
from authsvc.keyset import JWKS_STALE_IF_ERROR_S, Keyset

blueprint = Blueprint("wellknown", __name__)


@blueprint.get("/.well-known/jwks.json")
def jwks() -> Response:
    keyring, now = services().keys(), services().clock.now()
    return _cacheable(keyring.jwks(now=now), keyring.keyset, now=now)


@blueprint.get("/.well-known/openid-configuration")
@blueprint.get("/.well-known/oauth-authorization-server")
def metadata() -> Response:
    issuer = services().issuer
    keyring, now = services().keys(), services().clock.now()
    return _cacheable(
        {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/.well-known/jwks.json",
            "id_token_signing_alg_values_supported": list(keyring.published_algorithms(now=now)),
            # There is no authorization endpoint: tokens come from POST /login. Verifiers read only the members above;
            # the two below are what Discovery requires, as the Kubernetes API server answers them.
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
        },
        keyring.keyset,
        now=now,
    )


def cache_control(keyset: Keyset, *, now: int) -> str:
    """How long caches may keep what is published (RFC 9111, RFC 5861)."""
    lifecycle = keyset.lifecycle
    if keyset.revoked_lately(now=now):
        # Whatever is cached from now on is looked at again soon, and not served stale: in an emergency one revocation
        # is often not the last.
        return f"public, max-age={min(_MAX_AGE_AFTER_REVOCATION_S, lifecycle.jwks_max_age_s)}, must-revalidate"
    # The lead of a rotation counts on these figures: the policy in the manifest has them. stale-if-error keeps
    # verifiers going while this service is down.
    return (
        f"public, max-age={lifecycle.jwks_max_age_s}, "
        f"stale-while-revalidate={lifecycle.jwks_stale_while_revalidate_s}, stale-if-error={JWKS_STALE_IF_ERROR_S}"
    )


_MAX_AGE_AFTER_REVOCATION_S: Final = 30


def _cacheable(document: dict[str, Any], keyset: Keyset, *, now: int) -> Response:
    body = json.dumps(document, separators=(",", ":")).encode("utf-8")
    reply = Response(body, mimetype="application/json")
    reply.headers["Cache-Control"] = cache_control(keyset, now=now)
    etag = hashlib.sha256(body).hexdigest()[:32]
    reply.set_etag(etag)
    if request.if_none_match.contains(etag):
        # RFC 9110, 13.1.2. The other preconditions are for writers, and nothing is written here.
        reply.status_code = 304
        reply.set_data(b"")
    return reply
