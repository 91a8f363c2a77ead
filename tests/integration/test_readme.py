"""What the README shows is what runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from authsvc.http.problems import PROBLEMS
from authsvc.settings import PREFIX, Environment
from tests.support.base_install import make_base_install, run_in
from tests.support.screen import screen
from tests.support.service import APPID, SECRET, Running, Service, authsvc, free_port, service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def issuer(tmp_path: Path, wechat: Running) -> Iterator[Service]:
    """A service whose issuer is its own address, so that verifiers find its keys there."""
    port = free_port()
    with service(tmp_path, wechat_url=wechat.url, port=port, ISSUER=f"http://127.0.0.1:{port}") as it:
        yield it


@pytest.mark.parametrize("block", _blocks("python"), ids=["authsvc", "pyjwt"])
def test_the_verifiers_of_the_readme_accept_a_token_and_refuse_a_changed_one(
    tmp_path: Path, issuer: Service, block: str
) -> None:
    token = issuer.token()
    jwks = requests.get(f"{issuer.url}/.well-known/jwks.json", timeout=10).json()
    site = make_base_install(tmp_path / "site")
    program = block.replace("https://auth.example.com", issuer.url)
    for given, said in ((token, "welcome o"), (token[:-5] + "AAAAA", "answer 401: invalid")):
        done = run_in(site, f"jwks = {jwks!r}\ntoken = {given!r}\n{program}")
        assert done.stderr == ""
        assert done.stdout.startswith(said)


def test_the_wechat_library_of_the_readme_logs_in_checks_the_key_and_reads_open_data(
    issuer: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = _blocks("python wechat")
    program = block.replace("https://api.weixin.qq.com", issuer.sandbox_url).replace("wx1234567890abcdef", APPID)
    names = {"secret": SECRET, "code": issuer.mint("reader")}
    data = issuer.order("open_data", user="reader")
    exec(compile(program, "README.md", "exec"), names | {"encrypted_data": data["encryptedData"], "iv": data["iv"]})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "the key is good: True"
    assert said[1].startswith("welcome ")
    exec(compile(program, "README.md", "exec"), names | {"encrypted_data": "", "iv": "", "code": "never-minted"})
    assert capsys.readouterr().out == "wx.login() again, once\n"


def test_the_flask_app_of_the_readme_passes_the_test_of_the_readme(tmp_path: Path) -> None:
    ((app,), (test,)) = _blocks("python flask"), _blocks("python test")
    (tmp_path / "test_app.py").write_text(f"{app}\n\n{test}")
    done = subprocess.run(
        [sys.executable, "-W", "error", "test_app.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_mini_program_of_the_readme_logs_in_once_and_stays_logged_in(
    tmp_path: Path, issuer: Service, node: str
) -> None:
    (block,) = _blocks("js")
    shop = tmp_path / "shop"
    done = authsvc("miniprogram", str(shop), "--url", issuer.url, "--appid", APPID, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert block.count("https://auth.example.com") == 1
    (shop / "app.js").write_text(block.replace("https://auth.example.com", issuer.url))
    asked = []
    for _ in range(2):
        with screen(node, shop, sandbox_url=issuer.sandbox_url, storage=tmp_path / "storage.json") as phone:
            asked.append(phone.order("launch")["events"])
    assert asked == [["wx.login", "POST /login"], []]


def test_the_readme_has_every_error_code_with_its_status() -> None:
    rows = dict(re.findall(r"^\| (`[a-z_`, ]+`) \| ([0-9, ]+) \|", README, flags=re.MULTILINE))
    told: dict[str, set[str]] = {}
    for codes, statuses in rows.items():
        for code in re.findall(r"`([a-z_]+)`", codes):
            told[code] = set(statuses.split(", "))
    assert told.keys() == PROBLEMS.keys()
    assert all(str(PROBLEMS[code].status) in statuses for code, statuses in told.items())


def test_the_readme_has_every_setting_with_its_default() -> None:
    section = README.split("## Configuration", 1)[1].split("\n## ", 1)[0]
    for name, field in Environment.model_fields.items():
        assert f"`{PREFIX}{name}`" in section or f"`{name}`" in section, name
        if f"`{PREFIX}{name}`" in section and isinstance(field.default, int | str) and field.default:
            row = next(line for line in section.splitlines() if f"`{PREFIX}{name}`" in line)
            default = int(field.default) if isinstance(field.default, bool) else field.default
            assert f"`{default}`" in row, name


def test_every_make_target_that_the_readme_names_exists() -> None:
    runbook = (ROOT / "keys" / "README.md").read_text("utf-8")
    named = set(re.findall(r"(?:`|^|=1 )make ([a-z-]+)", README + runbook, flags=re.MULTILINE))
    assert {"run", "rotate", "revoke", "keys-passphrase"} <= named
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert named <= set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
