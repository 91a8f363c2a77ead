"""The commands on the key folder. Each says what it changed and what happens when; each has `--json`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import click

from authsvc.cli import keysentences, keyviews
from authsvc.cli.acts import log_change, log_first_keys
from authsvc.cli.shared import DOTENV, NOBODY_CONFIRMED, console, local_time, plain_errors, relative, span
from authsvc.clock import SystemClock
from authsvc.drill import rehearse
from authsvc.errors import KeysError, StoreUnavailable
from authsvc.keyexport import export_public_keys
from authsvc.keyfiles import Change, KeyFolder, Transition
from authsvc.keyparts import MIN_PASSPHRASE_CHARS
from authsvc.keyreport import changes, exposure, problems
from authsvc.keyset import Keyset, Kind, Lifecycle
from authsvc.rotation import prune, revoke, revoke_all, rotate, rotate_store, tick
from authsvc.settings import SANDBOX_FOLDER, KeySettings, load_operator_settings
from authsvc.store import open_store, store_address
from authsvc.wiring import check_not_revived, check_rotate_every, init_keys, open_keys, settle_revocation

EXPORT_FOLDER: Final = Path(".public-keys")

_MAX_REASON_CHARS: Final = 200
_MAX_POLICY_S: Final = 315_360_000  # ten years


@dataclass(frozen=True, slots=True)
class _Here:
    """What every command works on."""

    settings: KeySettings
    store_url: str = field(repr=False)  # may hold a password
    folder: KeyFolder
    now: int

    def after_a_question(self) -> _Here:
        """An operator may take minutes to answer, and what he answers to may lie on for hours."""
        return replace(self, now=SystemClock().now())


def _here() -> _Here:
    settings = load_operator_settings(os.environ, dotenv=DOTENV)
    return _Here(settings.keys, settings.store_url, open_keys(settings.keys), SystemClock().now())


def _here_with_keys() -> _Here:
    """Raises: KeysError if there are none; who has only tried `make run` is shown where its keys are."""
    here = _here()
    if not here.folder.is_initialised() and not here.settings.sandbox:
        sandbox = KeyFolder(SANDBOX_FOLDER / "keys")
        if sandbox.is_initialised():
            raise KeysError(
                f"there are no keys in {here.folder.path} yet (make keys makes them); those of the sandbox, which "
                f"make run uses, are in {sandbox.path}: set AUTHSVC_SANDBOX=1 for the command to work on them"
            )
    return here


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, times as Unix seconds.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")


@click.group()
def keys() -> None:
    """The key folder: look at it, rotate, revoke."""


# ---- make, look ---------------------------------------------------------------------------------


def _lifecycle_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for member in reversed(fields(Lifecycle)):
        name = member.name.removesuffix("_s").replace("_", "-")
        option = click.option(
            f"--{name}", member.name, type=click.IntRange(0, _MAX_POLICY_S), default=member.default, show_default=True
        )
        function = option(function)
    return function


@keys.command("init")
@_json
@_lifecycle_options
@plain_errors
def keys_init(as_json: bool, **policy: int) -> None:
    """Make the first keys: a signing key, its standby, a sealing key. Does nothing if there are keys.

    The options are the policy of the key folder, in seconds.
    """
    here = _here()
    made = init_keys(here.settings, Lifecycle(**policy), clock=SystemClock())
    keyset = here.folder.keyset()
    if made:
        log_first_keys(keyset, now=keyset.updated_at)
    if as_json:
        steps = changes(None, keyset, now=here.now) if made else ()
        _print_json(made=made, folder=str(here.folder.path), steps=[keyviews.step_json(step) for step in steps])
    elif made:
        alg = keyset.active(Kind.SIGNING, now=keyset.updated_at).alg
        click.echo(
            f"Made {alg} keys in {here.folder.path}: one signs now, its standby is published, one seals the store."
        )
        console().print(keyviews.steps_table(changes(None, keyset, now=here.now), now=here.now))
        click.echo("Back this folder up where only operators can read. Without it everybody has to log in again.")
    else:
        click.echo(f"There are keys in {here.folder.path} already; nothing was changed. make keys-status shows them.")


@keys.command("status")
@_json
@plain_errors
def keys_status(as_json: bool) -> None:
    """Every key, its state and what comes next; ends with status 1 if something needs the operator."""
    here = _here_with_keys()
    every_s = 0 if here.settings.group_read else here.settings.rotate_every_s
    found = here.folder.inspect(now=here.now)
    keyset = found.keyset
    needs = [*found.problems, *problems(keyset, now=here.now, rotate_every_s=every_s), *_revived(here, keyset)]
    if as_json:
        _print_json(
            folder=str(here.folder.path),
            now=here.now,
            generation=keyset.generation,
            updated_at=keyset.updated_at,
            purpose=keyset.purpose.value,
            rotate_every=every_s,
            keys=[keyviews.key_json(key, keyset, now=here.now, rotate_every_s=every_s) for key in keyset.keys],
            strays=list(found.strays),
            problems=needs,
        )
    else:
        out = console()
        click.echo(
            f"{here.folder.path} · {keyset.purpose} · generation {keyset.generation}, last changed "
            f"{local_time(keyset.updated_at)} · "
            + (f"rotates by itself every {span(every_s)}" if every_s else "rotates by hand alone")
        )
        if out.width >= keyviews.TABLE_CHARS:
            out.print(keyviews.keys_table(keyset, now=here.now, rotate_every_s=every_s))
        else:
            for line in keyviews.keys_list(keyset, now=here.now, rotate_every_s=every_s):
                out.print(line, soft_wrap=True)
        for line in keyviews.timeline(keyset, now=here.now, columns=60):
            out.print(line, soft_wrap=True)
        for name in found.strays:
            click.echo(f"note: the manifest does not name {name}; unless it is from an older backup, remove that file")
        for problem in needs:
            click.echo(f"NEEDS YOU: {problem}")
        if not needs:
            click.echo("All is well: nothing needs you.")
    sys.exit(1 if needs else 0)


def _revived(here: _Here, keyset: Keyset) -> list[str]:
    if store_address(here.store_url).is_missing:
        return []
    store = open_store(here.store_url)
    try:
        check_not_revived(keyset, store, here.folder.path)
    except KeysError as error:
        return [str(error)]
    finally:
        store.close()
    return []


# ---- rotate -------------------------------------------------------------------------------------


@keys.command("rotate")
@_dry_run
@click.option(
    "--early", is_flag=True, help="Do not wait until every verifier knows the standby. Says what that breaks."
)
@_json
@plain_errors
def keys_rotate(dry_run: bool, early: bool, as_json: bool) -> None:
    """Let the standby sign, as soon as every verifier knows it, and publish the next one."""
    here = _here_with_keys()

    def transition(keyset: Keyset, new: Any) -> Keyset:
        return rotate(keyset, new, now=here.now, alg=here.settings.alg, early=early)

    change = _rotated(here, transition, dry_run=dry_run)
    _tell(here, change, keysentences.of_rotation(change, now=here.now, early=early), dry_run=dry_run, as_json=as_json)


@keys.command("rotate-store")
@_dry_run
@_json
@plain_errors
def keys_rotate_store(dry_run: bool, as_json: bool) -> None:
    """Make the next key that seals the side store; the old one goes when its last row has ended."""
    here = _here_with_keys()
    change = _rotated(here, lambda keyset, new: rotate_store(keyset, new, now=here.now), dry_run=dry_run)
    _tell(here, change, keysentences.of_store_rotation(change, now=here.now), dry_run=dry_run, as_json=as_json)


@keys.command("rotate-all")
@_dry_run
@_json
@plain_errors
def keys_rotate_all(dry_run: bool, as_json: bool) -> None:
    """Both: rotate and rotate-store."""
    here = _here_with_keys()

    def transition(keyset: Keyset, new: Any) -> Keyset:
        rotated = rotate_store(rotate(keyset, new, now=here.now, alg=here.settings.alg), new, now=here.now)
        return keyset.changed(now=here.now, keys=rotated.keys)

    change = _rotated(here, transition, dry_run=dry_run)
    lines = [
        *keysentences.of_rotation(change, now=here.now, early=False),
        *keysentences.of_store_rotation(change, now=here.now),
    ]
    _tell(here, change, lines, dry_run=dry_run, as_json=as_json)


@keys.command("tick")
@_json
@plain_errors
def keys_tick(as_json: bool) -> None:
    """Do what is due, for cron: rotate as AUTHSVC_ROTATE_EVERY says, make a missing standby, clear away what ended."""
    here = _here_with_keys()
    every_s = here.settings.rotate_every_s
    check_rotate_every(here.folder.keyset().lifecycle, every_s)

    def transition(keyset: Keyset, new: Any) -> Keyset:
        return tick(keyset, new, now=here.now, rotate_every_s=every_s, alg=here.settings.alg)

    change = here.folder.change(transition, now=here.now, random_bytes=os.urandom)
    log_change("keys_rotated", change, now=here.now)
    lines = ["Did what was due." if change.is_one else "Nothing was due; nothing was changed."]
    if not every_s:
        lines.append("AUTHSVC_ROTATE_EVERY is 0: keys are rotated by hand alone.")
    _tell(here, change, lines, as_json=as_json)


# ---- revoke -------------------------------------------------------------------------------------


@keys.command("revoke")
@click.argument("kid", required=False)
@click.option("--all", "everything", is_flag=True, help="The folder was stolen: every key, the standby too.")
@click.option("--reason", default="compromised", show_default=True, help="Kept in the manifest with the key.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_dry_run
@_json
@plain_errors
def keys_revoke(kid: str | None, everything: bool, reason: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Put a key out of use at once: its tokens are refused, the standby takes over."""
    if (kid is None) is not everything:
        raise click.UsageError("name one key by its full kid (make revoke KID=…), or --all (make revoke-all)")
    if len(reason) > _MAX_REASON_CHARS or not reason.isprintable():
        raise click.UsageError(f"a reason is one line of at most {_MAX_REASON_CHARS} characters")
    here = _here_with_keys()

    def transition(keyset: Keyset, new: Any) -> Keyset:
        if kid is None:
            return revoke_all(keyset, new, now=here.now, alg=here.settings.alg, reason=reason)
        return revoke(keyset, new, kid, now=here.now, alg=here.settings.alg, reason=reason)

    planned = here.folder.plan(transition, now=here.now, random_bytes=os.urandom)
    if not planned.is_one:
        # It may have been interrupted, with the key's private part still there.
        done = planned if dry_run else here.folder.change(transition, now=here.now, random_bytes=os.urandom)
        if not dry_run:
            log_change("keys_revoked", done, now=here.now)  # somebody else may have come in between
        said, settled = ([], True) if dry_run else _settle(here, done)
        _tell(here, done, [f"Nothing was changed: {kid} is revoked already.", *said], as_json=as_json)
        sys.exit(0 if settled else 1)
    warning = keysentences.before_revocation(planned, kid, now=here.now)
    if not dry_run and not yes:
        _confirm(kid or "revoke all", warning, as_json=as_json)
        here = here.after_a_question()
    change = planned if dry_run else here.folder.change(transition, now=here.now, random_bytes=os.urandom)
    if not dry_run:
        log_change("keys_revoked", change, now=here.now)
    lines = [*warning] if dry_run or yes else []
    settled = True
    if not dry_run:
        click.echo("The keys are revoked. Telling the side store takes some seconds more.", err=True)
        said, settled = _settle(here, change)
        lines = ["Revoked.", *lines, *said]
    _tell(here, change, lines, dry_run=dry_run, as_json=as_json, exposed=True)
    sys.exit(0 if settled else 1)


def _confirm(wanted: str, warning: list[str], *, as_json: bool) -> None:
    for line in warning:
        click.echo(line, err=as_json)
    try:
        given = click.prompt(f"To go on, type {wanted if ' ' in wanted else 'its kid in full'}", err=as_json)
    except click.Abort:
        raise KeysError(NOBODY_CONFIRMED) from None
    if given.strip() != wanted:
        raise KeysError("nothing was changed: that is not it")


def _settle(here: _Here, change: Change) -> tuple[list[str], bool]:
    """What the side store has to know of a revocation; False if it could not be told."""
    store = store_address(here.store_url)
    if store.is_missing:
        said = f"There is no side store {store.shown}, so no rows were deleted"
        return [f"{said} (is this the working folder of the service?)."], True
    try:
        dropped = settle_revocation(change, here.store_url, sleep=time.sleep)
    except StoreUnavailable as error:
        return [
            f"The keys are revoked, but the side store was not told: {error}. Nothing opens rows under a revoked "
            "sealing key any more; make keys-prune deletes them once the store answers."
        ], False
    return ([f"Deleted {dropped} rows of {store.shown}."] if dropped is not None else []), True


# ---- clear away, write out, rehearse ------------------------------------------------------------


@keys.command("prune")
@_json
@plain_errors
def keys_prune(as_json: bool) -> None:
    """Forget keys that are removed, destroy private parts that have ended, clear up after interrupted commands."""
    here = _here_with_keys()
    change = here.folder.change(lambda k, _: prune(k, now=here.now), now=here.now, random_bytes=os.urandom)
    log_change("keys_pruned", change, now=here.now)
    forgotten = len(change.before.keys) - len(change.after.keys)
    strays = here.folder.inspect(now=here.now).strays
    lines = [f"Forgot {forgotten} removed keys." if forgotten else "No key has reached its end; none was forgotten."]
    lines += [f"note: the manifest does not name {name}; it was left alone" for name in strays]
    said, settled = _settle(here, change) if any(key.revoked_at for key in change.after.keys) else ([], True)
    _tell(here, change, [*lines, *said], as_json=as_json)
    sys.exit(0 if settled else 1)


@keys.command("export")
@click.argument("folder", type=click.Path(path_type=Path), default=EXPORT_FOLDER)
@_json
@plain_errors
def keys_export(folder: Path, as_json: bool) -> None:
    """Write jwks.json and a PEM for each public key, for verifiers that read files (HAProxy, nginx, a volume)."""
    here = _here_with_keys()
    keyset = here.folder.keyset()
    written, removed = export_public_keys(keyset, folder.absolute(), now=here.now, key_folder=here.folder)
    if as_json:
        _print_json(folder=str(folder.absolute()), written=written, removed=removed)
        return
    click.echo(f"Wrote {', '.join(written)} to {folder.absolute()}.")
    if removed:
        click.echo(f"Removed {', '.join(removed)}: no longer in the JWKS.")
    lead = span(keyset.lifecycle.lead_s)
    click.echo(
        f"Export again, and let the verifiers read again, more often than the lead ({lead}): "
        "then a rotation never meets them unprepared."
    )


@keys.command("drill")
@_json
@plain_errors
def keys_drill(as_json: bool) -> None:
    """Rehearse a rotation and a revocation on a temporary copy, with verifiers of several caching habits."""
    here = _here_with_keys()
    here.folder.load(now=here.now)  # what would keep the real command from working is found here
    found = rehearse(here.folder.keyset(), now=here.now, seed=0, random_bytes=os.urandom)
    if as_json:
        _print_json(**keyviews.rehearsal_json(found))
    else:
        click.echo(
            f"Rehearsed on a copy with throw-away keys and the policy of {here.folder.path}; nothing was changed there."
        )
        click.echo(
            f"Rotation: the standby signs {relative(found.rotation_at, now=here.now)}. Every verifier was shown "
            f"{found.tokens} genuine tokens around it, behind a cache that keeps the JWKS as long as it may."
        )
        console().print(keyviews.rehearsal_table(found))
        click.echo(
            "No verifier within the policy refused a genuine token."
            if found.is_clean
            else "NEEDS YOU: a verifier within the policy refused genuine tokens."
        )
    sys.exit(0 if found.is_clean else 1)


# ---- the passphrase -----------------------------------------------------------------------------


@keys.command("passphrase")
@click.option(
    "--new-file", type=click.Path(path_type=Path), help="A file with the new passphrase; else it is asked for."
)
@click.option("--remove", is_flag=True, help="Let the private parts lie in clear (0600) from now on.")
@_json
@plain_errors
def keys_passphrase(new_file: Path | None, remove: bool, as_json: bool) -> None:
    """Write every private part anew under another passphrase. The one in force is AUTHSVC_KEYS_PASSPHRASE."""
    here = _here_with_keys()
    if remove and new_file:
        raise click.UsageError("either --new-file or --remove")
    passphrase = None if remove else _new_passphrase(new_file, as_json=as_json)
    here = here.after_a_question()
    folder, change = here.folder.change_passphrase(passphrase, now=here.now, random_bytes=os.urandom)
    log_change("keys_rewritten", change, now=here.now)
    folder.load(now=here.now)
    if not change.is_one:
        _tell(here, change, ["The private parts are so already; nothing was changed."], as_json=as_json)
        return
    what = "lie in clear (0600)" if remove else "are under the new passphrase"
    lines = [f"All private parts {what}; the old files are gone. Backups still open with the old passphrase."]
    lines.append(
        "A running service goes on with what it has read, and reads nothing new until it is restarted with "
        + ("AUTHSVC_KEYS_PASSPHRASE unset." if remove else "the new AUTHSVC_KEYS_PASSPHRASE.")
    )
    _tell(here, change, lines, as_json=as_json, steps=False)


def _new_passphrase(file: Path | None, *, as_json: bool) -> str:
    if file is None:
        given: str = click.prompt("new passphrase", hide_input=True, confirmation_prompt=True, err=as_json)
    else:
        try:
            given = file.read_text("utf-8").removesuffix("\n")
        except (OSError, ValueError):
            raise KeysError(f"{file} cannot be read") from None
    if len(given) < MIN_PASSPHRASE_CHARS or not given.isprintable():
        raise KeysError(f"a passphrase has at least {MIN_PASSPHRASE_CHARS} printable characters; nothing was changed")
    return given


# ---- what they have in common -------------------------------------------------------------------


def _rotated(here: _Here, transition: Transition, *, dry_run: bool) -> Change:
    if dry_run:
        return here.folder.plan(transition, now=here.now, random_bytes=os.urandom)
    seen = here.folder.keyset()
    change = here.folder.change(transition, now=here.now, random_bytes=os.urandom, seen=seen)
    log_change("keys_rotated", change, now=here.now)
    return change


def _tell(
    here: _Here,
    change: Change,
    lines: list[str],
    *,
    as_json: bool,
    dry_run: bool = False,
    exposed: bool = False,
    steps: bool = True,
) -> None:
    happens = changes(change.before, change.after, now=here.now)
    if as_json:
        _print_json(
            changed=change.is_one and not dry_run,
            dry_run=dry_run,
            folder=str(here.folder.path),
            now=here.now,
            generation=change.after.generation,
            active=change.after.active(Kind.SIGNING, now=here.now).id,
            message=" ".join(lines),
            steps=[keyviews.step_json(step) for step in happens],
            **({"exposure": [keyviews.exposure_json(e) for e in exposure(change.after.lifecycle)]} if exposed else {}),
        )
        return
    if dry_run:
        click.echo("DRY RUN: nothing is changed; the ids of new keys are made up.")
    for line in lines:
        click.echo(line)
    if change.is_one and steps:
        console().print(keyviews.steps_table(happens, now=here.now))
    if exposed:
        console().print(keyviews.exposure_table(exposure(change.after.lifecycle)))
    if change.is_one and not dry_run:
        click.echo(f"Generation {change.after.generation}. Back the folder up.")


def _print_json(**members: Any) -> None:
    click.echo(json.dumps(members, ensure_ascii=False))
