"""What checklogin and /healthz notice of 200 logins that hang at WeChat: `make bench`.

Before, during and after, on one kept connection each, one request after the other; the first is the measure.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.support.service import Service, sandbox, service

HANGING: Final = 200
WORKERS: Final = 5  # of 48 places each
TIMEOUT_S: Final = 45
REQUESTS: Final = 3_000


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    median: float
    p99: float


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wechat = stack.enter_context(sandbox(folder))
        it = stack.enter_context(
            service(folder, wechat_url=wechat.url, WORKERS=str(WORKERS), WECHAT_TIMEOUT=str(TIMEOUT_S))
        )
        paths = {"/checklogin": f"/checklogin?token={it.token()}", "/healthz": "/healthz"}
        for path in paths.values():
            _measure(it, path)  # warm
        phases = {"before": {name: _measure(it, path) for name, path in paths.items()}}
        threads = _hang(it)
        phases[f"{HANGING} hang"] = {name: _measure(it, path) for name, path in paths.items()}
        if not all(thread.is_alive() for thread in threads):
            raise SystemExit("the logins ended before the measurement did: raise TIMEOUT_S")
        for thread in threads:
            thread.join()
        phases["after"] = {name: _measure(it, path) for name, path in paths.items()}
        recovered = it.log_in().status_code == 200
    console = Console()
    console.print(_table(phases))
    console.print(f"the next login after them: {'as if nothing was' if recovered else 'FAILED'}", highlight=False)


def _hang(it: Service) -> list[threading.Thread]:
    """As many logins as there are, each at WeChat and without an answer."""
    before = it.upstream()["jscode2session"]
    codes = [it.mint(f"hanging-{number}", fault="hang") for number in range(HANGING)]
    # Started one by one: a worker that happens to get more than its places would refuse them.
    threads = [threading.Thread(target=_log_in, args=(it.url, code), daemon=True) for code in codes]
    for thread in threads:
        thread.start()
    give_up_at = time.monotonic() + TIMEOUT_S / 3
    while it.upstream()["jscode2session"] - before < HANGING:
        if time.monotonic() > give_up_at:
            raise SystemExit("they do not get as far as WeChat")
        time.sleep(0.05)
    return threads


def _log_in(url: str, code: str) -> None:
    # Until it hangs: one that meets a worker without a free place goes to another one.
    while True:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=2 * TIMEOUT_S)
        connection.request("POST", "/login", json.dumps({"code": code}), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        connection.close()
        if reply.status != 503:
            return
        time.sleep(0.05)


def _measure(it: Service, path: str) -> Latency:
    connection = http.client.HTTPConnection(it.url.removeprefix("http://"), timeout=10)
    took = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        connection.request("GET", path)
        connection.getresponse().read()
        took.append((time.perf_counter() - began) * 1000)
    connection.close()
    return Latency(statistics.median(took), statistics.quantiles(took, n=100)[98])


def _table(phases: dict[str, dict[str, Latency]]) -> Table:
    table = Table("", "", "p50 ms", "of before", "p99 ms", title=f"{HANGING} logins hang at WeChat")
    for name, usual in phases["before"].items():
        for phase, found in phases.items():
            latency = found[name]
            ratio = latency.median / usual.median
            table.add_row(name, phase, f"{latency.median:.2f}", f"{ratio:.2f}", f"{latency.p99:.2f}")
    return table


if __name__ == "__main__":
    main()
