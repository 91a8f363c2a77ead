"""Who may know whom: a module imports from its own layer or a lower one, and never in a circle."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS: list[set[str]] = [
    {"errors", "clock", "encoding", "durable", "deadline"},
    {"claims", "jwk", "keyset", "manifest", "rotation", "keyreport"},
    {"tokens", "sealing", "keyring", "keyparts", "keyfiles"},
    {"verifier", "testing", "wechat", "store", "sandbox"}
    | {"telemetry", "audit", "spans", "otel", "keeper", "keyexport", "drill"},
    {"login", "session", "codes", "failures", "sessionkeys", "tokenshare", "users", "retention", "storecopy"},
    {"http"},
    {"settings", "wiring", "cli", "demo", "looks", "diagnoses", "doctor", "deploy", "miniprogram", "__main__"},
]
STRANGERS = {"verifier", "wechat", "store"}

# The side that `pip install authsvc` brings: these use nothing but PyJWT and cryptography.
BASE = LAYERS[0] | LAYERS[1] | LAYERS[2] | {"verifier", "testing", "__init__"}

# Adapters import the framework that they are for.
ADAPTERS = {
    "verifier.flask": {"flask", "werkzeug"},
    "verifier.django": {"django", "asgiref"},
    "verifier.grpc": {"grpc"},
    "testing.fixtures": {"pytest"},
}


def _modules() -> dict[str, Path]:
    """Dotted name below authsvc → file."""
    found = {}
    for path in sorted((ROOT / "authsvc").rglob("*.py")):
        parts = path.relative_to(ROOT / "authsvc").with_suffix("").parts
        found[".".join(parts)] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file it stands; those for types alone not."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _unit(name: str) -> str:
    return name.split(".")[0]


def _layer(unit: str) -> int:
    return next(number for number, units in enumerate(LAYERS) if unit in units)


def _own_imports(name: str) -> set[str]:
    """The modules of authsvc that a module imports, by their dotted names."""
    wanted = {i.removeprefix("authsvc.") for i in _imports(MODULES[name]) if i.startswith("authsvc.")}
    return {w if w in MODULES else f"{w}.__init__" for w in wanted if w in MODULES or f"{w}.__init__" in MODULES}


def test_every_module_has_its_layer() -> None:
    assert {_unit(name) for name in MODULES} - {"__init__"} == set().union(*LAYERS)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_a_module_imports_from_its_own_layer_or_a_lower_one(name: str) -> None:
    above = {other for other in _own_imports(name) if _layer(_unit(other)) > _layer(_unit(name))}
    assert above == set()


def test_the_table_in_the_readme_has_every_module_below_those_that_it_imports_from() -> None:
    _, _, table = (ROOT / "README.md").read_text("utf-8").partition("| module | owns |\n|---|---|\n")
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.partition("\n\n")[0].splitlines()]
    row_of = {unit: number for number, units in enumerate(rows) for unit in units}
    assert row_of.keys() == set().union(*LAYERS) - {"__main__"}
    imports = {(_unit(name), _unit(other)) for name in MODULES for other in _own_imports(name)}
    assert {(unit, other) for unit, other in imports if row_of.get(other, 0) > row_of.get(unit, len(rows))} == set()


@pytest.mark.parametrize("name", [name for name in MODULES if _unit(name) in STRANGERS])
def test_verifier_wechat_and_store_do_not_know_each_other(name: str) -> None:
    assert {_unit(other) for other in _own_imports(name)} & STRANGERS <= {_unit(name)}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: _own_imports(name) - {name} for name in MODULES}
    done: set[str] = set()
    while ready := {name for name, wanted in graph.items() if name not in done and wanted <= done}:
        done |= ready
    assert graph.keys() - done == set(), "these import each other in a circle"


@pytest.mark.parametrize("name", [name for name in MODULES if _unit(name) in BASE])
def test_the_verifying_side_uses_pyjwt_and_cryptography_alone(name: str) -> None:
    foreign = {i.split(".")[0] for i in _imports(MODULES[name])} - set(sys.stdlib_module_names) - {"authsvc"}
    assert foreign <= {"jwt", "cryptography"} | ADAPTERS.get(name, set())


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ADAPTERS])
def test_an_adapter_is_imported_by_who_uses_its_framework_alone(name: str) -> None:
    assert _own_imports(name) & ADAPTERS.keys() == set()


def test_the_base_install_names_two_libraries() -> None:
    base = [line for line in requires("authsvc") or [] if "extra ==" not in line]
    assert sorted(line.split(">")[0].split("<")[0] for line in base) == ["cryptography", "pyjwt"]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "clock"])
def test_only_the_clock_reads_the_wall_clock(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"} == set()
