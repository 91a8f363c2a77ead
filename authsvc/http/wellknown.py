"""What verifiers read: the public keys, and where they are (RFC 7517, RFC 8414, OpenID Connect Discovery 1.0)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from flask import Blueprint, Response, request

from authsvc.http.services import services

blueprint = Blueprint("wellknown", __name__)


@blueprint.get("/.well-known/jwks.json")
def jwks() -> Response:
    now = services().clock.now()
    return _cacheable(services().keys().jwks(now=now))


@blueprint.get("/.well-known/openid-configuration")
@blueprint.get("/.well-known/oauth-authorization-server")
def metadata() -> Response:
    issuer = services().issuer
    now = services().clock.now()
    return _cacheable(
        {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/.well-known/jwks.json",
            "id_token_signing_alg_values_supported": list(services().keys().published_algorithms(now=now)),
            # There is no authorization endpoint: tokens come from POST /login. Verifiers read only the members above;
            # the two below are what Discovery requires, as the Kubernetes API server answers them.
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
        }
    )


def _cacheable(document: dict[str, Any]) -> Response:
    body = json.dumps(document, separators=(",", ":")).encode("utf-8")
    lifecycle = services().keys().keyset.lifecycle
    reply = Response(body, mimetype="application/json")
    # The lead of a rotation counts on these figures: the policy in the manifest has them. stale-if-error keeps
    # verifiers going while this service is down (RFC 5861).
    reply.headers["Cache-Control"] = (
        f"public, max-age={lifecycle.jwks_max_age_s}, "
        f"stale-while-revalidate={lifecycle.jwks_stale_while_revalidate_s}, stale-if-error=3600"
    )
    etag = hashlib.sha256(body).hexdigest()[:32]
    reply.set_etag(etag)
    if request.if_none_match.contains(etag):
        # RFC 9110, 13.1.2. The other preconditions are for writers, and nothing is written here.
        reply.status_code = 304
        reply.set_data(b"")
    return reply
