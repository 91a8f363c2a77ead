"""Who gives a command, and the line that it leaves in the audit log: on standard error, as the service has its log."""

from __future__ import annotations

import getpass
import os
import socket
import sys

from authsvc.audit import log_key_act, log_store_act, log_user_act
from authsvc.cli.place import Place
from authsvc.keyfiles import Change
from authsvc.keyset import Keyset
from authsvc.store import AuditLine
from authsvc.telemetry import configure_logging


def operator() -> str:
    """The user of this machine, and the machine."""
    return f"{_machine_user()}@{socket.gethostname()}"


def _machine_user() -> str:
    # Who became root for it is told apart from root.
    name = os.environ.get("SUDO_USER", "")
    if name and name.isprintable() and name.isascii():
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"  # of a container, say, which has no name for it


# Logging is set up with the line and not before: a command that changes nothing has nothing to say there.


def log_change(what: str, change: Change, *, now: int) -> None:
    """Right after the change: what comes then may fail."""
    if change.is_one:
        configure_logging(sys.stderr)
        log_key_act(what, change.before, change.after, by=operator(), now=now)


def log_first_keys(keyset: Keyset, *, now: int) -> None:
    configure_logging(sys.stderr)
    log_key_act("keys_made", None, keyset, by=operator(), now=now)


def log_user(what: str, here: Place, openid: str, line: AuditLine) -> None:
    configure_logging(sys.stderr)
    user = here.keyring.pseudonym(line.appid, openid)
    log_user_act(what, by=line.actor, appid=line.appid, user=user, reason=line.reason)


def log_store(what: str, **about: str) -> None:
    configure_logging(sys.stderr)
    log_store_act(what, by=operator(), **about)
