"""The commands on one user: look, ban, forget, give out what is known. Each has `--json`, and leaves an audit line."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, Final, Literal

import click
from rich.table import Table
from rich.text import Text

from authsvc.cli.acts import log_user, operator
from authsvc.cli.place import Place, place
from authsvc.cli.shared import confirm, console, local_time, plain_errors, relative
from authsvc.clock import SystemClock
from authsvc.errors import SealBroken, SettingsError
from authsvc.sealing import sealing_key_id
from authsvc.sessionkeys import kept_session_key
from authsvc.store import STATE_BANNED, AuditLine, LoginRow, UserId, UserRow
from authsvc.storecopy import check_not_moving

_OPENID: Final = re.compile(r"[0-9A-Za-z_-]{1,128}")
_APPID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MAX_REASON_CHARS: Final = 200
_MAX_ACTOR_CHARS: Final = 128
_LINE_ID_BYTES: Final = 16
_AT_ONCE: Final = 500

_NOTHING_TO_DO: Final = 1


@click.group("user")
def user_commands() -> None:
    """A user in the side store: show, ban, unban, forget, export; and who did that to whom."""


def _line(text: str | None, most: int, what: str) -> str | None:
    if text is not None and (len(text) > most or not text.isprintable()):
        raise click.UsageError(f"{what} is one line of at most {most} characters")
    return text


_openid = click.argument("openid")
_appid = click.option("--appid", help="Of which mini-program; may be left out where the settings name one alone.")
_reason = click.option("--reason", default="", help="Kept in the audit log, for good: no personal data.")
_by = click.option("--by", help="Who gives the command.  [default: the user of this machine]")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, times as Unix seconds.")


# ---- look ---------------------------------------------------------------------------------------


@user_commands.command("show")
@_openid
@_appid
@_json
@plain_errors
def user_show(openid: str, appid: str | None, as_json: bool) -> None:
    """What the side store knows of a user; ends with status 1 if that is nothing."""
    with place() as here:
        user = _user(here, openid, appid)
        known, now = here.store.user(user), SystemClock().now()
        logins = here.store.logins(user, now=now)
        found = _found(here, openid, user, known, logins, now=now)
    if as_json:
        _print_json(**found)
    elif known is None:
        click.echo(f"Nothing is known of {openid} in {user.appid}.")
    else:
        console().print(_user_table(found, now=now))
        if logins:
            console().print(_logins_table(found["logins"], now=now))
    sys.exit(0 if known is not None else _NOTHING_TO_DO)


@user_commands.command("export")
@_openid
@_appid
@_reason
@_by
@plain_errors
def user_export(openid: str, appid: str | None, reason: str, by: str | None) -> None:
    """Everything that is kept of a user, as JSON: to give it to that user. The session_key itself is not in it.

    Ends with status 1 if nothing is known.
    """
    with place() as here:
        user = _user(here, openid, appid)
        known, now = here.store.user(user), SystemClock().now()
        found = _found(here, openid, user, known, here.store.logins(user, now=now), now=now)
        # Not who did it, and why: that is about others.
        found["audit"] = [{"at": line.at, "what": line.what} for line in _lines_of(here, user)]
        if known is not None:
            line = _audit_line("export", user, by=by, reason=reason)
            here.store.note(line)
            log_user("user_exported", here, openid, line)
    _print_json(exported_at=now, **found)
    sys.exit(0 if known is not None else _NOTHING_TO_DO)


@user_commands.command("audit")
@click.argument("openid", required=False)
@_appid
@_json
@plain_errors
def user_audit(openid: str | None, appid: str | None, as_json: bool) -> None:
    """Who did what to users, of OPENID alone if one is named; the newest last."""
    with place() as here:
        user = _user(here, openid, appid) if openid is not None else None
        lines = _lines_of(here, user)
    if as_json:
        _print_json(lines=[_audit_json(line) for line in lines])
        return
    table = Table("when", "who", "did", "appid", "user (digest)", "reason")
    for line in lines:
        # As text: a reason in square brackets is no markup of rich.
        cells = (line.actor, line.what, line.appid, line.digest, line.reason)
        table.add_row(local_time(line.at), *map(Text, cells))
    console().print(table)


# ---- act ----------------------------------------------------------------------------------------


@user_commands.command("ban")
@_openid
@_appid
@_reason
@_by
@_json
@plain_errors
def user_ban(openid: str, appid: str | None, reason: str, by: str | None, as_json: bool) -> None:
    """Let the user in no more; also one who has not come yet."""
    with place() as here:
        user = _user(here, openid, appid)
        known = here.store.user(user)
        line = _audit_line("ban", user, by=by, reason=reason)
        changed = here.store.ban(user, line=line)
        if changed:
            log_user("user_banned", here, openid, line)
    said = (
        f"{openid} is banned in {user.appid}: no login, no /session route. Tokens that are out are good until they end."
        if changed
        else f"{openid} is banned in {user.appid} already; nothing was changed."
    )
    if known is None:
        said += " Nobody has ever logged in there with this openid: is it the right one?"
    _tell(as_json, said, changed=changed, known=known is not None)


@user_commands.command("unban")
@_openid
@_appid
@_reason
@_by
@_json
@plain_errors
def user_unban(openid: str, appid: str | None, reason: str, by: str | None, as_json: bool) -> None:
    """Let a banned user in again, also one who is forgotten."""
    with place() as here:
        check_not_moving(here.store, now=SystemClock().now())
        user = _user(here, openid, appid)
        line = _audit_line("unban", user, by=by, reason=reason)
        changed = here.store.unban(user, line=line)
        if changed:
            log_user("user_unbanned", here, openid, line)
    said = f"{openid} may log in to {user.appid} again." if changed else f"{openid} is not banned in {user.appid}."
    _tell(as_json, said, changed=changed)


@user_commands.command("forget")
@_openid
@_appid
@_reason
@_by
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
@plain_errors
def user_forget(openid: str, appid: str | None, reason: str, by: str | None, yes: bool, as_json: bool) -> None:
    """Erase all rows of the user. Ends with status 1 if there are none.

    What stays: an audit line with a keyed hash in place of the openid and, of a banned user, that hash in the ban list,
    so that forgetting lifts no ban.
    """
    with place() as here:
        user = _user(here, openid, appid)
        known = here.store.user(user)
        if known is not None and known.first_login_at and not yes:
            click.echo(f"All rows of {openid} in {user.appid} will be erased. That cannot be undone.", err=as_json)
            confirm(as_json=as_json)
        # Not before: an operator may take minutes to answer.
        check_not_moving(here.store, now=SystemClock().now())
        line = _audit_line("forget", user, by=by, reason=reason)
        gone = here.store.forget(user, line=line)
        if gone is not None:
            log_user("user_forgotten", here, openid, line)
    if gone is None:
        what = "Nothing is known" if known is None else "Nothing but the ban, under a keyed hash, is known"
        _tell(as_json, f"{what} of {openid} in {user.appid}; nothing was changed.", changed=False)
        sys.exit(_NOTHING_TO_DO)
    stays = known is not None and known.state == STATE_BANNED
    said = f"{openid} is forgotten in {user.appid}; {gone} login{'' if gone == 1 else 's'} erased." + (
        " The ban stays, under a keyed hash." if stays else ""
    )
    _tell(as_json, said, changed=True, logins=gone, ban_stays=stays)


# ---- what they have in common -------------------------------------------------------------------


def _user(here: Place, openid: str, appid: str | None) -> UserId:
    known = here.settings.appids
    if appid is None:
        if len(known) != 1:
            raise click.UsageError(
                "of which mini-program? Give --appid" + (f", one of {', '.join(known)}" if known else "")
            )
        appid = known[0]
    elif known and appid not in known:
        click.echo(f"note: {appid} is none of the mini-programs in the settings ({', '.join(known)})", err=True)
    if not _OPENID.fullmatch(openid) or not _APPID.fullmatch(appid):
        raise SettingsError(["an openid is 1 to 128, an appid 1 to 64 characters of 0-9, A-Z, a-z, _ and -"])
    return here.users.user(appid, openid)


def _audit_line(
    what: Literal["ban", "unban", "forget", "export"], user: UserId, *, by: str | None, reason: str
) -> AuditLine:
    _line(reason, _MAX_REASON_CHARS, "a reason")
    actor = _line(by, _MAX_ACTOR_CHARS, "--by")
    if actor is None:
        actor = operator()[:_MAX_ACTOR_CHARS]
    if not actor.strip():
        raise click.UsageError("--by is empty")
    line_id = os.urandom(_LINE_ID_BYTES).hex()
    return AuditLine(line_id, SystemClock().now(), actor, what, user.appid, user.digest, reason)


def _lines_of(here: Place, user: UserId | None) -> list[AuditLine]:
    lines: list[AuditLine] = []
    after: str | None = ""
    while after is not None:
        rows, after = here.store.page(AuditLine, after=after, at_most=_AT_ONCE, identify=here.users.stored)
        lines += [row for row in rows if isinstance(row, AuditLine) and (user is None or row.digest == user.digest)]
    return sorted(lines, key=lambda line: (line.at, line.id))


def _found(
    here: Place, openid: str, user: UserId, known: UserRow | None, logins: tuple[LoginRow, ...], *, now: int
) -> dict[str, Any]:
    return {
        "appid": user.appid,
        "openid": openid,
        "known": known is not None,
        "digest": user.digest,
        "user_in_log": here.keyring.pseudonym(user.appid, openid),
        "state": known.state if known else None,
        "state_since": known.state_since or None if known else None,
        "unionid": known.unionid if known else None,
        "first_login_at": known.first_login_at or None if known else None,
        "last_login_at": known.last_login_at or None if known else None,
        "logins": [
            {
                "sid": login.sid,
                "created_at": login.created_at,
                "expires_at": login.expires_at,
                "sealing_key": _key_of(login),
                "opens": _opens(here, login, now=now),
            }
            for login in logins
        ],
    }


def _key_of(login: LoginRow) -> str | None:
    try:
        return sealing_key_id(login.sealed_session_key)
    except SealBroken:
        return None


def _opens(here: Place, login: LoginRow, *, now: int) -> bool:
    try:
        kept_session_key(login, here.keyring, now=now)
    except SealBroken:
        return False
    return True


def _audit_json(line: AuditLine) -> dict[str, Any]:
    return {"at": line.at, "by": line.actor, "what": line.what, "appid": line.appid, "digest": line.digest} | (
        {"reason": line.reason} if line.reason else {}
    )


_STATES: Final[dict[int, str]] = {0: "banned", 1: "may log in"}


def _user_table(found: dict[str, Any], *, now: int) -> Table:
    def when(at: int | None) -> str:
        return f"{local_time(at)}, {relative(at, now=now)}" if at else "none, or forgotten"

    state = _STATES.get(found["state"], str(found["state"]))
    since = f", since {when(found['state_since'])}" if found["state_since"] else ""
    rows: dict[str, str] = {
        "appid": found["appid"],
        "openid": found["openid"],
        "in the audit log": found["digest"],
        "in the service's log": found["user_in_log"],
        "state": state + since,
        "unionid": found["unionid"] or "unknown",
        "first login": when(found["first_login_at"]),
        "last login": when(found["last_login_at"]),
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _logins_table(logins: list[dict[str, Any]], *, now: int) -> Table:
    table = Table("login (sid)", "at", "ends", "sealed under", "opens")
    for login in logins:
        table.add_row(
            Text(login["sid"]),
            local_time(login["created_at"]),
            relative(login["expires_at"], now=now),
            login["sealing_key"] or "unknown",
            "yes" if login["opens"] else "NO",
        )
    return table


def _tell(as_json: bool, said: str, **members: Any) -> None:
    if as_json:
        _print_json(message=said, **members)
    else:
        click.echo(said)


def _print_json(**members: Any) -> None:
    click.echo(json.dumps(members, ensure_ascii=False))
