"""A mini-program on a phone that Node plays, which is pressed and looked at."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_PROGRAM: Final = Path(__file__).parents[1] / "integration" / "miniprogram" / "example" / "screen.js"


@dataclass
class Screen:
    process: subprocess.Popen[str]

    def order(self, order: str, **options: object) -> dict[str, Any]:
        """What the page shows when nothing is under way any more: `data`, `texts`, `buttons`; and `events` since."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"order": order, **options}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=20)[1]
        found: dict[str, Any] = json.loads(line)
        return found

    def press(self, button: str, **detail: str) -> dict[str, Any]:
        return self.order("tap", button=button, detail=detail)


@contextlib.contextmanager
def screen(node: str, folder: Path, *, sandbox_url: str, storage: Path, name: str | None = None) -> Iterator[Screen]:
    """`storage`: a file, which the next launch finds again. `name`: that of the global which wx is handed in by."""
    command = [node, str(_PROGRAM), str(folder), sandbox_url, str(storage), *([name] if name else [])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            it = Screen(process)
            yield it
            it.order("close")
            _, errors = process.communicate(timeout=20)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()
