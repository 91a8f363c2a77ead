"""What the service is run and watched by elsewhere, as text: a Dockerfile, a systemd unit, Kubernetes manifests, and a
dashboard for Grafana."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Final

from authsvc.errors import SettingsError


class Template(StrEnum):
    """The name of its file in this package."""

    DOCKER = "Dockerfile"
    SYSTEMD = "authsvc.service"
    KUBERNETES = "k8s.yaml"


@dataclass(frozen=True, slots=True)
class Filled:
    """`left`: the marks, such as `<APPID>`, that stand where a value was not given."""

    text: str
    left: tuple[str, ...]


def fill(template: Template, values: Mapping[str, str | None]) -> Filled:
    """The template with every `{{name}}` in it replaced by the value of that name.

    None leaves a mark that the service refuses to start on. No value may be a secret: what is printed gets into files
    and repositories.
    Raises: SettingsError for values that are not of their form; KeyError if one that the template has is not there.
    """
    problems = [
        f"--{name.replace('_', '-')} is not {_FORMS[name].words}"
        for name, value in values.items()
        if value is not None and not _FORMS[name].pattern.fullmatch(value)
    ]
    if problems:
        raise SettingsError(problems)
    left: dict[str, None] = {}

    def put(found: re.Match[str]) -> str:
        value = values[found[1]]
        if value is None:
            value = f"<{found[1].upper()}>"
            left[value] = None
        return value

    text = _PLACE.sub(put, files(__name__).joinpath(template.value).read_text("utf-8"))
    return Filled(text, tuple(left))


def dashboard() -> str:
    """JSON that Grafana imports. It asks a Prometheus that scrapes `/metrics`."""
    return files(__name__).joinpath("grafana.json").read_text("utf-8")


_PLACE: Final = re.compile(r"\{\{([a-z_]+)\}\}")


@dataclass(frozen=True, slots=True)
class _Form:
    """So narrow that a value needs no quotes and means nothing more in any of the three languages."""

    pattern: re.Pattern[str]
    words: str


_IMAGE: Final = _Form(re.compile(r"[0-9A-Za-z][0-9A-Za-z._:/@-]{0,254}"), "the name of an image")
_FORMS: Final = {
    "appid": _Form(re.compile(r"[0-9A-Za-z_-]{1,64}"), "1 to 64 characters of 0-9, A-Z, a-z, _ and -"),
    "issuer": _Form(
        re.compile(r"https://[0-9A-Za-z.:\[\]_~/-]{0,254}[0-9A-Za-z\]_~-]"), "https://… without a slash at its end"
    ),
    "user": _Form(re.compile(r"[a-z_][0-9a-z_-]{0,30}"), "the name of a user"),
    "venv": _Form(re.compile(r"(/[0-9A-Za-z._+-]+)+"), "the absolute path of a folder, in plain characters"),
    "base": _IMAGE,
    "image": _IMAGE,
    "trusted_proxies": _Form(re.compile(r"[0-9]|1[0-6]"), "a number up to 16"),
    "version": _Form(re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!-]{0,63}"), "a version"),
}
