"""What is written out as a mini-program: nothing gets into it that means more there than it says."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from authsvc.errors import CannotWrite, SettingsError
from authsvc.miniprogram import FILES, project, warnings, write

URL = "https://auth.example.com"
APPID = "wx1234567890abcdef"


def test_all_that_lies_in_the_folder_is_written_but_the_module_and_the_readme() -> None:
    folder = Path(str(files("authsvc.miniprogram")))
    lying = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert lying - {"__init__.py", "README.md"} == set(FILES)


@pytest.mark.parametrize("url", [URL, "https://a.example:8443", "https://a.example/login-1", "http://localhost:3000"])
def test_address_and_appid_are_filled_in_and_nothing_else_is_changed(url: str) -> None:
    made = project(url=url, appid=APPID)
    folder = files("authsvc.miniprogram")
    assert f"baseURL: '{url}'" in made["app.js"].decode()
    assert made["app.js"].decode().replace(url, "{{url}}") == folder.joinpath("app.js").read_text("utf-8")
    changed = json.loads(made["project.config.json"])
    assert (changed["appid"], changed["setting"]["urlCheck"]) == (APPID, url.startswith("https"))
    assert not [name for name, content in made.items() if re.search(rb"{{(url|appid)}}", content)]
    for name in made.keys() - {"app.js", "project.config.json"}:
        assert made[name] == folder.joinpath(name).read_bytes()


def test_slashes_at_the_end_of_the_address_are_no_part_of_it() -> None:
    assert project(url=f"{URL}//", appid=APPID) == project(url=URL, appid=APPID)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "like https://"),
        ("auth.example.com", "like https://"),
        ("ftp://auth.example.com", "like https://"),
        ("https://", "like https://"),
        ("https://a.example'+x+'", "like https://"),
        ("https://user:secret@auth.example.com", "like https://"),
        ("https://auth.example.com/?a=b", "like https://"),
        ("https://auth.example.com\n", "like https://"),
        ("https://auth.example.com:65536", "like https://"),
        ("https://登录.example.com", "like https://"),
        ("http://auth.example.com", "a phone needs https"),
        ("http://192.168.1.7:3000", "a phone needs https"),
        ("http://localhost.example.com", "a phone needs https"),
        ("https://api.weixin.qq.com", "your own service"),
    ],
)
def test_an_address_that_no_mini_program_could_use_is_refused_with_the_reason(url: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        project(url=url, appid=APPID)


@pytest.mark.parametrize("appid", ["", "wx 1", 'wx"', "wx1\n", "x" * 65])
def test_an_appid_that_is_none_is_refused(appid: str) -> None:
    with pytest.raises(SettingsError, match="--appid is not "):
        project(url=URL, appid=appid)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        project(url="x", appid="?")
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    ("url", "appid", "words"),
    [
        (URL, APPID, []),
        ("http://localhost:3000", APPID, ["a phone needs https"]),
        ("http://127.0.0.1", APPID, ["a phone needs https"]),
        ("https://192.168.1.7", APPID, ["a phone needs a domain name"]),
        ("https://localhost", APPID, ["a phone needs a domain name"]),
        (URL, "touristappid", ["does not look like an appid"]),
        (URL, APPID.upper(), ["does not look like an appid"]),
    ],
)
def test_what_will_not_do_on_a_phone_is_said(url: str, appid: str, words: list[str]) -> None:
    said = warnings(url=url, appid=appid)
    assert len(said) == len(words)
    assert all(word in warning for word, warning in zip(words, said, strict=True))


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_or_an_empty_folder_gets_all_of_it(tmp_path: Path) -> None:
    made = project(url=URL, appid=APPID)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        assert write(made, tmp_path / name) == tmp_path / name
        assert _tree(tmp_path / name) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".hidden").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, word in (("mine", "has something in it"), ("file", "is a file")):
        with pytest.raises(CannotWrite, match=word):
            write({"app.js": b"x"}, tmp_path / name)
    assert _tree(tmp_path) == {"mine/.hidden": b"mine", "file": b"mine"}


def test_the_folder_that_one_stands_in_is_not_replaced_under_ones_feet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotWrite, match="the folder that you are in"):
        write({"app.js": b"x"}, Path())
    assert _tree(tmp_path) == {}


def test_a_folder_in_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="make that first"):
        write({"app.js": b"x"}, tmp_path / "missing" / "new")
    assert list(tmp_path.iterdir()) == []


def test_when_writing_fails_half_way_nothing_is_there(tmp_path: Path) -> None:
    # The second name cannot be made: its folder is a file.
    with pytest.raises(CannotWrite, match="cannot be written"):
        write({"app": b"x", "app/more.js": b"x"}, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
