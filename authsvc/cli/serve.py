"""Run the service, look at its settings, try it."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click
import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from authsvc import demo as demo_steps
from authsvc.cli.shared import DOTENV, console, plain_errors
from authsvc.clock import SystemClock
from authsvc.errors import AuthsvcError, SettingsError
from authsvc.http.fastlane import FastLane
from authsvc.http.gateway import Gateway
from authsvc.http.listener import free_address
from authsvc.http.metricsfolder import forget_ended, metrics_folder
from authsvc.http.operations import longest_body
from authsvc.http.server import LoadGateway, hold_reloads
from authsvc.http.server import serve as serve_http
from authsvc.http.services import services_of
from authsvc.http.session import sender_of
from authsvc.http.systemd import Notifier
from authsvc.sandbox.process import SandboxProcess, noted_addresses
from authsvc.settings import (
    PREFIX,
    SANDBOX_APPID,
    SANDBOX_FOLDER,
    SANDBOX_SECRET,
    Settings,
    load_settings,
)
from authsvc.store import store_address
from authsvc.telemetry import configure_logging
from authsvc.wiring import Prepared, build_app, prepare

_log = structlog.get_logger("authsvc.server")

ADDRESSES: Final = SANDBOX_FOLDER / "addresses.json"

# Where to reach a service that listens everywhere.
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


or_sandbox_option = click.option(
    "--or-sandbox", is_flag=True, help="Without any app configured, use the WeChat sandbox."
)


@click.command()
@or_sandbox_option
@click.option("--workers", type=int, help="Worker processes, in place of AUTHSVC_WORKERS.")
@click.option("--threads", type=int, help="Threads of each worker, in place of AUTHSVC_THREADS.")
@plain_errors
def serve(or_sandbox: bool, workers: int | None, threads: int | None) -> None:
    """Run the service, from the environment alone, until Ctrl-C or SIGTERM.

    SIGHUP has it read its settings anew and replaces the workers one by one; in a terminal, which is gone then, it ends
    the service.
    """
    hangup_ends = sys.stderr.isatty()
    if not hangup_ends:
        hold_reloads()
    configure_logging(sys.stderr)
    for name, value in (("WORKERS", workers), ("THREADS", threads)):
        if value is not None:
            os.environ[PREFIX + name] = str(value)
    notifier = Notifier(os.environ)
    settings = service_settings(or_sandbox=or_sandbox)
    address = free_address(settings.host, settings.port)
    prepared = prepare(settings, clock=SystemClock())
    with ExitStack() as beside:
        # Also where there is no /metrics yet: a reload may bring AUTHSVC_OPS_TOKEN.
        counts = beside.enter_context(metrics_folder(is_needed=settings.ops_token is not None))
        if settings.sandbox:
            sandbox = SandboxProcess(appid=SANDBOX_APPID, secret=SANDBOX_SECRET, port=settings.port + 1)
            settings = replace(settings, wechat_url=beside.enter_context(sandbox).url, wechat_fallback_url=None)
            addresses = {"service": service_address(settings), "sandbox": settings.wechat_url}
            beside.enter_context(noted_addresses(ADDRESSES, addresses))
        serve_http(
            # A forked worker inherits the keys that were read here, for when it cannot read them itself.
            functools.partial(_load_worker, settings, prepared, counts),
            address=address,
            workers=settings.workers,
            # Longer than a login may take: what was accepted is answered.
            stop_within_s=settings.wechat_timeout_s + 5,
            on_listening=lambda: _announce(settings, prepared.said),
            on_ready=notifier.ready,
            on_reload=lambda: _reloaded(settings, notifier, counts, or_sandbox=or_sandbox),
            on_stopping=notifier.stopping,
            on_worker_end=functools.partial(forget_ended, counts),
            hangup_ends=hangup_ends,
        )


@click.command()
@or_sandbox_option
@plain_errors
def config(or_sandbox: bool) -> None:
    """Print the settings that are in force, secrets masked."""
    settings = service_settings(or_sandbox=or_sandbox)
    table = Table("setting", "value", "from")
    for setting in settings.table:
        # As text: a value in square brackets is no markup of rich.
        table.add_row(setting.name, Text(setting.shown), setting.origin)
    console().print(table)
    for warning in settings.warnings:
        click.echo(f"warning: {warning}")


@click.command()
@click.option("--service", help="Where the service answers; by default that of the `make run` in this folder.")
@click.option("--sandbox", help="Where its sandbox answers.")
@plain_errors
def demo(service: str | None, sandbox: str | None) -> None:
    """Play the mini-program against a running `make run`, and show every request and reply."""
    sys.exit(demo_steps.run(Console(), ADDRESSES, service_url=service, sandbox_url=sandbox))


def service_settings(*, or_sandbox: bool) -> Settings:
    """Raises: SettingsError."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return load_settings(os.environ, dotenv=DOTENV, cores=cores, or_sandbox=or_sandbox)


def _load_worker(settings: Settings, inherited: Prepared, counts: Path | None) -> Gateway:
    configure_logging(sys.stderr)
    # Our settings have been read; whatever else runs here needs no secrets.
    for name in [name for name in os.environ if name.startswith("AUTHSVC_")]:
        del os.environ[name]
    app = build_app(settings, inherited=inherited, metrics_folder=counts if settings.ops_token else None)
    for name in [name for name in os.environ if name.startswith("OTEL_") and name.endswith("_HEADERS")]:
        del os.environ[name]  # of the collector, read by now
    return Gateway(
        app,
        threads=settings.threads,
        longest_body=longest_body,
        sender_of=functools.partial(sender_of, services_of(app)),
        at_once=app.wsgi_app.at_once if isinstance(app.wsgi_app, FastLane) else None,
    )


def _reloaded(current: Settings, notifier: Notifier, counts: Path | None, *, or_sandbox: bool) -> LoadGateway | None:
    """What new workers are made of; None, and a line in the log, if the settings cannot be used."""
    notifier.reloading()
    try:
        settings = service_settings(or_sandbox=or_sandbox)
        _check_needs_no_restart(settings, current)
        if settings.ops_token is not None and counts is None:
            raise SettingsError(["AUTHSVC_OPS_TOKEN: there is no folder for temporary files to count in"])
        if settings.sandbox:
            settings = replace(settings, wechat_url=current.wechat_url, wechat_fallback_url=None)
        prepared = prepare(settings, clock=SystemClock())
    except AuthsvcError as error:
        _log.error("reload_refused", problem=str(error))
        return None
    except Exception as error:  # noqa: BLE001 - the service goes on as it is, whatever is wrong
        _log.error("reload_refused", exc_info=error)
        return None
    _log.info("reloading", said=[*prepared.said, *(f"WARNING: {warning}" for warning in settings.warnings)])
    return functools.partial(_load_worker, settings, prepared, counts)


def _check_needs_no_restart(settings: Settings, current: Settings) -> None:
    """Raises: SettingsError for what the main process goes by, or what other settings are reckoned from."""
    names = ("sandbox", "host", "port", "workers", "threads", "wechat_timeout_s")
    changed = [name for name in names if getattr(settings, name) != getattr(current, name)]
    if changed:
        raise SettingsError(
            [f"{PREFIX}{name.removesuffix('_s').upper()} has changed: that takes a restart" for name in changed]
        )


def service_address(settings: Settings) -> str:
    """Where to reach the service from this machine."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _announce(settings: Settings, said: tuple[str, ...]) -> None:
    everywhere = " (every interface of this machine)" if settings.host in _EVERYWHERE else ""
    lines = [
        f"authsvc {version('authsvc')} listens on {settings.host} port {settings.port}{everywhere}, "
        f"{settings.workers} workers: {service_address(settings)}"
    ]
    if settings.sandbox:
        lines.append(
            f"SANDBOX: WeChat is played by {settings.wechat_url}; whoever can reach that can log in as anyone. "
            "Not for production."
        )
    store = store_address(settings.store_url).shown
    lines.append(f"keys: {settings.keys.path.absolute()} · store: {store} · issuer: {settings.issuer}")
    for_services = "on" if settings.service_tokens else "off: AUTHSVC_SERVICE_TOKENS is not set"
    lines.append(f"WeChat: {settings.wechat_url} · /session/sign, check and reset are {for_services}")
    lines.extend(said)
    lines.extend(f"WARNING: {warning}" for warning in settings.warnings)
    if settings.sandbox:
        lines.append("next, in another terminal: make demo · Ctrl-C here ends both")
    click.echo("\n".join(lines))
