"""What `GET /checklogin` and `POST /login` cost on the real server, beside the servers that others would write for it.

`python -m tests.bench.serve`; with `--full` more and longer rounds. Each server has one core and one process; wrk, the
clients that log in and WeChat have the other core. All take turns, several rounds of them, and figures are medians. A
second pass, with two processes each, is for information: whoever asks shares the cores. Absolute figures move by a
third from hour to hour: believe the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from tests.bench.serving import figures, tables
from tests.bench.serving.asking import CONNECTIONS, Target, Wrk
from tests.bench.serving.contenders import (
    COUNTING,
    EXTENDED,
    FLASK,
    GUNICORN,
    JWT,
    MAP,
    OURS,
    PLAIN,
    RAW,
    RAW_WSGI,
    Contenders,
    WeChat,
    on_core,
    wechat,
)
from tests.bench.serving.figures import (
    ALONE,
    CHECKLOGIN,
    CLIENTS,
    DELAYS_MS,
    GARBAGE,
    NEVER_SEEN,
    SEEN,
    WAITING,
    Book,
    labelled,
    login_scenario,
    waiting_scenario,
)
from tests.bench.serving.load import Run
from tests.bench.serving.logins import Crowd, log_in
from tests.bench.serving.machine import BUSY, CLIENT_CORE, CORES, Others, memory_of, others_now

_AIMED_AT: Final = (OURS, JWT)
_LOG_IN: Final = (OURS, JWT, GUNICORN, MAP)


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: int  # of each run
    clients_of_two: tuple[int, ...]  # who log in where there are two processes
    clients_of_others: tuple[int, ...]  # who log in where there is no aim
    waits_ms: tuple[int, ...]  # how long WeChat takes while checklogin is asked
    asked_then: tuple[str, ...]


QUICK: Final = Plan(
    rounds=3,
    seconds=1,
    clients_of_two=(50,),
    clients_of_others=(50,),
    waits_ms=(100,),
    asked_then=(OURS, GUNICORN, JWT),
)
FULL: Final = Plan(
    rounds=5, seconds=4, clients_of_two=CLIENTS, clients_of_others=CLIENTS, waits_ms=(100, 2_000), asked_then=_LOG_IN
)

Measurement = tuple[str, str, Callable[[], Run]]
"""A scenario, who is asked, and a run of it."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serve")
    parser.add_argument("--full", action="store_true", help="more and longer rounds: half an hour, not some minutes")
    plan = FULL if parser.parse_args().full else QUICK
    console = Console(width=None if os.isatty(1) else 160)
    say = partial(console.print, highlight=False, markup=False)
    load = f"load average {os.getloadavg()[0]:.2f}"
    _say_who_is_at_work(say, f"before: {load}, others use", others_now())
    began, others = time.monotonic(), Others()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            wrk = Wrk(folder)
        except FileNotFoundError as error:
            say(f"{error}: nothing was measured")
            return
        it = stack.enter_context(wechat(folder))
        for processes in (1, 2):
            at = folder / str(processes)
            at.mkdir()
            _measure(wrk, it, at, plan, processes=processes, console=console)
    load = f"load average {os.getloadavg()[0]:.2f}"
    took = f"it took {time.monotonic() - began:.0f} s"
    _say_who_is_at_work(say, f"after: {load}; {took}, in which others used", others.share())


def _say_who_is_at_work(say: Callable[[str], None], what: str, share: float) -> None:
    say(f"{what} {share:.0%} of {os.cpu_count()} cores")
    if share > BUSY:
        say("NOT IDLE: others are at work on this machine. Do not believe the figures; measure again without them.")
    if len(CORES) == 1:
        say("ONE CORE: whoever asks shares it with the servers.")


def _measure(wrk: Wrk, it: WeChat, folder: Path, plan: Plan, *, processes: int, console: Console) -> None:
    """A pass: start all, let them take turns, print what came of it."""
    say = partial(console.print, highlight=False, markup=False)
    is_first = processes == 1
    rounds = plan.rounds if is_first else 1
    clients = CLIENTS if is_first else plan.clients_of_two
    book = Book()
    with contextlib.ExitStack() as stack:
        contenders = Contenders(stack, folder, it, processes=processes, say=say)
        asked = _asked(wrk, contenders, plan.seconds)
        logged_in = _logged_in(it, contenders, plan, clients)
        waited = _waited(wrk, it, contenders, plan) if is_first else []
        # After them no process is started but wrk.
        stack.enter_context(on_core(CLIENT_CORE) if is_first else contextlib.nullcontext())
        _warm(wrk, it, contenders)
        for part in (asked, logged_in, waited):
            for _ in range(rounds):
                for scenario, label, run in part:
                    book.note(scenario, label, run())
        memory = {name: memory_of(server.pids) for name, server in contenders.servers.items()}
        servers = contenders.servers
    by = "one process on one core" if is_first else "two processes on all cores, for information"
    runs = f"median of {rounds} rounds of {plan.seconds} s" if rounds > 1 else f"one run of {plan.seconds} s"
    console.print(tables.checklogin_table(book, f"GET /checklogin, {by}, {CONNECTIONS} connections, {runs}"))
    title = f"POST /login, {by}, {runs}"
    console.print(tables.login_table(book, servers, clients=clients, delays_ms=DELAYS_MS, title=title))
    if is_first:
        console.print(tables.waiting_table(book, plan.waits_ms))
    console.print(tables.memory_table(memory, f"Memory after that, {by}"))
    if is_first:
        places = servers[OURS].places
        assert places is not None
        console.print(tables.aims_table(figures.aims(book, places=places)))
        title = "This service on granian, by the same on gunicorn"
        console.print(tables.ratios_table(figures.granian_by_gunicorn(book), title))


def _warm(wrk: Wrk, it: WeChat, contenders: Contenders) -> None:
    """Node compiles what it has seen often; the first round would be another's than the others."""
    it.answer_after(0)
    for server in (contenders.servers[name] for name in _LOG_IN if name in contenders.servers):
        wrk.ask(Target(server.name, server, contenders.tokens.seen), seconds=1)
        log_in(server, it, 50, seconds=1)


def _asked(wrk: Wrk, contenders: Contenders, seconds: int) -> Sequence[Measurement]:
    servers, tokens = contenders.servers, contenders.tokens

    def ask(target: Target) -> Run:
        with contenders.alone(target.server):
            return wrk.ask(target, seconds=seconds)

    targets = [
        Target(labelled(name, kind), servers[name], file, is_login=kind != GARBAGE)
        for kind, file, names in (
            (SEEN, tokens.seen, (OURS, COUNTING, PLAIN, GUNICORN, MAP, JWT, EXTENDED, FLASK, RAW, RAW_WSGI)),
            (NEVER_SEEN, tokens.never_seen, (OURS, GUNICORN)),
            (GARBAGE, tokens.garbage, (OURS,)),
        )
        for name in names
        if name in servers
    ]
    return [(CHECKLOGIN, target.label, partial(ask, target)) for target in targets]


def _logged_in(it: WeChat, contenders: Contenders, plan: Plan, clients: Sequence[int]) -> Sequence[Measurement]:
    def run(name: str, delay_ms: int, number: int) -> Run:
        it.answer_after(delay_ms / 1000)
        with contenders.alone(contenders.servers[name]):
            return log_in(contenders.servers[name], it, number, seconds=plan.seconds)

    return [
        (login_scenario(delay_ms, number), name, partial(run, name, delay_ms, number))
        for delay_ms in DELAYS_MS
        for number in clients
        for name in _LOG_IN
        if name in contenders.servers and (name in _AIMED_AT or number in plan.clients_of_others)
    ]


def _waited(wrk: Wrk, it: WeChat, contenders: Contenders, plan: Plan) -> Sequence[Measurement]:
    def target(name: str) -> Target:
        return Target(name, contenders.servers[name], contenders.tokens.seen)

    def run(name: str, delay_ms: int) -> Run:
        it.answer_after(delay_ms / 1000)
        server = contenders.servers[name]
        with contenders.alone(server), Crowd(server, it, WAITING, seconds=plan.seconds) as crowd:
            found = wrk.ask(target(name), seconds=plan.seconds)
        return replace(found, errors=(*found.errors, *crowd.said()))

    def ask(name: str) -> Run:
        with contenders.alone(contenders.servers[name]):
            return wrk.ask(target(name), seconds=plan.seconds)

    return [
        measurement
        for name in plan.asked_then
        if name in contenders.servers
        for measurement in (
            (ALONE, name, partial(ask, name)),
            *((waiting_scenario(wait_ms), name, partial(run, name, wait_ms)) for wait_ms in plan.waits_ms),
        )
    ]


if __name__ == "__main__":
    main()
