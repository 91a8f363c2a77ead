"""What gets into a commit, a wheel and an sdist: code and texts, and never a key, a store or a setting."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from authsvc.miniprogram import FILES
from tests.support.base_install import make_base_install, run_in

ROOT = Path(__file__).parents[2]

SECRETS = [
    "keys/keyset.json",
    "keys/keyset.json.123.tmp",
    "keys/.lock",
    "keys/.init",
    "keys/sign-abc.pem",
    "keys/seal-0123abcd.key",
    "keys/index-0123abcd.key",
    ".sandbox/keys/sign-abc.pem",
    ".sandbox/authsvc.db",
    "authsvc.db",
    "authsvc.db-wal",
    "authsvc.db-shm",
    ".env",
    ".env.production",
    "authsvc/store/left-over.db",
    "authsvc/sign-abc.pem",
    "tests/seal-0123abcd.key",
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are here, as a repository of their own, with secrets lying about in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    for name in SECRETS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("MARKER")
    return folder


@pytest.fixture(scope="module")
def built(checkout: Path) -> dict[str, list[str]]:
    out = checkout / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = ["/".join(Path(name).parts[1:]) for name in archive.getnames()]
    return {"wheel": zipfile.ZipFile(wheel).namelist(), "sdist": in_sdist}


def test_nothing_secret_can_be_committed_by_a_plain_git_add(checkout: Path) -> None:
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    seen = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.split()
    assert set(seen) & set(SECRETS) == set()
    assert [name for name in seen if not name.startswith("dist/")] == []


def test_no_tracked_file_has_anything_in_it_that_looks_like_a_private_key(checkout: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True)
    looks = re.compile(rb"-{5}BEGIN [A-Z ]*PRIVATE KEY-{5}|\"d\": *\"[A-Za-z0-9_-]{40,}\"")
    assert [name for name in listed.stdout.splitlines() if looks.search((checkout / name).read_bytes())] == []


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_nothing_secret_is_in_what_is_built(built: dict[str, list[str]], kind: str) -> None:
    assert set(built[kind]) & set(SECRETS) == set()
    odd = [n for n in built[kind] if n.endswith((".pem", ".key", ".db", ".tmp")) or ".env" in n or "keyset.json" in n]
    assert odd == []


def test_the_wheel_has_the_code_its_types_its_migrations_and_its_templates(built: dict[str, list[str]]) -> None:
    wheel = set(built["wheel"])
    assert {"authsvc/__init__.py", "authsvc/py.typed", "authsvc/tokens.py"} <= wheel
    assert {"authsvc/http/docs.html", "authsvc/http/docs.css"} <= wheel
    assert any(name.startswith("authsvc/store/migrations/versions/0001") for name in wheel)
    assert {f"authsvc/deploy/{name}" for name in ("Dockerfile", "authsvc.service", "k8s.yaml", "grafana.json")} <= wheel
    assert {f"authsvc/miniprogram/{name}" for name in (*FILES, "README.md")} <= wheel
    assert not [name for name in wheel if not name.startswith(("authsvc/", "authsvc-"))]


DOORS = "import authsvc, authsvc.testing, authsvc.verifier.wsgi, authsvc.verifier.asgi\nauthsvc.Verifier\n"


def test_the_verifying_side_works_where_there_is_nothing_but_pyjwt_and_cryptography(tmp_path: Path) -> None:
    program = f"""{DOORS}
issuer = authsvc.testing.FakeIssuer()
with issuer.served() as url, authsvc.Verifier(url, audience="api") as verifier:
    print(verifier.verify(issuer.token("oAlice")).openid)
"""
    done = run_in(make_base_install(tmp_path / "site"), program)
    assert (done.stdout, done.stderr) == ("oAlice\n", "")


def test_importing_the_verifying_side_loads_no_server_and_no_framework() -> None:
    names = "{'flask', 'werkzeug', 'requests', 'django', 'starlette', 'pytest', 'structlog', 'sqlalchemy', 'click'}"
    program = f"import sys\n{DOORS}print(sorted({names} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_top_level_has_nothing_but_what_belongs_there(checkout: Path) -> None:
    command = ["git", "ls-files", "--cached"]
    tracked = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.splitlines()
    tops = {name.split("/")[0] for name in tracked}
    assert {top for top in tops if not top.startswith(".")} == {
        *("authsvc", "keys", "tests"),
        *("LICENSE", "Makefile", "README.md", "pyproject.toml"),
    }
    assert [name for name in tracked if name.startswith("keys/")] == ["keys/README.md"]
