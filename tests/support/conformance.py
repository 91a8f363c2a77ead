"""Hooks of schemathesis, which runs as a process of its own: codes and data that the sandbox knows, and our own check.

What schemathesis makes up, WeChat does not know; without these no login would ever succeed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import schemathesis
from requests.structures import CaseInsensitiveDict

from tests.support.document import check_reply

SANDBOX_URL: Final = "TEST_SANDBOX_URL"
"""The variable that names the sandbox; a user has 100 logins a minute there, so each has one of its own."""

_USERS: Final = itertools.count()
_TURNS: Final = itertools.count()


def _login(sandbox: str) -> dict[str, str]:
    return _order(sandbox, "code", user=f"visitor-{next(_USERS)}")


def _phone(sandbox: str) -> dict[str, str]:
    return _order(sandbox, "phone_code", user="user-1")


def _open_data(sandbox: str) -> dict[str, str]:
    return _order(sandbox, "open_data", user="user-1")


_MADE: Final = {
    "/login": _login,
    "/session/phone": _phone,
    "/session/decrypt": _open_data,
    "/session/verify": _open_data,
}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Puts something real into every second body that could be one."""
    make = _MADE.get(case.path)
    meta = case.meta
    if make is None or meta is None or not meta.generation.mode.is_positive or not isinstance(case.body, Mapping):
        return
    if next(_TURNS) % 2 == 0:
        real = make(os.environ[SANDBOX_URL])
        case.body = {name: real.get(name, value) for name, value in case.body.items()}


@schemathesis.check
def is_as_documented(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Stricter than their own: no member, header or body that is not described."""
    request = response.request
    check_reply(
        case.operation.schema.raw_schema,
        method=str(request.method),
        path=urlsplit(str(request.url)).path,
        status=response.status_code,
        headers=CaseInsensitiveDict({name: ", ".join(values) for name, values in response.headers.items()}),
        body=response.content,
    )


def _order(sandbox: str, what: str, **members: str) -> dict[str, str]:
    reply = requests.post(f"{sandbox}/sandbox/{what}", json=members, timeout=10)
    made: dict[str, str] = reply.json()
    return made
