"""`authsvc deploy docker`: its steps make something that serves, as nobody in particular, from files that it cannot
write to. There is no docker here: tests/support/image.py says what stands in for it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest
import requests

from tests.support.commands import audit_lines
from tests.support.image import ROOT, Image
from tests.support.service import APPID, ISSUER, SECRET, Running, longest_stop_s

PYTHON: Final = "/opt/authsvc/bin/python"
# What is left for the main process to end in.
SLACK_S: Final = 5
CAN_BE_WRITTEN: Final = """
import os, sys
for folder, _, files in os.walk(sys.argv[1]):
    for path in (folder, *(os.path.join(folder, name) for name in files)):
        if not os.path.islink(path) and os.access(path, os.W_OK):
            print(path)
"""


@pytest.fixture
def secret_file() -> Iterator[Path]:
    """Where the user of the image can read it, and not in the image."""
    folder = Path(tempfile.mkdtemp(prefix="authsvc-"))
    folder.chmod(0o755)
    path = folder / "appsecret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o644)
    yield path
    shutil.rmtree(folder)


def _package(image: Image) -> Path:
    (package,) = image.path("/opt/authsvc").glob("lib/python*/site-packages/authsvc")
    return package


def _health(image: Image, it: Running, **variables: str) -> int:
    """What its check ends with."""
    port = it.url.rpartition(":")[2]
    return image.run(image.healthcheck, AUTHSVC_PORT=port, **variables).returncode


# ---- what is in it ------------------------------------------------------------------------------


def test_hadolint_has_no_complaint_about_the_dockerfile(dockerfile: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{ROOT / '.venv' / 'bin'}:{os.environ.get('PATH', '')}")
    if hadolint is None:
        if os.environ.get("CI"):
            pytest.fail("hadolint is missing: the Dockerfile was not looked at")
        pytest.skip("HADOLINT IS MISSING: the Dockerfile was not looked at")
    # DL3059, two RUN in a row: put together they would need a shell.
    command = [hadolint, "--no-color", "--ignore", "DL3059", "-"]
    done = subprocess.run(command, input=dockerfile, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_runs_as_a_number_that_is_not_root_and_listens_everywhere(image: Image) -> None:
    assert re.fullmatch(r"([1-9][0-9]{4}):\1", image.user), "Kubernetes cannot tell of a name that it is not root"
    assert image.environment["AUTHSVC_HOST"] == "0.0.0.0"
    assert image.stop_signal == "SIGTERM"


def test_the_command_that_the_dockerfile_shows_gives_the_service_time_to_answer(dockerfile: str) -> None:
    (seconds,) = re.findall(r"--stop-timeout (\d+) ", dockerfile)
    assert int(seconds) > longest_stop_s() + SLACK_S


def test_the_last_stage_has_the_service_and_every_driver_and_nothing_that_builds_or_installs(image: Image) -> None:
    assert {"granian", "psycopg", "pymysql", "redis"} <= {path.name for path in _package(image).parent.iterdir()}
    assert {path.name for path in image.root.iterdir()} == {"opt", "var"}
    commands = {path.name for path in image.path("/opt/authsvc/bin").iterdir()}
    assert ("authsvc" in commands, [name for name in commands if name.startswith("pip")]) == (True, [])
    assert not (_package(image).parent / "pip").exists()


def test_the_extras_that_are_installed_exist(image: Image) -> None:
    assert "does not provide the extra" not in image.said


def test_the_image_has_every_template_and_no_key_or_store_that_lay_about(image: Image, dockerfile: str) -> None:
    assert [path.name for path in _package(image).rglob("*") if path.suffix in (".pem", ".key", ".db")] == []
    assert {"Dockerfile", "authsvc.service", "k8s.yaml"} <= {p.name for p in (_package(image) / "deploy").iterdir()}
    assert image.run([*image.entrypoint, "deploy", "docker"]).stdout == dockerfile


def test_its_user_can_write_to_the_working_folder_alone_which_is_closed_to_others(image: Image) -> None:
    assert image.emptied().stat().st_mode & 0o777 == 0o700, "a new volume gets that too"
    done = image.run([PYTHON, "-c", CAN_BE_WRITTEN, str(image.root)])
    assert (done.stdout.splitlines(), done.stderr) == ([str(image.path(image.workdir))], "")


# ---- what it does -------------------------------------------------------------------------------


def test_the_image_serves_the_sandbox_and_its_check_says_whether_it_does(image: Image, tmp_path: Path) -> None:
    folder, before = image.emptied(), image.files()
    with image.serving(tmp_path / "log", SANDBOX="1") as it:
        assert requests.get(f"{it.url}/healthz", timeout=10).json() == {"status": "ok"}
        assert requests.get(f"{it.url}/readyz", timeout=10).json()["status"] == "ready"
        assert f"authsvc {version('authsvc')} listens on 0.0.0.0" in it.output()
        assert _health(image, it) == 0
        assert _health(image, it, http_proxy="http://127.0.0.1:9") == 0, "it asks no proxy"
        assert it.stop(getattr(signal, image.stop_signal)) == 0
        assert _health(image, it) == 1
        assert "Traceback" not in it.output()
    assert image.files() == before
    assert (folder / ".sandbox" / "authsvc.db").exists()


def test_after_keys_init_in_a_new_volume_the_service_finds_all_it_needs_there(
    image: Image, tmp_path: Path, secret_file: Path
) -> None:
    folder, before = image.emptied(), image.files()
    made = image.run([*image.entrypoint, "keys", "init"])
    assert (made.returncode, len(audit_lines(made.stderr))) == (0, 1)
    with image.serving(tmp_path / "log", APPID=APPID, SECRET_FILE=str(secret_file), ISSUER=ISSUER) as it:
        said = requests.get(f"{it.url}/readyz", timeout=10).json()
        assert (said["status"], said["keys"], said["store"]) == ("ready", "ok", "ok")
        assert image.run([*image.entrypoint, "keys", "rotate"]).returncode == 0
        assert it.stop(getattr(signal, image.stop_signal)) == 0
        assert "Traceback" not in it.output()
        assert "is no setting of authsvc" not in it.output()
    assert image.files() == before
    assert {"keys", "authsvc.db"} <= {path.name for path in folder.iterdir()}
