"""`authsvc deploy`: texts to run the service by elsewhere. They are printed, and nothing is written anywhere."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

import click

from authsvc.cli.shared import plain_errors
from authsvc.deploy import Template, dashboard, fill

_VERSION: Final = version("authsvc")

_appid = click.option("--appid", help="The mini-program.  [default: a mark to be replaced]")
_issuer = click.option("--issuer", help="https://…, the address that verifiers use.  [default: a mark to be replaced]")
_trusted_proxies = click.option(
    "--trusted-proxies",
    default="1",
    show_default=True,
    help="How many proxies in front each add an address to X-Forwarded-For.",
)


@click.group()
def deploy() -> None:
    """Print a Dockerfile, a systemd unit, Kubernetes manifests or a dashboard. Comments say what to do with them.

    No secret is asked for or printed: secrets are read from files, where the service runs.
    """


@deploy.command("docker")
@click.option(
    "--base",
    # The Python and the Debian that the tests run on.
    default="python:3.11-slim-bookworm",
    show_default=True,
    help="The image to begin with, for a mirror or a digest (…@sha256:…): Python from 3.11 on a Debian.",
)
@plain_errors
def deploy_docker(base: str) -> None:
    """A Dockerfile, to be built in a checkout of the source."""
    _print(Template.DOCKER, base=base, version=_VERSION)


@deploy.command("systemd")
@click.option("--user", default="authsvc", show_default=True, help="Whom it runs as; also the name of a group.")
@click.option("--venv", default="/opt/authsvc", show_default=True, help="The virtual environment with authsvc in it.")
@_appid
@_issuer
@_trusted_proxies
@plain_errors
def deploy_systemd(user: str, venv: str, appid: str | None, issuer: str | None, trusted_proxies: str) -> None:
    """A unit for systemd: one host, SQLite unless said otherwise, keys that rotate by themselves."""
    _print(Template.SYSTEMD, user=user, venv=venv, appid=appid, issuer=issuer, trusted_proxies=trusted_proxies)


@deploy.command("k8s")
@click.option("--image", default=f"authsvc:{_VERSION}", show_default=True, help="What `deploy docker` was built to.")
@_appid
@_issuer
@_trusted_proxies
@plain_errors
def deploy_k8s(image: str, appid: str | None, issuer: str | None, trusted_proxies: str) -> None:
    """Manifests for Kubernetes: two pods, a shared store, keys from a Secret that an operator rotates."""
    _print(Template.KUBERNETES, image=image, appid=appid, issuer=issuer, trusted_proxies=trusted_proxies)


@deploy.command("grafana")
def deploy_grafana() -> None:
    """A dashboard for Grafana to import, over the figures of /metrics (AUTHSVC_OPS_TOKEN)."""
    click.echo(dashboard(), nl=False)


def _print(template: Template, **values: str | None) -> None:
    filled = fill(template, values)
    click.echo(filled.text, nl=False)
    if filled.left:
        # Beside the text, which goes into a file.
        click.echo(f"to be replaced before it is used: {', '.join(filled.left)}", err=True)
