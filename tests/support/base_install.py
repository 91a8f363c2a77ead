"""What `pip install authsvc` without extras brings, as a folder of links: for processes that must do with it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path


def base_packages() -> set[str]:
    """The distributions that the base install pulls in, authsvc itself not counted."""
    found: set[str] = set()
    left = _requirements("authsvc")
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _requirements(name)
    return found


def make_base_install(folder: Path) -> Path:
    """Links to the modules of these distributions and to authsvc, and to nothing else."""
    folder.mkdir()
    for name in base_packages():
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}
        for top in tops:
            source = Path(str(installed.locate_file(top)))
            if not (folder / top).exists() and not top.endswith(".dist-info") and top != "__pycache__":
                (folder / top).symlink_to(source)
    (folder / "authsvc").symlink_to(Path(__file__).parents[2] / "authsvc")
    return folder


def run_in(folder: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program that sees the standard library and `folder`, and no site-packages."""
    start = f"import sys; sys.path.append({str(folder)!r}); sys.argv[0] = 'verifier'\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + program, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _requirements(name: str) -> list[str]:
    lines = distribution(name).requires or []
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line]
    return [re.sub(r"[-_.]+", "-", name).lower() for name in names]
