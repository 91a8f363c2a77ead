"""`GET /checklogin`, asked by wrk."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.serving.contenders import Server
from tests.bench.serving.load import Run, amiss
from tests.bench.serving.machine import cpu_of

CONNECTIONS: Final = 32
_PEERS: Final = Path(".venv/peers")  # see tests/support/peers.sh
_SAMPLE: Final = 3  # answers that are read, before and after each run
_SLACK_BYTES: Final = 4  # of the mean answer: what began when wrk ended counts half

# A token after the other, from where the last run ended: in a short one, those of its beginning would be known.
_SCRIPT: Final = """
local requests, number = {}, tonumber(os.getenv("FIRST"))
init = function()
  for line in io.lines(os.getenv("TOKENS")) do
    requests[#requests + 1] = wrk.format("GET", "/checklogin?token=" .. line)
  end
end
request = function()
  number = number % #requests + 1
  return requests[number]
end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("\\nFOUND %d %d %d %d %d %d %d %d %d %d\\n", summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(99), e.connect, e.read, e.write, e.timeout, e.status))
end
"""


@dataclass(frozen=True)
class Target:
    label: str
    server: Server
    tokens: Path
    is_login: bool = True


class Wrk:
    """Raises: FileNotFoundError if it is not there."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("wrk") or shutil.which("wrk", path=_PEERS / "usr/bin")
        if program is None:
            raise FileNotFoundError("wrk is missing (Debian: apt-get install wrk)")
        self._program = program
        self._script = folder / "ask.lua"
        self._script.write_text(_SCRIPT)
        libraries = (str(found.parent) for found in _PEERS.glob("usr/lib/*/libluajit*.so.2"))
        self._libraries = os.pathsep.join(dict.fromkeys(libraries))
        self._asked: Counter[Target] = Counter()

    def ask(self, target: Target, *, seconds: int) -> Run:
        errors = []
        tokens = self._sample(target)
        answer, wrong = amiss(target.server, tokens[0], is_login=target.is_login)
        errors += [wrong] if wrong else []
        client_before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        with cpu_of(target.server.pids) as took:
            done = subprocess.run(
                [self._program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "-s", self._script, target.server.url],
                capture_output=True,
                text=True,
                check=False,
                env=os.environ
                | {"TOKENS": str(target.tokens), "FIRST": str(self._asked[target])}
                | ({"LD_LIBRARY_PATH": self._libraries} if self._libraries else {}),
            )
        lasted = time.perf_counter() - began
        client_after = resource.getrusage(resource.RUSAGE_CHILDREN)
        client_s = sum(client_after[:2]) - sum(client_before[:2])
        _, gap, found = done.stdout.partition("FOUND ")
        if not gap:
            return Run(0, 0, 0, None, 0, errors=(f"wrk ended with {done.returncode}: {done.stderr[:200]}",))
        requests, lasted_us, size, p50_us, p99_us, *counts = map(int, found.split())
        self._asked[target] += requests
        names = ("no connection", "not read", "not written", "no answer in time", "another status")
        errors += [f"{name} × {count}" for name, count in zip(names, counts, strict=True) if count]
        # All of them look alike, so a mean that is off tells of bodies that say something else.
        if requests and abs(size / requests - len(answer)) > _SLACK_BYTES:
            errors.append(
                f"answers of {size / requests:.0f} bytes in the mean; the one that was read has {len(answer)}"
            )
        errors += [wrong for token in tokens if (wrong := amiss(target.server, token, is_login=target.is_login)[1])]
        return Run(
            per_s=requests / lasted_us * 1e6,
            p50_ms=p50_us / 1000,
            p99_ms=p99_us / 1000,
            cpu_us=took.each_us(requests),
            client_share=client_s / lasted,
            errors=tuple(dict.fromkeys(errors)) if requests else ("no answer at all", *errors),
        )

    def _sample(self, target: Target) -> list[str]:
        with target.tokens.open() as file:
            return [line.strip() for line in itertools.islice(file, _SAMPLE)]
