"""The commands. Each reads the environment, calls one function, and says in plain words what came of it."""

from __future__ import annotations

from importlib.metadata import version

import click

from authsvc.cli.deploy import deploy
from authsvc.cli.doctor import doctor
from authsvc.cli.keys import keys
from authsvc.cli.miniprogram import miniprogram
from authsvc.cli.serve import config, demo, serve
from authsvc.cli.store import store_commands
from authsvc.cli.users import user_commands
from authsvc.cli.verify import verify

__all__ = ["command"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("authsvc"), prog_name="authsvc")
def command() -> None:
    """Login for WeChat mini-programs: a code in, a signed token out."""


for subcommand in (serve, config, doctor, demo, keys, store_commands, user_commands, verify, deploy, miniprogram):
    command.add_command(subcommand)
