"""`authsvc miniprogram`: a mini-program that logs in at this service, as a folder for WeChat's DevTools."""

from __future__ import annotations

import os
from pathlib import Path

import click

from authsvc.cli.shared import DOTENV, plain_errors
from authsvc.errors import SettingsError
from authsvc.miniprogram import project, warnings, write
from authsvc.settings import PREFIX, load_operator_settings


@click.command("miniprogram")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--url", required=True, help="https://…, where the service answers; http:// for localhost alone.")
@click.option("--appid", help=f"The mini-program.  [default: that of the settings, as {PREFIX}APPID]")
@plain_errors
def miniprogram(folder: Path, url: str, appid: str | None) -> None:
    """Write a small mini-program that logs in, with the client library auth.js in it, into the new folder DIR.

    Open it in WeChat's DevTools, or copy auth.js alone into a program that you have. No secret goes into it.
    """
    appid = _appid() if appid is None else appid
    written = write(project(url=url, appid=appid), folder)
    click.echo(f"{written}: open this folder in WeChat's DevTools; auth.js is the library, app.js has the address")
    for warning in warnings(url=url, appid=appid):
        click.echo(f"warning: {warning}", err=True)


def _appid() -> str:
    settings = load_operator_settings(os.environ, dotenv=DOTENV)
    if len(settings.appids) > 1:
        raise SettingsError([f"--appid has to say which, for the settings have several: {', '.join(settings.appids)}"])
    if not settings.appids or settings.keys.sandbox:
        # WeChat knows nothing of the sandbox's.
        raise SettingsError(
            [
                f"--appid is missing, and {PREFIX}APPID is not set: the AppID is at mp.weixin.qq.com, in the settings "
                "of development"
            ]
        )
    return settings.appids[0]
