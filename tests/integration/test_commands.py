"""The commands, as their users run them."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from authsvc.keyfiles import MANIFEST
from tests.support.service import (
    APPID,
    ISSUER,
    Running,
    authsvc,
    clean_environment,
    free_port,
    running,
    service,
)

REAL = {"APPID": APPID, "SECRET": "SECRETMARKER", "ISSUER": ISSUER}


def test_keys_init_makes_keys_once_and_says_what_it_did(tmp_path: Path) -> None:
    first = authsvc("keys", "init", cwd=tmp_path)
    assert first.returncode == 0
    assert str(tmp_path / "keys") in first.stdout
    manifest = (tmp_path / "keys" / MANIFEST).read_bytes()
    again = authsvc("keys", "init", cwd=tmp_path, ALG="RS256")
    assert (again.returncode, "nothing was changed" in again.stdout) == (0, True)
    assert (tmp_path / "keys" / MANIFEST).read_bytes() == manifest
    as_json = authsvc("keys", "init", "--json", cwd=tmp_path)
    assert json.loads(as_json.stdout) == {"made": False, "folder": str(tmp_path / "keys"), "steps": []}


def test_keys_init_takes_a_policy_and_holds_it_to_the_formula(tmp_path: Path) -> None:
    short = ["--reload", "1", "--replication", "0", "--jwks-max-age", "1", "--jwks-stale-while-revalidate", "0"]
    short += ["--verifier-cache", "1", "--skew", "1"]
    refused = authsvc("keys", "init", "--lead", "3", *short, cwd=tmp_path)
    assert (refused.returncode, "below 4 s" in refused.stderr) == (2, True)
    assert not (tmp_path / "keys" / MANIFEST).exists()
    assert authsvc("keys", "init", "--lead", "4", *short, cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "keys" / MANIFEST).read_text())["policy"]["lead"] == 4


def test_keys_init_in_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = authsvc("keys", "init", cwd=tmp_path, KEYS=str(tmp_path / "file" / "keys"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_prints_what_is_in_force_with_secrets_masked(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AUTHSVC_AUDIENCE=shop\nAUTHSVC_OPS_TOKEN=SECRETMARKER0123456789\n")
    limits = "redis://:SECRETMARKER@localhost"
    done = authsvc("config", cwd=tmp_path, PORT="3100", HOST="[/x]", LIMITS_URL=limits, **REAL)
    assert done.returncode == 0
    rows = {parts[1].strip(): parts[2:4] for line in done.stdout.splitlines() if len(parts := line.split("│")) > 3}
    assert [cell.strip() for cell in rows["AUTHSVC_PORT"]] == ["3100", "environment"]
    assert [cell.strip() for cell in rows["AUTHSVC_AUDIENCE"]] == ["shop", ".env"]
    assert [cell.strip() for cell in rows["AUTHSVC_SECRET"]] == ["(set, not shown)", "environment"]
    assert [cell.strip() for cell in rows["AUTHSVC_HOST"]] == ["[/x]", "environment"]
    assert str(tmp_path / "keys") in rows["AUTHSVC_KEYS"][0]
    assert "SECRETMARKER" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [("config",), ("serve",)])
def test_every_problem_of_the_settings_is_named_at_once(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = authsvc(*command, cwd=tmp_path, APPID="wx1", PORT="x", ISSUER="nope", TOKEN_TTL="0")
    assert done.returncode == 2
    for name in ("SECRET", "PORT", "ISSUER", "TOKEN_TTL"):
        assert f"AUTHSVC_{name}" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_alone_would_keep_nobody_from_starting_is_said_to_be_a_warning(tmp_path: Path) -> None:
    issuer = REAL | {"ISSUER": "http://127.0.0.1:3000"}
    done = authsvc("serve", cwd=tmp_path, PORT="x", **issuer)
    lines = done.stderr.splitlines()
    assert [line.startswith("  - warning: ") for line in lines[1:]] == [False, True], lines


def _part(folder: Path) -> Path:
    return next((folder / "keys").glob("seal-*"))


REFUSALS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no keys": (lambda f: (f / "keys").rename(f / "away"), "keys", "authsvc keys init"),
    "an open folder": (lambda f: (f / "keys").chmod(0o755), "keys", "chmod 700"),
    "an open private part": (lambda f: _part(f).chmod(0o644), "seal-", "chmod 600"),
    "a broken manifest": (lambda f: (f / "keys" / MANIFEST).write_text("{"), MANIFEST, "restore"),
    "a missing private part": (lambda f: _part(f).unlink(), "seal-", "restore"),
    "a store that is none": (lambda f: (f / "authsvc.db").write_text("not a database at all"), "store", "store"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_serve_refuses_to_start_naming_file_and_mend(tmp_path: Path, name: str) -> None:
    assert authsvc("keys", "init", cwd=tmp_path).returncode == 0
    breaks, file, mend = REFUSALS[name]
    breaks(tmp_path)
    done = authsvc("serve", cwd=tmp_path, **REAL)
    assert done.returncode == 2
    assert file in done.stderr
    assert mend in done.stderr
    assert "Traceback" not in done.stderr
    assert "SECRETMARKER" not in done.stdout + done.stderr


def test_neither_service_starts_on_the_others_keys(tmp_path: Path) -> None:
    assert authsvc("keys", "init", cwd=tmp_path, SANDBOX="1").returncode == 0
    done = authsvc("serve", cwd=tmp_path, KEYS=".sandbox/keys", **REAL)
    assert (done.returncode, "for sandbox" in done.stderr) == (2, True)
    assert authsvc("keys", "init", cwd=tmp_path).returncode == 0
    (tmp_path / ".sandbox" / "keys").rename(tmp_path / "away")
    (tmp_path / "keys").rename(tmp_path / ".sandbox" / "keys")
    done = authsvc("serve", cwd=tmp_path, SANDBOX="1")
    assert (done.returncode, "for production" in done.stderr) == (2, True)


def test_the_sandbox_does_not_use_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".sandbox").symlink_to(elsewhere)
    done = authsvc("serve", cwd=tmp_path, SANDBOX="1")
    assert (done.returncode, "not a folder of ours" in done.stderr) == (2, True)
    assert list(elsewhere.iterdir()) == []


def test_a_port_that_is_taken_is_said_and_not_shared(tmp_path: Path) -> None:
    authsvc("keys", "init", cwd=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = authsvc("serve", cwd=tmp_path, **REAL, PORT=str(other.getsockname()[1]))
    assert (done.returncode, "cannot listen" in done.stderr) == (2, True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "0.0.0.0"])
def test_it_listens_where_it_is_told_by_name_or_number(tmp_path: Path, host: str) -> None:
    with service(tmp_path, wechat_url="http://127.0.0.1:1", HOST=host) as it:
        port = it.url.rsplit(":", 1)[1]
        there = {"0.0.0.0": "127.0.0.1"}.get(host, host)
        assert requests.get(f"http://{there}:{port}/healthz", timeout=10).status_code == 200


def test_an_address_of_another_machine_is_said(tmp_path: Path) -> None:
    authsvc("keys", "init", cwd=tmp_path)
    done = authsvc("serve", cwd=tmp_path, **REAL, HOST="256.1.1.1")
    assert (done.returncode, "cannot listen on 256.1.1.1" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_a_longer_token_lifetime_is_in_the_manifest_before_the_first_token(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, TOKEN_TTL="80000") as it:
        assert it.log_in().json()["expires_in"] == 80_000
        assert json.loads((tmp_path / "keys" / MANIFEST).read_text())["policy"]["ttl_max"] == 80_000
    with service(tmp_path, wechat_url=wechat.url) as it:
        assert it.log_in().json()["expires_in"] == 7_200
        assert json.loads((tmp_path / "keys" / MANIFEST).read_text())["policy"]["ttl_max"] == 80_000


def test_production_serves_on_keys_that_only_a_group_may_read(tmp_path: Path, wechat: Running) -> None:
    assert authsvc("keys", "init", cwd=tmp_path).returncode == 0
    for path in (tmp_path / "keys").iterdir():
        path.chmod(0o440)
    (tmp_path / "keys").chmod(0o550)
    with service(tmp_path, wechat_url=wechat.url, KEYS_GROUP_READ="1") as it:
        assert it.log_in().status_code == 200
    done = authsvc("serve", cwd=tmp_path, **REAL, KEYS_GROUP_READ="1", TOKEN_TTL="80000")
    assert (done.returncode, "read-only" in done.stderr) == (2, True)


def test_typ_jwt_is_issued_for_old_libraries_and_tokens_from_before_stay_good(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        before = it.token()
    with service(tmp_path, wechat_url=wechat.url, TYP="JWT") as it:
        assert it.check(it.token())["is_login"] is True
        assert it.check(before)["is_login"] is True


def test_what_the_service_writes_is_its_own_to_read(tmp_path: Path, wechat: Running) -> None:
    before = os.umask(0)
    try:
        with service(tmp_path, wechat_url=wechat.url) as it:
            assert it.log_in().status_code == 200
            stores = list(tmp_path.glob("authsvc.db*"))
            assert {path.name for path in stores} == {"authsvc.db", "authsvc.db-wal", "authsvc.db-shm"}
            assert {stat.S_IMODE(path.stat().st_mode) for path in stores} == {0o600}
    finally:
        os.umask(before)


def test_a_banned_user_is_told_so_over_http(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        assert it.log_in().status_code == 200
        with sqlite3.connect(tmp_path / "authsvc.db") as database:
            assert database.execute("UPDATE users SET state = 0").rowcount == 1
        database.close()
        reply = it.log_in()
        assert (reply.status_code, reply.json()["code"]) == (403, "user_banned")


def test_the_demo_plays_every_step_and_shows_no_secret(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(
        [sys.executable, "-m", "authsvc", "serve", "--or-sandbox"],
        log=tmp_path / "log",
        cwd=tmp_path,
        environment=clean_environment(PORT=str(port), WORKERS="1"),
        url=url,
        probe="/healthz",
    ) as it:
        done = authsvc("demo", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        for shown in (
            "/sandbox/code",
            "/checklogin",
            '"is_login": true',
            "at+jwt",
            "verified",
            "nickName",
            "code_used",
        ):
            assert shown in done.stdout
        assert "✗" not in done.stdout
        token = requests.post(f"{url}/login", json={"code": _mint(tmp_path)}, timeout=10).json()["token"]
        assert token.split(".")[0] not in done.stdout, "not even the start of a token stands there whole"
        assert "make demo" in it.output()
    gone = authsvc("demo", cwd=tmp_path)
    assert (gone.returncode, "make run" in gone.stdout) == (1, True)


def _mint(folder: Path) -> str:
    sandbox = json.loads((folder / ".sandbox" / "addresses.json").read_text())["sandbox"]
    code: str = requests.post(f"{sandbox}/sandbox/code", json={}, timeout=10).json()["code"]
    return code


def test_make_lists_its_targets_with_a_line_each() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(["make", "-s"], cwd=root, capture_output=True, text=True, timeout=30, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"run", "demo", "test", "check", "keys", "config", "lint", "types"} <= listed
    assert all(len(line.split()) > 2 for line in done.stdout.splitlines())
