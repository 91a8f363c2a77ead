"""From runs to figures, and from figures to what was aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.bench.serving.contenders import FLASK, GUNICORN, JWT, MAP, OURS, RAW, RAW_WSGI
from tests.bench.serving.load import Run

CHECKLOGIN: Final = "checklogin"
SEEN: Final = "seen tokens"
NEVER_SEEN: Final = "never-seen tokens"
GARBAGE: Final = "garbage"

CLIENTS: Final = (1, 50, 500)
DELAYS_MS: Final = (0, 100)
WAITING: Final = 32
ALONE: Final = "alone"


def labelled(name: str, kind: str) -> str:
    return name if name in (FLASK, RAW, RAW_WSGI) else f"{name}, {kind}"  # they do not look at tokens


def login_scenario(delay_ms: int, clients: int) -> str:
    return f"login, WeChat answers after {delay_ms} ms, {clients} clients"


def waiting_scenario(delay_ms: int) -> str:
    return f"{WAITING} logins wait {delay_ms} ms each"


@dataclass(frozen=True)
class Figures:
    """Medians of the runs."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float | None
    client_share: float
    refused_per_s: float
    spread: float | None  # of per_s: half of what is between least and most, by the median; None: there was one run


class Book:
    """The runs, by scenario and by who was asked."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], list[Run]] = {}

    def note(self, scenario: str, label: str, run: Run) -> None:
        self._runs.setdefault((scenario, label), []).append(run)

    def labels(self, scenario: str) -> list[str]:
        return [label for each, label in self._runs if each == scenario]

    def errors(self, scenario: str, label: str) -> tuple[str, ...]:
        runs = self._runs.get((scenario, label), [])
        return tuple(dict.fromkeys(error for run in runs for error in run.errors))

    def figures(self, scenario: str, label: str) -> Figures | None:
        """None if there are none, or if one of the runs had errors."""
        runs = self._runs.get((scenario, label), [])
        if not runs or any(run.errors for run in runs):
            return None
        per_s = [run.per_s for run in runs]
        cpu = [run.cpu_us for run in runs if run.cpu_us is not None]
        return Figures(
            per_s=statistics.median(per_s),
            p50_ms=statistics.median(run.p50_ms for run in runs),
            p99_ms=statistics.median(run.p99_ms for run in runs),
            cpu_us=statistics.median(cpu) if cpu else None,
            client_share=statistics.median(run.client_share for run in runs),
            refused_per_s=statistics.median(run.refused_per_s for run in runs),
            spread=(max(per_s) - min(per_s)) / statistics.median(per_s) / 2 if len(per_s) > 1 else None,
        )

    def ratio(self, of: tuple[str, str], to: tuple[str, str], *, what: str = "per_s") -> float | None:
        above, below = self.figures(*of), self.figures(*to)
        if above is None or below is None:
            return None
        numbers = getattr(above, what), getattr(below, what)
        return None if None in numbers or not numbers[1] else numbers[0] / numbers[1]


@dataclass(frozen=True)
class Aim:
    text: str
    figure: float | None
    least: float | None = None
    most: float | None = None
    below: float | None = None

    @property
    def is_met(self) -> bool | None:
        """None: there is no figure."""
        if self.figure is None:
            return None
        return (
            (self.least is None or self.figure >= self.least)
            and (self.most is None or self.figure <= self.most)
            and (self.below is None or self.figure < self.below)
        )

    @property
    def wanted(self) -> str:
        bounds = (("at least", self.least), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def allowed_per_s(clients: int, places: int | None, delay_ms: int) -> float | None:
    """Logins that WeChat's own time leaves room for."""
    return min(clients, clients if places is None else places) * 1000 / delay_ms if delay_ms else None


def aims(book: Book, *, places: int) -> Iterator[Aim]:
    seen = CHECKLOGIN, labelled(OURS, SEEN)
    express = CHECKLOGIN, labelled(MAP, SEEN)
    yield Aim("seen, by Express's look-up in a map", book.ratio(seen, express), least=6)
    for raw in (RAW, RAW_WSGI):
        yield Aim(f"seen, by {raw}", book.ratio(seen, (CHECKLOGIN, labelled(raw, SEEN))), least=0.65)
    never_seen = CHECKLOGIN, labelled(OURS, NEVER_SEEN)
    yield Aim("never seen, by Express's look-up in a map", book.ratio(never_seen, express), least=1.4)
    for delay_ms in DELAYS_MS:
        scenario = login_scenario(delay_ms, 50)
        cpu = book.ratio((scenario, OURS), (scenario, JWT), what="cpu_us")
        yield Aim(f"CPU of a login, by {JWT} (50 clients, {delay_ms} ms)", cpu, most=1.25)
    for clients in CLIENTS:
        figures = book.figures(login_scenario(100, clients), OURS)
        allowed = allowed_per_s(clients, places, 100)
        assert allowed is not None
        reached = None if figures is None else figures.per_s / allowed
        yield Aim(f"logins, by what 100 ms of WeChat allow ({clients} clients)", reached, least=0.9)
    waiting = waiting_scenario(100)
    kept = book.ratio((waiting, OURS), (ALONE, OURS))
    yield Aim(f"checklogin while {waiting}, by itself alone", kept, least=0.6)
    beside = book.figures(waiting, OURS)
    yield Aim("its p99 then, in ms", None if beside is None else beside.p99_ms, below=5)


def granian_by_gunicorn(book: Book) -> Iterator[tuple[str, float | None]]:
    """What the one server makes of this service, by what the other makes of it."""
    for kind in (SEEN, NEVER_SEEN):
        ratio = book.ratio((CHECKLOGIN, labelled(OURS, kind)), (CHECKLOGIN, labelled(GUNICORN, kind)))
        yield f"checklogin a second, {kind}", ratio
    for delay_ms in DELAYS_MS:
        scenario = login_scenario(delay_ms, 50)
        yield f"logins a second, 50 clients, {delay_ms} ms", book.ratio((scenario, OURS), (scenario, GUNICORN))
        cpu = book.ratio((scenario, OURS), (scenario, GUNICORN), what="cpu_us")
        yield f"CPU of a login, 50 clients, {delay_ms} ms", cpu
    waiting = waiting_scenario(100)
    yield f"checklogin a second while {waiting}", book.ratio((waiting, OURS), (waiting, GUNICORN))
