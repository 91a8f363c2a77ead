"""The mini-program's side: `auth.js`, the client library, and the smallest mini-program that uses it.

They are JavaScript, and go into mini-programs; here is only what writes them out.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from authsvc.errors import CannotWrite, SettingsError

# What is written out: all that lies here but this module and the README.
FILES: Final = (
    "app.js",
    "app.json",
    "app.wxss",
    "auth.js",
    "errors.js",
    "pages/index/index.js",
    "pages/index/index.json",
    "pages/index/index.wxml",
    "pages/index/index.wxss",
    "project.config.json",
    "sitemap.json",
)

_APPID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_WECHATS_APPID: Final = re.compile(r"wx[0-9a-f]{16}")
# So narrow that an address needs no quotes and means nothing more in JavaScript.
_URL: Final = re.compile(r"https?://[0-9A-Za-z.-]+(:[0-9]{1,5})?(/[0-9A-Za-z._~-]+)*")
_MAX_PORT: Final = 65_535
_THIS_MACHINE: Final = ("localhost", "127.0.0.1")


def project(*, url: str, appid: str) -> dict[str, bytes]:
    """Path → content of a mini-program that logs in at the service `url`.

    Raises: SettingsError with every problem.
    """
    url = url.rstrip("/")
    problems = [*_url_problems(url), *_appid_problems(appid)]
    if problems:
        raise SettingsError(problems)
    folder = files(__name__)
    written = {name: folder.joinpath(name).read_bytes() for name in FILES}
    written["app.js"] = written["app.js"].replace(b"{{url}}", url.encode())
    config = json.loads(written["project.config.json"])
    config["appid"] = appid
    # DevTools takes no http and no bare address while it checks domains; for a real one the check is as on the phone.
    config["setting"]["urlCheck"] = url.startswith("https:")
    written["project.config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return written


def warnings(*, url: str, appid: str) -> list[str]:
    """What is allowed, and will not do on a phone."""
    said = []
    host = urlsplit(url).hostname or ""
    if url.startswith("http:"):
        said.append(
            f"{url} works in DevTools on this machine alone: a phone needs https, and a domain that is in the list of "
            "request domains at mp.weixin.qq.com"
        )
    elif host in _THIS_MACHINE or _is_address(host):
        said.append(f"{host} cannot be put into the list of request domains: a phone needs a domain name")
    if not _WECHATS_APPID.fullmatch(appid):
        said.append(f"{appid} does not look like an appid of WeChat's (wx and 16 of 0-9 and a-f)")
    return said


def write(project: dict[str, bytes], folder: Path) -> Path:
    """Make `folder` with all of it, or, if that fails, nothing. One that is there has to be empty.

    Raises: CannotWrite.
    """
    target = folder.resolve()
    if target == Path.cwd():
        # It is replaced as a whole, and whoever stands in it would be left in one that is no more.
        raise CannotWrite(f"{target} is the folder that you are in; name one in it, or go one up")
    _check_free(target)
    if not target.parent.is_dir():
        raise CannotWrite(f"{target.parent}, where it is to be made, is no folder; make that first")
    making = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        try:
            for name, content in project.items():
                path = making / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            # Replaces an empty folder, and fails on one that something has come into by now.
            making.rename(target)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        _check_free(target)
        raise CannotWrite(f"{target} cannot be written: {error.strerror}") from error
    return target


def _check_free(target: Path) -> None:
    try:
        empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        raise CannotWrite(f"{target} cannot be read: {error.strerror}") from error
    if not empty:
        what = "has something in it" if target.is_dir() else "is a file"
        raise CannotWrite(f"{target} {what}, and nothing is overwritten; name a folder that is new or empty")


def _url_problems(url: str) -> list[str]:
    parts = urlsplit(url) if _URL.fullmatch(url) else None
    if parts is None or (":" in parts.netloc and int(parts.netloc.rpartition(":")[2]) > _MAX_PORT):
        return ["--url is the address of the service, like https://auth.example.com: in ASCII, without user, ? and #"]
    if parts.scheme == "http" and parts.hostname not in _THIS_MACHINE:
        return ["--url is plain http, which anybody on the way can read: a phone needs https; http is for localhost"]
    if parts.hostname is not None and parts.hostname.endswith(".weixin.qq.com"):
        return ["--url is WeChat's, which mini-programs may not ask; give the address of your own service"]
    return []


def _appid_problems(appid: str) -> list[str]:
    return [] if _APPID.fullmatch(appid) else ["--appid is not 1 to 64 characters of 0-9, A-Z, a-z, _ and -"]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
