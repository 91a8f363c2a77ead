"""`/healthz`: the process answers. `/readyz`: it can sign, which is what it is here for."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from authsvc.errors import KeysError, StoreUnavailable
from authsvc.http.problems import problem_reply
from authsvc.http.services import services

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> tuple[dict[str, str], dict[str, str]]:
    return {"status": "ok"}, {"Cache-Control": "no-store"}


@blueprint.get("/readyz")
def readyz() -> tuple[dict[str, Any], dict[str, str]] | Response:
    # The store and WeChat do not decide: without them checklogin and the JWKS go on, and taking the service out of the
    # load balancer would stop those too.
    parts = {"store": _store(), "wechat": services().wechat.health}
    try:
        keyring = services().keys()
        kid = keyring.prove_signing(now=services().clock.now())
    except KeysError:
        return problem_reply("keys_unusable", keys="unusable", **parts)
    # What is in force goes on signing while a newer manifest cannot be read; the log says why.
    keys = "ok" if services().keys_are_current() else "not reloaded"
    found = {"status": "ready", "keys": keys, "generation": keyring.keyset.generation, "kid": kid, **parts}
    return found, {"Cache-Control": "no-store"}


def _store() -> str:
    try:
        services().store.ping()
    except StoreUnavailable:
        return "unavailable"
    return "ok"
