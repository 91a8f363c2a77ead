"""What a Dockerfile makes, without docker: its steps done in a folder, by this machine's own Python.

It differs from the real thing in this: the base image is the Python that runs the test; pip asks no index, and what it
would have fetched is copied from the present environment, as far as the requirements name it; paths that begin with a
slash are below a folder. Only the few forms of instructions that ours has are understood; others are errors.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.service import Running, clean_environment, free_port, running

ROOT: Final = Path(__file__).parents[2]
# What lies about in the context, and is to get into no image.
STRAYS: Final = ("authsvc/sign-abc.pem", "authsvc/store/left-over.db")

_IN_CONTEXT: Final = ("authsvc", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
_FLAG: Final = re.compile(r"--([a-z-]+)=(\S+)\s+")
_IGNORED: Final = ("COMMENT", "ARG", "LABEL", "EXPOSE")


@dataclass
class Image:
    """The last stage: a folder, and how a process in it is to be run."""

    root: Path
    python: Path  # of the base image
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    stop_signal: str = ""
    said: str = ""  # by all steps

    def path(self, inside: str) -> Path:
        return self.root / inside.removeprefix("/")

    @property
    def uid(self) -> int | None:
        """Whom its processes run as out here: None where nobody can become another."""
        return int(self.user.split(":")[0]) if os.geteuid() == 0 else None

    def emptied(self) -> Path:
        """The working folder, as a new volume is."""
        folder = self.path(self.workdir)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return folder

    def files(self) -> set[Path]:
        """All but those in the working folder."""
        inside = self.path(self.workdir)
        return {path for path in self.root.rglob("*") if inside not in path.parents}

    def run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """To its end. A program has its path in the image."""
        return subprocess.run(
            [str(self.path(command[0])), *command[1:]],
            cwd=self.path(self.workdir),
            env=self._environment() | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            user=self.uid,
            group=self.uid,
            extra_groups=None if self.uid is None else (),
        )

    @contextlib.contextmanager
    def serving(self, log: Path, *, arguments: list[str] | None = None, **settings: str) -> Iterator[Running]:
        """Entry point and command, or other `arguments`, on a port of its own."""
        port = free_port()
        given = {"WORKERS": "1"} | settings | {"PORT": str(port)}
        program, *rest = [*self.entrypoint, *(self.command if arguments is None else arguments)]
        with running(
            [str(self.path(program)), *rest],
            log=log,
            cwd=self.path(self.workdir),
            environment=self._environment() | {f"AUTHSVC_{name}": value for name, value in given.items()},
            url=f"http://127.0.0.1:{port}",
            probe="/readyz",
            uid=self.uid,
        ) as it:
            yield it

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in clean_environment().items() if not name.startswith("PYTHON")}
        # Where it was made with a shared library, that is not where it was installed to any more.
        return ours | {"LD_LIBRARY_PATH": str(self.python.parents[1] / "lib")} | self.environment


@contextlib.contextmanager
def built_here(dockerfile: str) -> Iterator[Image]:
    """The image of this source tree, with what its user may not write to closed to that user."""
    # Not in pytest's own folder, which is closed to everybody else.
    folder = Path(tempfile.mkdtemp(prefix="authsvc-"))
    try:
        folder.chmod(0o755)
        context = folder / "context"
        context.mkdir()
        for name in _IN_CONTEXT:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, context / name)
        for name in STRAYS:
            (context / name).write_text("MARKER")
        image = build(dockerfile, context, folder)
        if image.uid is None:
            _close(image)
        yield image
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


def build(dockerfile: str, context: Path, folder: Path) -> Image:
    """`folder` is empty, and may be entered by the user that the image names."""
    steps = DockerfileParser(fileobj=io.BytesIO(dockerfile.encode())).structure
    users = [step["value"] for step in steps if step["instruction"] == "USER"]
    image = Image(folder / "root", _base_python(folder, Image(folder, folder, user=users[-1]).uid))
    stages: dict[str, Path] = {}
    name = ""
    for step in steps:
        what, value = step["instruction"], step["value"]
        if what == "FROM":
            if image.root.exists():
                # Every stage is in the same place while it is made: a virtual environment has its path in it.
                stages[name] = folder / f"stage-{name}"
                image.root.rename(stages[name])
            image = Image(folder / "root", image.python, said=image.said)
            image.root.mkdir()
            name = value.partition(" AS ")[2]
        elif what == "WORKDIR":
            image.workdir = value
            image.path(value).mkdir(parents=True, exist_ok=True)
        elif what == "COPY":
            _copy(image, value, context, stages)
        elif what == "RUN":
            image.said += _run(image, _exec_form(value))
        elif what == "ENV":
            image.environment |= dict(pair.split("=", 1) for pair in shlex.split(value))
        elif what == "USER":
            image.user = value
        elif what == "ENTRYPOINT":
            image.entrypoint = _exec_form(value)
        elif what == "CMD":
            image.command = _exec_form(value)
        elif what == "HEALTHCHECK":
            image.healthcheck = _exec_form(_FLAG.sub("", value).removeprefix("CMD"))
        elif what == "STOPSIGNAL":
            image.stop_signal = value
        else:
            assert what in _IGNORED, f"{what} is not understood here"
    return image


def closure(requirement: str) -> set[str]:
    """The distributions that `pip install` of it brings, itself not counted."""
    found: set[tuple[str, str]] = set()
    left = _named(Requirement(requirement))
    while left:
        name, extra = left.pop()
        if (name, extra) not in found:
            found.add((name, extra))
            for line in distribution(name).requires or ():
                wanted = Requirement(line)
                if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                    left += _named(wanted)
    return {name for name, _ in found} - {canonicalize_name(Requirement(requirement).name)}


def _close(image: Image) -> None:
    """Who is not root cannot become another user: what is another's there is made such that it cannot be written."""
    for path in (image.root, *image.files()):
        if not path.is_symlink() and path != image.path(image.workdir):
            path.chmod(path.stat().st_mode & ~0o222)


def _named(wanted: Requirement) -> list[tuple[str, str]]:
    return [(canonicalize_name(wanted.name), extra) for extra in ("", *wanted.extras)]


def _base_python(folder: Path, uid: int | None) -> Path:
    """The Python that runs the test, or a copy of it if that user cannot run it: it may be in somebody's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = Path(sys.base_prefix, "bin", version)
    with contextlib.suppress(OSError):
        done = subprocess.run([python, "-c", ""], user=uid, group=uid, cwd="/", capture_output=True, check=False)
        if done.returncode == 0:
            return python
    copy = folder / "python"
    (copy / "bin").mkdir(parents=True)
    shutil.copy(python, copy / "bin" / version)
    for library in Path(sys.base_prefix, "lib").glob("libpython*"):
        (copy / "lib").mkdir(exist_ok=True)
        shutil.copy(library, copy / "lib" / library.name)
    unused = shutil.ignore_patterns("site-packages", "test", "idlelib", "tkinter", "lib2to3", "config-*")
    shutil.copytree(Path(sys.base_prefix, "lib", version), copy / "lib" / version, ignore=unused)
    return copy / "bin" / version


def _exec_form(value: str) -> list[str]:
    words = json.loads(value)
    assert isinstance(words, list)
    assert all(isinstance(word, str) for word in words), f"{value} is no exec form"
    return words


def _copy(image: Image, value: str, context: Path, stages: Mapping[str, Path]) -> None:
    found = _FLAG.match(value)
    assert found is None or found[1] == "from", f"COPY {value} is not understood here"
    origin = stages[found[2]] if found else context
    *sources, target = _FLAG.sub("", value).split()
    to = image.path(target) if target.startswith("/") else image.path(image.workdir) / target
    for source in sources:
        one = origin / source.removeprefix("/")
        if one.is_dir():
            # As docker does: what is in the folder, not the folder.
            shutil.copytree(one, to, symlinks=True, dirs_exist_ok=True)
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy2(one, to)


def _run(image: Image, words: list[str]) -> str:
    program, *arguments = words
    if program == "python" and arguments[:2] == ["-m", "pip"]:
        return _pip(image, arguments)
    if program == "install" and os.geteuid() != 0:
        # Nobody else can give files away: then they are ours, as the process is.
        arguments = [word for at, word in enumerate(arguments) if not {word, arguments[at - 1]} & {"-o", "-g"}]
    arguments = [str(image.path(word)) if word.startswith("/") else word for word in arguments]
    return _done([str(image.python) if program == "python" else program, *arguments], image.path(image.workdir))


def _pip(image: Image, arguments: list[str]) -> str:
    """The wheel is built by what is there already, for pip is not to fetch anything; then it is installed with it."""
    place = image.path(arguments[arguments.index("--python") + 1])
    source = image.path(image.workdir)
    wheels = image.path("/wheels")
    assert arguments[-1].startswith("."), "what is installed is the source"
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", *offline, "--wheel-dir", str(wheels), "."]
    said = _done(build, source)
    (wheel,) = wheels.iterdir()
    install = [str(place) if word == arguments[arguments.index("--python") + 1] else word for word in arguments[:-1]]
    said += _done([sys.executable, *install, *offline, f"{wheel}{arguments[-1][1:]}"], source)
    (site,) = place.parents[1].glob("lib/python*/site-packages")
    _copy_distributions(closure(f"authsvc{arguments[-1][1:]}"), site)
    return said


def _copy_distributions(names: Iterable[str], site: Path) -> None:
    for name in names:
        installed = distribution(name)
        for file in installed.files or ():
            # Without commands, which have another environment's path in them.
            if file.parts[0] != "..":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                # With its time, by which the compiled files know theirs.
                shutil.copy2(str(installed.locate_file(file)), site / file)


def _done(command: list[str], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
