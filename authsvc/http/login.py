"""`POST /login`: the mini-program's code in, a token out."""

from __future__ import annotations

import re
from typing import Annotated, Final

from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field

from authsvc.http.clients import client_address
from authsvc.http.context import note
from authsvc.http.guards import CODE_PATTERN, place, read_body
from authsvc.http.replies import LoginReply
from authsvc.http.services import services
from authsvc.login import Caller

MAX_BODY_BYTES: Final = 4096

blueprint = Blueprint("login", __name__)


class LoginRequest(BaseModel):
    """What a mini-program sends after wx.login()."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    code: Annotated[
        str, Field(min_length=1, json_schema_extra={"pattern": CODE_PATTERN}, description="What wx.login() gave.")
    ]
    appid: Annotated[
        str | None,
        Field(
            json_schema_extra={"pattern": "^[0-9A-Za-z_-]{1,64}$"},
            description="The mini-program's own; may be left out where the service serves one alone.",
        ),
    ] = None


@blueprint.post("/login")
def log_in() -> tuple[LoginReply, dict[str, str]]:
    login = services().login
    wanted = read_body(LoginRequest, max_bytes=MAX_BODY_BYTES)
    with place():
        app = login.app(wanted.appid)
        note(appid=app.appid)
        logged_in = login.log_in(app, wanted.code, _caller())
    note(outcome="ok", user=logged_in.user)
    reply: LoginReply = {"token": logged_in.token, "token_type": "Bearer", "expires_in": logged_in.expires_in_s}
    return reply, {"Cache-Control": "no-store"}


# What WeChat sends with every request of a mini-program, and anybody can send too:
# https://developers.weixin.qq.com/miniprogram/dev/framework/ability/network.html
_REFERER: Final = re.compile(r"https://servicewechat\.com/(wx[0-9A-Za-z]{1,62})/[^/]{1,32}/page-frame\.html")


def _caller() -> Caller:
    named = _REFERER.fullmatch(request.headers.get("Referer", ""))
    return Caller(client_address(), named[1] if named else None)
