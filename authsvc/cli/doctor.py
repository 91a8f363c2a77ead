"""`authsvc doctor`: look the installation over, as an operator at night wants it. Nothing is changed."""

from __future__ import annotations

import functools
import json
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import certifi
import click
from rich.table import Table
from rich.text import Text

from authsvc import looks
from authsvc.cli.serve import ADDRESSES, or_sandbox_option, service_address, service_settings
from authsvc.cli.shared import DOTENV, console
from authsvc.clock import SystemClock
from authsvc.diagnoses import Finding, Verdict, worst
from authsvc.doctor import Surroundings, examine
from authsvc.http.listener import free_address
from authsvc.sandbox.process import read_addresses
from authsvc.settings import load_operator_settings
from authsvc.store import check_store, open_store
from authsvc.wechat import App, WeChatClient, new_session
from authsvc.wiring import open_keys

_STATUS: Final = {Verdict.OK: 0, Verdict.WARNING: 1, Verdict.BROKEN: 2}
_STYLES: Final = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.BROKEN: "bold red"}


@click.command()
@or_sandbox_option
@click.option("--json", "as_json", is_flag=True, help="Print a list in JSON.")
def doctor(or_sandbox: bool, as_json: bool) -> None:
    """Look everything over: settings, keys, clock, WeChat, store, disk, limits, port, issuer.

    Changes nothing, and needs no running service. WeChat is asked for each app's access token, which changes no token
    that is out. Ends with 0 if all is well, 1 if there are warnings alone, 2 if something is broken.
    """
    if find_spec("redis") is not None:
        # Before the checks that need it, store and limits, import it side by side: Python takes that for a deadlock now
        # and then, and refuses one of them.
        import_module("authsvc.store.redis")
    findings = examine(_surroundings(or_sandbox=or_sandbox))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    else:
        _print(findings)
    sys.exit(_STATUS[worst(findings)])


def _print(findings: Sequence[Finding]) -> None:
    table = Table("check", "", "what was seen", "the mend")
    for finding in findings:
        # As text: a value in square brackets is no markup of rich.
        verdict = Text(finding.verdict.value, style=_STYLES[finding.verdict])
        table.add_row(finding.check, verdict, Text(finding.seen), Text(finding.mend))
    console().print(table)
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    if counts[Verdict.BROKEN]:
        click.echo(f"NEEDS YOU: {counts[Verdict.BROKEN]} broken, {counts[Verdict.WARNING]} warnings.")
    elif counts[Verdict.WARNING]:
        click.echo(f"Nothing is broken. Warnings: {counts[Verdict.WARNING]}.")
    else:
        click.echo("All is well: nothing needs you.")


def _surroundings(*, or_sandbox: bool) -> Surroundings:
    # Whom the service trusts to be WeChat.
    tls = ssl.create_default_context(cafile=certifi.where())
    return Surroundings(
        clock=SystemClock(),
        settings=functools.partial(service_settings, or_sandbox=or_sandbox),
        operator_settings=lambda: load_operator_settings(os.environ, dotenv=DOTENV, or_sandbox=or_sandbox),
        keys=open_keys,
        sandbox_url=_sandbox_url,
        service_url=service_address,
        access_token=_access_token,
        ask_wechat=lambda url, within_s: looks.ask(url, within_s=within_s, tls=tls),
        ask=lambda url, within_s: looks.ask(url, within_s=within_s),
        check_store=check_store,
        open_store=lambda url: open_store(url, as_is=True),
        disk=looks.disk_of,
        free_address=free_address,
        ping_redis=looks.ping_redis,
    )


def _sandbox_url() -> str | None:
    try:
        return read_addresses(ADDRESSES).get("sandbox")
    except (OSError, ValueError):
        return None


def _access_token(app: App, url: str, fallback_url: str | None, within_s: float) -> object:
    session = new_session(connections=1)
    try:
        return WeChatClient(session, url=url, fallback_url=fallback_url, timeout_s=within_s).stable_access_token(app)
    finally:
        session.close()
