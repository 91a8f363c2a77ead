"""What WeChat's DevTools hold mini-programs against, as Node packages (tests/integration/devtools)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

FOLDER: Final = Path(__file__).parents[1] / "integration" / "devtools"


def need(package: str, what: str) -> Path:
    """The folder of a package. Without it the test is skipped, and CI has to have it."""
    found = FOLDER / "node_modules" / package
    if not found.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the Node package {package} is missing: {what}")
        pytest.skip(f"THE NODE PACKAGE {package.upper()} IS MISSING: {what}")
    return found


def complaints(node: str, kind: str, content: object) -> Iterator[str]:
    """What DevTools would say of a configuration file; `kind` is app, page, projectconfig or sitemap.

    The schemas are those of miniprogram-ci, "extracted from WeChat's DevTools", which hold these files against them.
    """
    package = need("miniprogram-ci", "the configuration was not held against DevTools' schemas")
    schema = _schema(node, package / "dist" / "schema" / "dist" / f"{kind}.js")
    for error in jsonschema.Draft7Validator(schema).iter_errors(content):
        yield f"{kind} {error.json_path}: {error.message}"
    if isinstance(content, dict):
        # DevTools warns of what it does not know, which their schema of this file alone leaves open.
        known = schema["properties"]
        for name, value in content.items():
            if name not in known:
                yield f"{kind} has {name}, which is unknown"
            elif name == "setting":
                yield from (
                    f"{kind} has setting.{key}, which is unknown" for key in value.keys() - known[name]["properties"]
                )


def _schema(node: str, module: Path) -> dict[str, Any]:
    program = f"process.stdout.write(JSON.stringify(require({json.dumps(str(module))})))"
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, timeout=60, check=True)
    schema: dict[str, Any] = json.loads(done.stdout)
    jsonschema.Draft7Validator.check_schema(schema)
    return schema
