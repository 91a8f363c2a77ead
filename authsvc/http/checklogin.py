"""`GET /checklogin`: whether a token is good, from the token alone. No store, no session, no network."""

from __future__ import annotations

from flask import Blueprint, request

from authsvc.errors import TokenError, TokenMalformed, TokenMissing
from authsvc.http.context import note, note_token
from authsvc.http.replies import CheckLoginReply
from authsvc.http.services import services
from authsvc.verifier.bearer import credentials, is_bearer

blueprint = Blueprint("checklogin", __name__)


@blueprint.get("/checklogin")
def check_login() -> tuple[CheckLoginReply, dict[str, str]]:
    now = services().clock.now()
    refused_for = None
    try:
        token = presented_token(request.args.getlist("token"), request.headers.getlist("Authorization"))
        claims = services().verifier.verify(token)
        answer: CheckLoginReply = {"is_login": True, "expires_in": max(claims.expires_at - now, 0)}
    except TokenError as error:
        refused_for = error.code
        answer = {"is_login": False, "reason": refused_for}
    note(outcome=refused_for or "ok")
    note_token(refused_for)
    return answer, {"Cache-Control": "no-store"}


def presented_token(parameters: list[str], authorizations: list[str]) -> str:
    """The one token of a request, from the query or the header (RFC 6750, 2.1 and 2.3).

    Raises: TokenMissing; TokenMalformed for more than one, whichever of them would be good.
    """
    # A server may hand two headers over as one, with a comma between them (RFC 9110, 5.3); no token has a comma in it.
    headers = [part for value in authorizations for part in value.split(",")]
    if len(parameters) > 1 or (len(headers) > 1 and any(map(is_bearer, headers))):
        raise TokenMalformed("more than one token")
    tokens = {token for token in (*parameters, *map(credentials, authorizations)) if token}
    if not tokens:
        raise TokenMissing("no token")
    if len(tokens) > 1:
        raise TokenMalformed("the query and the header differ")
    return tokens.pop()
