"""`GET /metrics`, for operators: there is nothing here while AUTHSVC_OPS_TOKEN is not set."""

from __future__ import annotations

import hashlib
import hmac

from flask import Blueprint, Response, request

from authsvc.errors import OpsTokenInvalid
from authsvc.http.services import services
from authsvc.verifier.bearer import credentials

blueprint = Blueprint("operators", __name__)


@blueprint.before_request
def _identify() -> None:
    if request.method == "OPTIONS":
        return
    given = credentials(request.headers.get("Authorization", "")) or ""
    digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
    # Digests: the time tells neither how long the token is nor how much of it is right.
    known = services().ops_token_digest
    if known is None or not hmac.compare_digest(digest, known):
        raise OpsTokenInvalid("the Bearer token is missing, or is not AUTHSVC_OPS_TOKEN")


@blueprint.get("/metrics")
def metrics() -> Response:
    found = services().metrics
    assert found is not None
    reply = Response(found.text(), content_type=found.content_type)
    reply.headers["Cache-Control"] = "no-store"
    return reply
