"""`POST /login`: the mini-program's code in, a token out."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field

from authsvc.http.context import note
from authsvc.http.guards import place, read_body
from authsvc.http.services import services
from authsvc.login import Caller

MAX_BODY_BYTES: Final = 4096

blueprint = Blueprint("login", __name__)


class LoginRequest(BaseModel):
    """`code` is what wx.login() gave; `appid` is needed where the service serves several apps."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    code: Annotated[str, Field(min_length=1)]
    appid: str | None = None


@blueprint.post("/login")
def log_in() -> tuple[dict[str, Any], dict[str, str]]:
    login = services().login
    # Before the body is read: a client that sends it byte by byte holds a thread for as long.
    with place():
        wanted = read_body(LoginRequest, max_bytes=MAX_BODY_BYTES)
        app = login.app(wanted.appid)
        note(appid=app.appid)
        logged_in = login.log_in(app, wanted.code, _caller())
    note(outcome="ok", user=logged_in.user)
    reply = {"token": logged_in.token, "token_type": "Bearer", "expires_in": logged_in.expires_in_s}
    return reply, {"Cache-Control": "no-store"}


# What WeChat sends with every request of a mini-program, and anybody can send too:
# https://developers.weixin.qq.com/miniprogram/dev/framework/ability/network.html
_REFERER: Final = re.compile(r"https://servicewechat\.com/(wx[0-9A-Za-z]{1,62})/[^/]{1,32}/page-frame\.html")


def _caller() -> Caller:
    named = _REFERER.fullmatch(request.headers.get("Referer", ""))
    return Caller(request.remote_addr or "", named[1] if named else None)
