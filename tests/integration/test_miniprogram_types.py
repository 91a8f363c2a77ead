"""The library and the example are clean under the strict checks of TypeScript, with WeChat's own types."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.devtools import FOLDER, need

WITHOUT = "the mini-program's types were not checked"
SHIPPED = Path(__file__).parents[2] / "authsvc" / "miniprogram"


@pytest.fixture
def compiler(node: str) -> list[str]:
    need("miniprogram-api-typings", WITHOUT)
    program = need("typescript", WITHOUT) / "bin" / "tsc"
    return [node, str(program), "--noEmit", "--allowJs", "--checkJs", "--strict", "--pretty", "false", "--project"]


def _complaints(compiler: list[str], project: Path) -> list[str]:
    done = subprocess.run([*compiler, str(project)], capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert bool(said) is bool(done.returncode), done.stdout
    return said


def test_the_compiler_has_no_complaint_about_library_and_example(compiler: list[str]) -> None:
    listed = subprocess.run(
        [*compiler, str(FOLDER), "--listFilesOnly"], capture_output=True, text=True, timeout=100, check=True
    ).stdout
    for name in ("auth.js", "app.js", "errors.js", "pages/index/index.js"):
        assert str(SHIPPED / name) in listed
    assert _complaints(compiler, FOLDER) == []


def test_the_compiler_complains_of_what_is_wrong(compiler: list[str], tmp_path: Path) -> None:
    """What it lets through is worth something only if it stops mistakes of this kind."""
    shutil.copytree(SHIPPED, tmp_path / "shop")
    page = tmp_path / "shop" / "pages" / "index" / "index.js"
    text = page.read_text("utf-8")
    for right, wrong in (
        ("auth.check()", "auth.chek()"),
        ("claims ? claims.openid", "claims.openid ? claims.openid"),
        ("errMsg } }", "errmsg } }"),
    ):
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    page.write_text(text)
    options = {"typeRoots": [str(FOLDER / "node_modules")]}
    project = {"extends": str(FOLDER / "tsconfig.json"), "compilerOptions": options, "include": ["shop/**/*.js"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(project))
    said = _complaints(compiler, tmp_path)
    assert [code for line in said for code in ("TS2551", "TS2339", "TS18047") if code in line]
    for word in ("chek", "errmsg", "possibly 'null'"):
        assert any(word in line for line in said), said
