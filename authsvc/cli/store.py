"""The commands on the side store as a whole: what lies in it, purge it, move to another one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from authsvc.cli.acts import log_store
from authsvc.cli.place import opened_store, operator_settings
from authsvc.cli.shared import confirm, console, local_time, plain_errors, relative
from authsvc.clock import SystemClock
from authsvc.errors import KeysError, SealBroken, SettingsError
from authsvc.keyset import Keyset, Kind
from authsvc.retention import purge
from authsvc.sealing import START_BYTES, key_id_of_start
from authsvc.store import Census, Store, prepare_store, store_address
from authsvc.storecopy import KINDS, Proved, StoreCopy, end_move
from authsvc.users import Users, adopt, check_owner, is_hashed, take_over
from authsvc.wiring import open_keys

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, times as Unix seconds.")


@click.group("store")
def store_commands() -> None:
    """The side store: what lies in it, purge it, move to another one."""


# ---- status -------------------------------------------------------------------------------------


@store_commands.command("status")
@_json
@plain_errors
def store_status(as_json: bool) -> None:
    """Backend, rows, size, the sealing keys in use; ends with status 1 if something needs the operator."""
    settings = operator_settings()
    now = SystemClock().now()
    with opened_store(settings.store_url) as store:
        counted = store.census(now=now, start_bytes=START_BYTES)
    address = store_address(settings.store_url).shown
    try:
        keyset, needs = open_keys(settings.keys).keyset(), []
    except KeysError as error:
        keyset, needs = None, [f"which keys rows are sealed under cannot be looked up: {error}"]
    by_key = [_key_row(start, rows, keyset, now=now) for start, rows in sorted(counted.logins_by_start.items())]
    needs += [
        f"{row['logins']} logins are sealed under {row['key'] or 'nothing of ours'}, which {settings.keys.path} does "
        "not have (any more): their session keys cannot be opened, and the users have to log in again"
        for row in by_key
        if keyset is not None and row["state"] is None
    ]
    if as_json:
        _print_json(store=address, **_census_json(counted), keys=by_key, problems=needs)
    else:
        _print_status(address, counted, by_key, now=now)
        for need in needs:
            click.echo(f"NEEDS YOU: {need}")
        if not needs:
            click.echo("All is well: nothing needs you.")
    sys.exit(1 if needs else 0)


def _key_row(start: bytes, rows: int, keyset: Keyset | None, *, now: int) -> dict[str, Any]:
    try:
        key_id = key_id_of_start(start)
    except SealBroken:
        key_id = None
    records = keyset.of(Kind.SEALING) if keyset is not None else ()
    state = next((record.state(now=now).value for record in records if record.id == key_id), None)
    return {"key": key_id, "state": state, "logins": rows}


def _census_json(counted: Census) -> dict[str, Any]:
    return {
        "engine": counted.engine,
        "size_bytes": counted.size_bytes,
        "users": counted.users,
        "banned": counted.banned,
        "logins": counted.logins,
        "ended_logins": counted.ended_logins,
        "oldest_login_at": counted.oldest_login_at,
        "audit_lines": counted.audit_lines,
    }


def _print_status(address: str, counted: Census, by_key: list[dict[str, Any]], *, now: int) -> None:
    size = "" if counted.size_bytes is None else f" · {counted.size_bytes / 1_048_576:,.2f} MiB"
    click.echo(f"{address} · {counted.engine}{size}")
    table = Table("rows", "")
    oldest = counted.oldest_login_at
    rows = {
        "users": f"{counted.users:,}",
        "banned, forgotten ones too": f"{counted.banned:,}",
        "logins": f"{counted.logins:,}",
        "of these over, to be purged": f"{counted.ended_logins:,}",
        "oldest login": "none" if oldest is None else f"{local_time(oldest)}, {relative(oldest, now=now)}",
        "audit lines": f"{counted.audit_lines:,}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console().print(table)
    if by_key:
        keys = Table("sealing key", "state", "logins under it")
        for row in by_key:
            keys.add_row(row["key"] or "(none of ours)", row["state"] or "not here", f"{row['logins']:,}")
        console().print(keys)


# ---- purge --------------------------------------------------------------------------------------


@store_commands.command("purge")
@_json
@plain_errors
def store_purge(as_json: bool) -> None:
    """Delete the rows whose time is over, as the running service does by itself."""
    with opened_store(operator_settings().store_url) as store:
        purged = purge(store, now=SystemClock().now(), sleep=time.sleep)
    if as_json:
        _print_json(purged=purged)
    else:
        click.echo(f"{purged:,} rows purged." if purged else "Nothing is over.")


# ---- whose it is --------------------------------------------------------------------------------


@store_commands.command("adopt")
@click.option("--yes", is_flag=True, help="Do not ask.")
@plain_errors
def store_adopt(yes: bool) -> None:
    """Let the store belong to the key folder that there is now, because the one it was made with is lost.

    Of a store that was copied and stays in use, this ends the day in which it refuses to forget anybody.
    """
    settings = operator_settings()
    keyring = open_keys(settings.keys).load(now=SystemClock().now())
    users = Users(keys=lambda: keyring, hashed=settings.store_openid == "hash")
    with opened_store(settings.store_url) as store:
        if not _is_owner(store, users):
            click.echo(
                "What is in the store under keyed hashes will be found no more: bans of users who are forgotten; in "
                "Redis, and with AUTHSVC_STORE_OPENID=hash, all bans and users."
            )
            if not yes:
                confirm()
            take_over(store, users)
        end_move(store)
    log_store("store_adopted", store=store_address(settings.store_url).shown)
    click.echo(f"{store_address(settings.store_url).shown} belongs to {settings.keys.path}, and is the one in use.")


def _is_owner(store: Store, users: Users) -> bool:
    try:
        check_owner(store, users, now=SystemClock().now())
    except SettingsError:
        return False
    return True


# ---- migrate ------------------------------------------------------------------------------------


@store_commands.command("migrate")
@click.option(
    "--to",
    "to_url",
    required=True,
    help='The other store, as AUTHSVC_STORE will have it; "-" reads it from standard input, for its password.',
)
@_json
@plain_errors
def store_migrate(to_url: str, as_json: bool) -> None:
    """Copy everything to another side store, while the service runs, and prove that it is there.

    May be interrupted and given again. Then set AUTHSVC_STORE, restart the service, and give it once more for what came
    in between (AUTHSVC_STORE still the old one). Ends with status 1 if something is missing.
    """
    settings = operator_settings()
    to_url = sys.stdin.readline().strip() if to_url == "-" else to_url
    source_name, target_name = store_address(settings.store_url).shown, store_address(to_url).shown
    if source_name == target_name:
        raise SettingsError(["--to is the store that AUTHSVC_STORE names already; put the old one before the command"])
    keyring = open_keys(settings.keys).load(now=SystemClock().now())
    users = Users(keys=lambda: keyring, hashed=settings.store_openid == "hash")
    now = SystemClock().now()
    with opened_store(settings.store_url) as source:
        if is_hashed(source, now=now) and not users.hashed:
            raise SettingsError(
                ["the store has hashes in place of openids, which nobody turns back; set AUTHSVC_STORE_OPENID=hash"]
            )
        check_owner(source, Users(keys=lambda: keyring, hashed=is_hashed(source, now=now)), now=now)
        prepare_store(to_url)
    with opened_store(settings.store_url) as source, opened_store(to_url) as target:
        adopt(target, users, now=now)
        check_owner(target, users, now=now)
        with _progress(source, shown=not as_json) as told:
            copy = StoreCopy(source, target, users=users, source_name=source_name, now=SystemClock().now, told=told)
            proved = copy.run()
            since = copy.since
    log_store("store_copied", store=source_name, to=target_name)
    whole = all(one.found == one.rows for one in proved)
    if as_json:
        kinds = [{"kind": p.kind, "rows": p.rows, "found": p.found, "left_out": p.left_out} for p in proved]
        _print_json(source=source_name, target=target_name, whole=whole, kinds=kinds)
    else:
        _print_proved(proved, source_name, target_name, whole=whole, since=since)
    sys.exit(0 if whole else 1)


@contextmanager
def _progress(source: Store, *, shown: bool) -> Iterator[Any]:
    if not shown:
        yield lambda _kind, _rows: None
        return
    counted = source.census(now=SystemClock().now(), start_bytes=1)
    totals = {"users": counted.users, "logins": counted.logins, "audit lines": counted.audit_lines}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        tasks = {kind: progress.add_task(kind, total=totals.get(kind)) for kind in KINDS}
        yield lambda kind, rows: progress.advance(tasks[kind], rows)


def _print_proved(proved: tuple[Proved, ...], source_name: str, target_name: str, *, whole: bool, since: int) -> None:
    what = f", what came since {local_time(since)}; all else was copied and proved before" if since else ""
    click.echo(f"{source_name} → {target_name}{what}")
    table = Table("kind", "in the one", "of these in the other", "left out")
    for one in proved:
        table.add_row(one.kind, f"{one.rows:,}", f"{one.found:,}", f"{one.left_out:,}" if one.left_out else "")
    console().print(table)
    if any(one.left_out for one in proved):
        click.echo(
            "Left out is what would be of no use there: logins that are over, or sealed for an openid that the other "
            "store is not to have, and what was forgotten or unbanned there since."
        )
    if whole:
        click.echo(
            "Every other row was read again and is in the other store. Next: set AUTHSVC_STORE to it, restart the "
            "service, and give this command once more, within a day, for what came in between (as it is here, with the "
            "old AUTHSVC_STORE before it). Until then `user forget` and `user unban` are refused on the old store; if "
            "you stay there, authsvc store adopt ends that."
        )
    else:
        click.echo("NEEDS YOU: the other store does not have all of it; give the command again.")


def _print_json(**members: Any) -> None:
    click.echo(json.dumps(members, ensure_ascii=False))
