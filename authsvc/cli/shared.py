"""What the commands have in common: the settings file, errors as sentences, times and tables for people."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import click
from rich.console import Console

from authsvc.errors import AuthsvcError, SettingsError

DOTENV: Final = Path(".env")
NOBODY_CONFIRMED: Final = "nothing was changed: nobody confirmed it (--yes does not ask)"

_WIDTH_WITHOUT_TERMINAL: Final = 400  # a line that a file or a pipe gets is not broken

_P = ParamSpec("_P")
_R = TypeVar("_R")


def plain_errors(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """An error that we foresaw is a sentence and exit status 2, not a traceback."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except SettingsError as error:
            click.echo("these settings cannot be used:", err=True)
            for problem in error.problems:
                mark = "warning: " if problem in error.warnings else ""
                click.echo(f"  - {mark}{problem}", err=True)
            sys.exit(2)
        except AuthsvcError as error:
            click.echo(f"authsvc: {error}", err=True)
            sys.exit(2)

    return wrapped


def confirm(*, as_json: bool = False) -> None:
    """Ends the command, with exit status 2, unless somebody says yes."""
    with contextlib.suppress(click.Abort):
        if click.confirm("Go on?", err=as_json):
            return
    click.echo(f"authsvc: {NOBODY_CONFIRMED}", err=True)
    sys.exit(2)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)


def local_time(at: int) -> str:
    """In the time zone of this machine, which is named."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def span(seconds: int) -> str:
    """ "45 s", "30 min", "2.1 h", "30 days": as exact as it matters at that size."""
    if seconds < 120:
        return f"{seconds} s"
    for unit_s, unit, most in ((60, "min", 120), (3_600, "h", 48)):
        if seconds < most * unit_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"


def relative(at: int, *, now: int) -> str:
    """ "now", "in 30 min", "30 min ago"."""
    if at == now:
        return "now"
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"
