"""`authsvc miniprogram`: what it writes is what WeChat's DevTools expect, and what it refuses it says how to mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from authsvc.miniprogram import FILES
from tests.support.devtools import complaints
from tests.support.service import APPID, OTHER_APPID, OTHER_SECRET, SECRET, authsvc

URL = "https://login.example.com"


def _written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_command_writes_a_mini_program_with_address_and_appid_in_it(tmp_path: Path) -> None:
    done = authsvc("miniprogram", "shop", "--url", URL, cwd=tmp_path, APPID=APPID)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path / "shop") in done.stdout
    assert _written(tmp_path / "shop") == set(FILES)
    assert URL in (tmp_path / "shop" / "app.js").read_text("utf-8")
    assert json.loads((tmp_path / "shop" / "project.config.json").read_text("utf-8"))["appid"] == APPID


def test_no_secret_gets_into_it(tmp_path: Path) -> None:
    assert authsvc("miniprogram", "shop", "--url", URL, cwd=tmp_path, APPID=APPID, SECRET=SECRET).returncode == 0
    assert not [name for name in FILES if SECRET in (tmp_path / "shop" / name).read_text("utf-8")]


def test_of_several_apps_one_has_to_be_named(tmp_path: Path) -> None:
    apps = {"APPS": json.dumps({APPID: SECRET, OTHER_APPID: OTHER_SECRET})}
    refused = authsvc("miniprogram", "shop", "--url", URL, cwd=tmp_path, **apps)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--appid has to say which" in refused.stderr
    assert APPID in refused.stderr
    assert OTHER_APPID in refused.stderr
    assert SECRET not in refused.stderr
    assert list(tmp_path.iterdir()) == []
    done = authsvc("miniprogram", "shop", "--url", URL, "--appid", OTHER_APPID, cwd=tmp_path, **apps)
    assert done.returncode == 0
    assert json.loads((tmp_path / "shop" / "project.config.json").read_text("utf-8"))["appid"] == OTHER_APPID


@pytest.mark.parametrize("settings", [{}, {"SANDBOX": "1"}], ids=["none", "sandbox"])
def test_without_an_appid_of_wechats_it_says_where_one_is_to_be_had(tmp_path: Path, settings: dict[str, str]) -> None:
    done = authsvc("miniprogram", "shop", "--url", URL, cwd=tmp_path, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert "mp.weixin.qq.com" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_http_is_for_this_machine_alone_and_that_is_said(tmp_path: Path) -> None:
    done = authsvc("miniprogram", "shop", "--url", "http://127.0.0.1:3000", "--appid", APPID, cwd=tmp_path)
    assert done.returncode == 0
    assert "a phone needs https" in done.stderr
    refused = authsvc("miniprogram", "other", "--url", "http://192.168.1.7:3000", "--appid", APPID, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a phone needs https" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "app.js").write_text("mine")
    done = authsvc("miniprogram", "shop", "--url", URL, "--appid", APPID, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is overwritten" in done.stderr
    assert "Traceback" not in done.stderr
    assert _written(tmp_path) == {"shop/app.js"}
    assert (tmp_path / "shop" / "app.js").read_text() == "mine"


KINDS = {
    "app.json": "app",
    "pages/index/index.json": "page",
    "project.config.json": "projectconfig",
    "sitemap.json": "sitemap",
}


@pytest.fixture
def configuration(tmp_path: Path) -> dict[str, Any]:
    assert authsvc("miniprogram", "shop", "--url", URL, "--appid", APPID, cwd=tmp_path).returncode == 0
    return {name: json.loads((tmp_path / "shop" / name).read_text("utf-8")) for name in KINDS}


def test_devtools_have_no_complaint_about_the_configuration(configuration: dict[str, Any], node: str) -> None:
    assert {name for name in FILES if name.endswith(".json")} == set(KINDS)
    assert [said for name, kind in KINDS.items() for said in complaints(node, kind, configuration[name])] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("app.json", {"pages": None}),
        ("app.json", {"style": "v3"}),
        ("app.json", {"windw": {}}),
        ("pages/index/index.json", {"navigationBarTitleText": 1}),
        ("project.config.json", {"appid": 1}),
        ("project.config.json", {"libVersion": "newest"}),
        ("project.config.json", {"compiletype": "miniprogram"}),
        ("project.config.json", {"setting": {"urlcheck": False}}),
        ("sitemap.json", {"rules": {}}),
    ],
)
def test_devtools_complain_of_what_is_wrong(
    configuration: dict[str, Any], node: str, name: str, change: dict[str, Any]
) -> None:
    assert list(complaints(node, KINDS[name], configuration[name] | change))


def test_every_page_has_its_four_files_and_the_documented_fields_are_there(configuration: dict[str, Any]) -> None:
    # https://developers.weixin.qq.com/miniprogram/dev/reference/configuration/app.html: pages; each has four files.
    for page in configuration["app.json"]["pages"]:
        assert {f"{page}.{kind}" for kind in ("js", "json", "wxml", "wxss")} <= set(FILES)
    assert configuration["app.json"]["sitemapLocation"] in FILES
    # https://developers.weixin.qq.com/miniprogram/dev/devtools/projectconfig.html
    project = configuration["project.config.json"]
    assert (project["compileType"], project["appid"], project["projectname"]) == ("miniprogram", APPID, "authsvc-login")
