"""`authsvc deploy systemd`: systemd has no complaint about the unit, and what it says to start serves."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from tests.support.service import APPID, ISSUER, SECRET, authsvc, clean_environment, free_port, longest_stop_s, running

Unit = dict[str, list[str]]

NAME: Final = "authsvc.service"
# What is left for the main process to end in.
SLACK_S: Final = 5
# 2.0 of 10; it is 1.4 by systemd 252, and every version looks at more.
WORST_EXPOSURE: Final = 20
TOLD_WITHIN_S: Final = 60


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """systemd looks whether the program is there."""
    (tmp_path / "venv").symlink_to(sys.prefix)
    return tmp_path / "venv"


def _printed(tmp_path: Path, *options: str) -> str:
    done = authsvc("deploy", "systemd", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _parsed(text: str) -> Unit:
    """systemd.syntax(7), without continued lines: a directive may be given several times, and adds up."""
    unit: Unit = defaultdict(list)
    for line in text.splitlines():
        assert not line.endswith("\\")
        if line and line[0] not in "#;[":
            name, equals, value = line.partition("=")
            assert equals, line
            unit[name].append(value)
    return unit


def _environment(unit: Unit, credentials: Path) -> dict[str, str]:
    return dict(value.replace("%d", str(credentials)).split("=", 1) for value in unit["Environment"])


def _systemd_analyze(*args: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        # No package that the tests could install for themselves has it.
        pytest.skip("SYSTEMD-ANALYZE IS MISSING: the unit was read by the tests alone")
    environment = {name: value for name, value in os.environ.items() if name != "SYSTEMD_UNIT_PATH"}
    return subprocess.run(
        [program, "--no-pager", *args], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_systemd_has_no_complaint_about_the_unit(tmp_path: Path, venv: Path) -> None:
    path = tmp_path / NAME
    path.write_text(_printed(tmp_path, "--venv", str(venv), "--appid", APPID, "--issuer", ISSUER))
    done = _systemd_analyze("verify", "--man=no", str(path))
    # Of other units of this machine it says what it likes.
    assert [line for line in done.stderr.splitlines() if NAME in line or "authsvc" in line] == []
    assert done.returncode == 0, done.stderr


def test_systemd_finds_little_that_the_unit_leaves_open(tmp_path: Path, venv: Path) -> None:
    path = tmp_path / NAME
    path.write_text(_printed(tmp_path, "--venv", str(venv)))
    done = _systemd_analyze("security", "--offline=true", f"--threshold={WORST_EXPOSURE}", str(path))
    if "unrecognized option" in done.stderr:
        pytest.skip("SYSTEMD-ANALYZE IS OLD: it cannot look at a unit that does not run")
    assert done.returncode == 0, done.stdout


def test_the_unit_lets_the_service_write_to_its_own_folder_alone(tmp_path: Path) -> None:
    unit = _parsed(_printed(tmp_path))
    assert (unit["User"], unit["NoNewPrivileges"], unit["CapabilityBoundingSet"]) == (["authsvc"], ["yes"], [""])
    assert (unit["ProtectSystem"], unit["PrivateTmp"], unit["ProtectHome"]) == (["strict"], ["yes"], ["yes"])
    assert (unit["StateDirectory"], unit["StateDirectoryMode"]) == (["authsvc"], ["0700"])
    assert unit["WorkingDirectory"] == ["/var/lib/authsvc"], "where the keys and the store are by default"
    assert not unit.keys() & {"ReadWritePaths", "BindPaths", "CacheDirectory", "LogsDirectory", "RuntimeDirectory"}


def test_the_unit_closes_what_the_service_does_not_need_and_leaves_open_what_it_does(tmp_path: Path) -> None:
    unit = _parsed(_printed(tmp_path))
    assert unit["SystemCallFilter"] == [
        "@system-service",
        "~@privileged @resources",
        "setpriority sched_setscheduler",
    ]
    # To systemd, or a database on this host, it speaks by a local socket.
    assert set(unit["RestrictAddressFamilies"][0].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}
    assert (unit["MemoryDenyWriteExecute"], unit["UMask"]) == (["yes"], ["0077"])


def test_what_is_not_said_is_what_the_comments_set_up(tmp_path: Path) -> None:
    unit = _parsed(_printed(tmp_path))
    assert unit["ExecStart"] == ["/opt/authsvc/bin/authsvc serve"]
    assert "AUTHSVC_TRUSTED_PROXIES=1" in unit["Environment"], "one load balancer"


def test_systemd_waits_for_longer_than_the_service_may_take_to_end(tmp_path: Path) -> None:
    unit = _parsed(_printed(tmp_path))
    assert int(unit["TimeoutStopSec"][0]) > longest_stop_s() + SLACK_S
    assert unit["KillMode"] == ["mixed"], "a second SIGTERM from systemd would meet workers that end already"


def test_the_unit_is_told_when_the_service_is_ready_and_reloads_by_a_signal(tmp_path: Path) -> None:
    unit = _parsed(_printed(tmp_path))
    assert (unit["Type"], unit["NotifyAccess"]) == (["notify"], ["main"])
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_what_the_unit_starts_serves_from_a_credential_and_its_folder_and_tells_systemd_how_it_is(
    tmp_path: Path, venv: Path
) -> None:
    options = ("--venv", str(venv), "--appid", APPID, "--issuer", ISSUER, "--trusted-proxies", "2")
    unit = _parsed(_printed(tmp_path, *options))
    state, credentials, port = tmp_path / "state", tmp_path / "credentials", free_port()
    state.mkdir(mode=0o700)
    credentials.mkdir()
    name, _, source = unit["LoadCredential"][0].partition(":")
    assert source == "/etc/authsvc/appsecret"
    (credentials / name).write_text(f"{SECRET}\n")
    assert authsvc("keys", "init", cwd=state).returncode == 0
    environment = clean_environment() | _environment(unit, credentials)
    assert environment["AUTHSVC_TRUSTED_PROXIES"] == "2"
    environment |= {"AUTHSVC_PORT": str(port), "AUTHSVC_WORKERS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(environment["NOTIFY_SOCKET"])
        systemd.settimeout(TOLD_WITHIN_S)
        with running(
            # sh, for the umask.
            ["sh", "-c", f"umask {unit['UMask'][0]} && exec {unit['ExecStart'][0]}"],
            log=tmp_path / "log",
            cwd=state,
            environment=environment,
            url=f"http://127.0.0.1:{port}",
            probe="/readyz",
        ) as it:
            assert systemd.recv(4096).startswith(b"READY=1")
            said = requests.get(f"{it.url}/readyz", timeout=10).json()
            assert (said["status"], said["store"]) == ("ready", "ok")
            metadata: dict[str, Any] = requests.get(f"{it.url}/.well-known/openid-configuration", timeout=10).json()
            assert metadata["issuer"] == ISSUER
            subprocess.run(unit["ExecReload"][0].replace("$MAINPID", str(it.process.pid)).split(), check=True)
            assert systemd.recv(4096).startswith(b"RELOADING=1")
            assert systemd.recv(4096).startswith(b"READY=1")
            assert it.stop() == 0
            assert systemd.recv(4096).startswith(b"STOPPING=1")
    assert "is no setting of authsvc" not in it.output()
    assert {"keys", "authsvc.db"} <= {path.name for path in state.iterdir()}


def test_the_service_does_not_start_on_what_was_left_to_be_said(tmp_path: Path) -> None:
    done = authsvc("deploy", "systemd", cwd=tmp_path)
    assert done.stderr == "to be replaced before it is used: <APPID>, <ISSUER>\n"
    (tmp_path / "appsecret").write_text(SECRET)
    given = _environment(_parsed(done.stdout), tmp_path)
    settings = {name.removeprefix("AUTHSVC_"): value for name, value in given.items() if name.startswith("AUTHSVC_")}
    refused = authsvc("config", cwd=tmp_path, **settings)
    assert refused.returncode == 2
    told = [line for line in refused.stderr.splitlines() if line.startswith("  - ")]
    assert ["AUTHSVC_APPID" in told[0], "AUTHSVC_ISSUER" in told[1], len(told)] == [True, True, 2]


def test_an_option_of_another_form_is_refused_and_nothing_is_printed(tmp_path: Path) -> None:
    done = authsvc("deploy", "systemd", "--user", "a b", "--issuer", "https://x/", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--user is not" in done.stderr
    assert "--issuer is not" in done.stderr
