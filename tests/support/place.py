"""A working folder of the service, with keys, a side store, and an operator who gives commands."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from authsvc.keyfiles import KeyFolder
from authsvc.keyset import Lifecycle, Purpose
from authsvc.sessionkeys import sealed_login
from authsvc.store import AuditLine, Store, UserId, open_store, prepare_store
from authsvc.users import Users, adopt
from tests.support.service import APPID, authsvc
from tests.support.users import rows_of

OPENID: Final = "oUser_of-the-test"
SESSION_KEY: Final = "tiihtNczf5v6AKRyjwEUhQ=="


class Place:
    """A working folder with keys, and a store with what a test puts there."""

    def __init__(self, path: Path, url: str, *, hashed: bool = False) -> None:
        self.path = path
        self.url = url
        self.settings = {"STORE": url, "APPID": APPID} | ({"STORE_OPENID": "hash"} if hashed else {})
        self.now = int(time.time())
        folder = KeyFolder(path / "keys")
        folder.init(
            alg="ES256", purpose=Purpose.PRODUCTION, lifecycle=Lifecycle(), now=self.now - 60, random_bytes=os.urandom
        )
        self.keyring = folder.load(now=self.now)
        self.users = Users(keys=lambda: self.keyring, hashed=hashed)
        prepare_store(url)
        self.store: Store = open_store(url)
        adopt(self.store, self.users, now=self.now)

    def user(self, openid: str = OPENID, appid: str = APPID) -> UserId:
        return self.users.user(appid, openid)

    def log_in(
        self, sid: str = "sid-1", *, openid: str = OPENID, appid: str = APPID, at: int | None = None, ttl_s: int = 3600
    ) -> None:
        at = self.now if at is None else at
        row = sealed_login(
            SESSION_KEY,
            self.keyring,
            user=self.user(openid, appid),
            sid=sid,
            started_at_us=at * 1_000_000,
            created_at=at,
            expires_at=at + ttl_s,
            now=self.now,
            random_bytes=os.urandom,
        )
        self.store.put_login(row, unionid="uUnion")

    def run(
        self, *args: str, status: int = 0, settings: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.CompletedProcess[str]:
        """`authsvc` with these arguments."""
        done = authsvc(*args, cwd=self.path, **(self.settings | dict(settings)))
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def json(self, *args: str, status: int = 0, settings: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*args, "--json", status=status, settings=settings).stdout)
        return found

    def lines(self) -> list[AuditLine]:
        rows = rows_of(self.store, AuditLine)
        return sorted((row for row in rows if isinstance(row, AuditLine)), key=lambda line: (line.at, line.what))
