"""`authsvc verify`: whether a token is good, and if not why not, from the shell."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from authsvc.claims import Claims, Policy
from authsvc.cli.shared import console, local_time, plain_errors, relative
from authsvc.clock import SystemClock
from authsvc.errors import KeysUnavailable, TokenError
from authsvc.verifier import FileKeys, IssuerKeys, KeySource, RemoteKeys, Verifier

_STANDARD_INPUT: Final = "-"
_NOT_GOOD: Final = 1
_CANNOT_BE_TOLD: Final = 3
_LAST_DAY: Final = 253_402_000_000  # in the year 9999
_TIMES: Final = ("issued_at", "expires_at", "auth_time")


@click.command()
@click.argument("token")
@click.option(
    "--issuer",
    default=lambda: os.environ.get("AUTHSVC_ISSUER"),
    help="Who has to have issued it; its keys are read from there.  [default: AUTHSVC_ISSUER]",
)
@click.option(
    "--audience",
    default=lambda: os.environ.get("AUTHSVC_AUDIENCE", "api"),
    help="For whom it has to be.  [default: AUTHSVC_AUDIENCE, or api]",
)
@click.option("--appid", "appids", multiple=True, help="The mini-program that it has to be of; may be given again.")
@click.option("--jwks", help="A JWKS as a file or a URL, instead of the issuer's own.")
@click.option("--leeway", "leeway_s", type=click.IntRange(0, 300), default=0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, times as Unix seconds.")
@plain_errors
def verify(
    token: str,
    issuer: str | None,
    audience: str,
    appids: tuple[str, ...],
    jwks: str | None,
    leeway_s: int,
    as_json: bool,
) -> None:
    """Whether TOKEN is good; "-" reads it from standard input, so that it gets into no shell history.

    Ends with 0 if it is good, 1 if it is not, 3 if that cannot be told because a key cannot be had.
    """
    if not issuer:
        raise click.UsageError("who has to have issued it? Give --issuer URL, or set AUTHSVC_ISSUER")
    if token == _STANDARD_INPUT:
        token = sys.stdin.readline()
    token = token.strip().removeprefix("Bearer ").strip()
    with ExitStack() as opened:
        try:
            policy = Policy(issuer, audience or "api", typ=("at+jwt", "JWT"), appids=appids or None, leeway_s=leeway_s)
            verifier = opened.enter_context(Verifier(_keys(issuer, jwks), policy))
        except TypeError as error:
            raise click.UsageError(str(error)) from None
        except ValueError as error:
            raise click.UsageError(f"{jwks or issuer}: {error}") from None
        try:
            claims = verifier.verify(token)
        except TokenError as error:
            _tell(as_json, "NOT GOOD", valid=False, code=error.code, why=str(error))
            sys.exit(_NOT_GOOD)
        except KeysUnavailable as error:
            _tell(as_json, "CANNOT BE TOLD", valid=None, code=error.code, why=str(error))
            sys.exit(_CANNOT_BE_TOLD)
    if as_json:
        click.echo(json.dumps({"valid": True, "claims": asdict(claims)}, ensure_ascii=False))
    else:
        click.echo("GOOD")
        console().print(_table(claims))


def _keys(issuer: str, jwks: str | None) -> KeySource:
    if jwks is None:
        return IssuerKeys(issuer)
    if jwks.lower().startswith(("https://", "http://")):
        return RemoteKeys(jwks)
    if not Path(jwks).is_file():
        raise click.UsageError(f"there is no file {jwks}")
    return FileKeys(jwks)


def _tell(as_json: bool, verdict: str, *, valid: bool | None, code: str, why: str) -> None:
    click.echo(json.dumps({"valid": valid, "code": code, "why": why}) if as_json else f"{verdict}: {code}: {why}")


def _table(claims: Claims) -> Table:
    now = SystemClock().now()
    table = Table("claim", "value", "")
    for name, value in asdict(claims).items():
        if value is not None:
            # Beyond that a calendar has no days; the claim itself may be larger.
            when = f"{local_time(value)}, {relative(value, now=now)}" if name in _TIMES and value < _LAST_DAY else ""
            # As text: a value in square brackets is no markup of rich.
            table.add_row(name, Text(str(value)), when)
    return table
