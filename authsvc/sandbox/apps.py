"""The apps that the sandbox was started with, and their secrets."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Final

from authsvc.errors import BadRequest, SettingsError
from authsvc.sandbox.errcodes import Refusal

_APPID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SECRET: Final = re.compile(r"[!-~]{1,128}")


class Apps:
    """Raises: SettingsError for no app, or an appid or a secret that WeChat would not give out."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        problems = [] if secrets else ["the sandbox needs an app"]
        for number, (appid, secret) in enumerate(secrets.items(), start=1):
            if not _APPID.fullmatch(appid):
                problems.append(f"app {number}: an appid is 1 to 64 of 0-9A-Za-z_-")
            if not _SECRET.fullmatch(secret):
                problems.append(f"app {number}: a secret is 1 to 128 visible ASCII characters")
        if problems:
            raise SettingsError(problems)
        self._secrets = dict(secrets)
        self.appids = tuple(secrets)

    def check_known(self, appid: str) -> None:
        """Raises: BadRequest."""
        if appid not in self._secrets:
            raise BadRequest("this sandbox has no such app")

    def authenticated(self, appid: str | None, secret: str | None, grant_type: str | None, *, wanted: str) -> str:
        """The appid, if the secret is its own and `grant_type` the wanted one.

        Raises: Refusal 41002, 41004, 40002, 40013 or 40125, whichever comes first in this order.
        """
        if not appid:
            raise Refusal(41002)
        if not secret:
            raise Refusal(41004)
        if grant_type != wanted:
            raise Refusal(40002)
        expected = self._secrets.get(appid)
        if expected is None:
            raise Refusal(40013)
        if not hmac.compare_digest(secret.encode("utf-8", "replace"), expected.encode()):
            raise Refusal(40125)
        return appid
