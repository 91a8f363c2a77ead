"""`/healthz`: the process answers. `/readyz`: it can sign, which is what it is here for."""

from __future__ import annotations

from typing import Literal

from flask import Blueprint, Response

from authsvc.errors import KeysError, StoreUnavailable
from authsvc.http.problems import problem_reply
from authsvc.http.replies import HealthReply, ReadyParts, ReadyReply
from authsvc.http.services import services

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> tuple[HealthReply, dict[str, str]]:
    return {"status": "ok"}, {"Cache-Control": "no-store"}


@blueprint.get("/readyz")
def readyz() -> tuple[ReadyReply, dict[str, str]] | Response:
    # The store and WeChat do not decide: without them checklogin and the JWKS go on, and taking the service out of the
    # load balancer would stop those too.
    parts: ReadyParts = {"store": _store(), "wechat": services().wechat.health}
    try:
        keyring = services().keys()
        kid = keyring.prove_signing(now=services().clock.now())
    except KeysError:
        return problem_reply("keys_unusable", keys="unusable", **parts)
    # What is in force goes on signing while a newer manifest cannot be read; the log says why.
    found: ReadyReply = {
        "status": "ready",
        "keys": "ok" if services().keys_are_current() else "not reloaded",
        "generation": keyring.keyset.generation,
        "kid": kid,
        **parts,
    }
    return found, {"Cache-Control": "no-store"}


def _store() -> Literal["ok", "unavailable"]:
    try:
        services().store.ping()
    except StoreUnavailable:
        return "unavailable"
    return "ok"
