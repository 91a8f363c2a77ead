"""Texts to run the service by: nothing gets into one that means more there than it says."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

import pytest

from authsvc.deploy import Template, fill
from authsvc.errors import SettingsError

GOOD: Final[dict[str, str | None]] = {
    "appid": "wx1234567890abcdef",
    "issuer": "https://auth.example.com",
    "user": "authsvc",
    "venv": "/opt/authsvc",
    "base": "registry.example.com:5000/python:3.11-slim-bookworm",
    "image": f"registry.example.com/team/authsvc@sha256:{'0' * 64}",
    "trusted_proxies": "2",
    "version": "1.2.3rc1",
}


@pytest.mark.parametrize("template", Template)
def test_every_place_of_a_template_is_filled_and_nothing_else_is_changed(template: Template) -> None:
    raw = files("authsvc.deploy").joinpath(template.value).read_text("utf-8")
    names = set(re.findall(r"{{(\w+)}}", raw))
    filled = fill(template, {name: GOOD[name] for name in names})
    for name in names:
        raw = raw.replace("{{" + name + "}}", str(GOOD[name]))
    assert (filled.text, filled.left) == (raw, ())


def test_what_is_not_given_stands_there_as_a_mark_and_is_named_once() -> None:
    filled = fill(Template.SYSTEMD, GOOD | {"appid": None, "issuer": None, "base": None})
    assert filled.left == ("<APPID>", "<ISSUER>")
    assert "AUTHSVC_APPID=<APPID>\n" in filled.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appid", ""),
        ("appid", 'wx"1'),
        ("appid", "wx%h"),
        ("appid", "wx1\n"),
        ("issuer", "http://auth.example.com"),
        ("issuer", "https://auth.example.com/"),
        ("issuer", "https://user:secret@auth.example.com"),
        ("issuer", "https://auth.example.com/?a=b"),
        ("issuer", "https://auth.example.com\nX=y"),
        ("issuer", "https://a%20b"),
        ("issuer", "https://"),
        ("user", "a b"),
        ("user", "0"),
        ("user", "$(id)"),
        ("venv", "opt/authsvc"),
        ("venv", "/opt/my authsvc"),
        ("venv", "/opt/$HOME"),
        ("venv", "/opt/%h"),
        ("image", "a b"),
        ("image", 'a"b'),
        ("image", "-a"),
        ("base", "python AS build\nRUN true"),
        ("trusted_proxies", "17"),
        ("trusted_proxies", "-1"),
        ("trusted_proxies", "one"),
    ],
)
def test_a_value_that_could_mean_something_else_in_the_text_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} is not "):
        fill(Template.DOCKER, GOOD | {name: value})


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        fill(Template.DOCKER, GOOD | {"issuer": "x", "appid": "?"})
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    "issuer", ["https://a", "https://auth.example.com:8443", "https://[2001:db8::1]", "https://a.example/tenant-1"]
)
def test_an_issuer_is_any_https_address_that_the_settings_take(issuer: str) -> None:
    assert f"AUTHSVC_ISSUER={issuer}\n" in fill(Template.SYSTEMD, GOOD | {"issuer": issuer}).text


def test_a_value_that_no_form_is_known_of_is_a_fault_of_the_program() -> None:
    with pytest.raises(KeyError):
        fill(Template.DOCKER, GOOD | {"secret": "x"})
    with pytest.raises(KeyError):
        fill(Template.DOCKER, {"version": "1"})
