"""One look at each thing that a service stands on: a host, a disk, a Redis. None takes longer than it is told to."""

from __future__ import annotations

import http.client
import os
import ssl
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from authsvc import deadline
from authsvc.errors import SettingsError
from authsvc.store import redis_address

_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "authsvc-doctor"}
_MOST_BYTES: Final = 65_536


class NoAnswer(Exception):
    """Nothing usable came back. The message says why, and names no path, no query and no password."""


class NotTrusted(NoAnswer):
    """The certificate of the host is not one of it, or not by this machine's clock."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of any status. `date` is the host's own time of the answer, Unix seconds, if it tells one."""

    status: int
    body: bytes = field(repr=False)
    date: int | None


@dataclass(frozen=True, slots=True)
class Disk:
    """What is left where a folder is, for us. Inodes are None where the file system counts none."""

    device: int
    free_bytes: int
    total_bytes: int
    free_inodes: int | None
    total_inodes: int | None


def ask(url: str, *, within_s: float, tls: ssl.SSLContext | None = None) -> Answer:
    """One GET, over in `within_s` seconds whatever the host does; no redirect is followed. `tls` is who is trusted,
    else those whom the system trusts.

    Raises: NoAnswer.
    """
    ends_at = time.monotonic() + within_s
    try:
        parts = urlsplit(url)
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        connection = http.client.HTTPConnection(parts.netloc)
    except (ValueError, http.client.HTTPException):
        raise NoAnswer("not a URL that can be asked") from None
    connection.auto_open = 0  # by itself it would open one without our deadline
    try:
        sock = deadline.connect(host, port, timeout_s=within_s)
        connection.sock = sock
        if parts.scheme == "https":
            context = tls or ssl.create_default_context()
            context.sslsocket_class = deadline.DeadlineTLSSocket
            connection.sock = context.wrap_socket(sock, server_hostname=host)
        connection.sock.settimeout(max(ends_at - time.monotonic(), 0.001))
        connection.request("GET", parts.path or "/", headers=_HEADERS)
        reply = connection.getresponse()
        return Answer(reply.status, reply.read(_MOST_BYTES), _date(reply.headers))
    except ssl.SSLCertVerificationError as error:
        raise NotTrusted(f"the certificate is not trusted ({error.verify_message})") from None
    except TimeoutError:
        raise NoAnswer(f"no answer within {within_s:g} s") from None
    except http.client.HTTPException:
        raise NoAnswer("what answers does not speak HTTP") from None
    except OSError as error:
        raise NoAnswer(f"no connection ({error.strerror or 'nobody answers there'})") from None
    finally:
        connection.close()


def disk_of(folder: Path) -> Disk:
    """The disk of a folder or, as long as there is none, of what it would be made in. Raises: OSError."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return Disk(
        device=folder.stat().st_dev,
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        free_inodes=found.f_favail if found.f_files else None,
        total_inodes=found.f_files or None,
    )


def ping_redis(url: str) -> None:
    """Return if the Redis there answers PING. Raises: NoAnswer."""
    if find_spec("redis") is None:
        raise NoAnswer("redis-py is not installed: pip install 'authsvc[redis]'")
    # redis-py is an extra.
    from redis.exceptions import RedisError

    from authsvc.store.redis import cause
    from authsvc.store.redisclient import redis_client

    try:
        client = redis_client(redis_address(url))
        try:
            client.ping()
        finally:
            client.close()
    except SettingsError:
        raise NoAnswer("not of the form redis://user:password@host:6379/0") from None
    except (RedisError, OSError) as error:
        raise NoAnswer(f"it does not answer PING ({cause(error)})") from None


def _date(headers: http.client.HTTPMessage) -> int | None:
    try:
        date = int(parsedate_to_datetime(headers["Date"]).timestamp())
    except (TypeError, ValueError, OverflowError):
        return None
    age = (headers.get("Age") or "0").strip()
    # RFC 9111, 5.1: so long ago a cache on the way got it.
    return date + int(age) if age.isascii() and age.isdigit() and len(age) < 8 else None
