"""`GET /checklogin`: whether a token is good, from the token alone. No store, no session, no network."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, request

from authsvc.errors import TokenError, TokenMalformed, TokenMissing
from authsvc.http.context import note, note_token
from authsvc.http.replies import CheckLoginReply
from authsvc.http.services import Services, services
from authsvc.verifier.bearer import credentials, is_bearer

PATH: Final = "/checklogin"

blueprint = Blueprint("checklogin", __name__)


@blueprint.get(PATH)
def check_login() -> tuple[CheckLoginReply, dict[str, str]]:
    answer, refused_for = checked(services(), request.args.getlist("token"), request.headers.getlist("Authorization"))
    note(outcome=refused_for or "ok")
    note_token(refused_for)
    return answer, {"Cache-Control": "no-store"}


def checked(services: Services, parameters: list[str], authorizations: list[str]) -> tuple[CheckLoginReply, str | None]:
    """The answer, and the code of the TokenError if it is no."""
    now = services.clock.now()
    try:
        claims = services.verifier.verify(presented_token(parameters, authorizations))
    except TokenError as error:
        return {"is_login": False, "reason": error.code}, error.code
    return {"is_login": True, "expires_in": max(claims.expires_at - now, 0)}, None


def presented_token(parameters: list[str], authorizations: list[str]) -> str:
    """The one token of a request, from the query or the header (RFC 6750, 2.1 and 2.3).

    Raises: TokenMissing; TokenMalformed for more than one, whichever of them would be good.
    """
    if len(parameters) == 1 and parameters[0] and not authorizations:
        return parameters[0]  # as nearly all of them are
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
