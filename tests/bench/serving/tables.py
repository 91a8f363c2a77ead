"""Figures as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from rich.table import Table

from tests.bench.serving.contenders import MAP, Server
from tests.bench.serving.figures import (
    ALONE,
    CHECKLOGIN,
    SEEN,
    WAITING,
    Aim,
    Book,
    Figures,
    allowed_per_s,
    labelled,
    login_scenario,
    waiting_scenario,
)
from tests.bench.serving.machine import Memory

_FULL: Final = 0.9  # of the clients' core: then they are what was measured


def checklogin_table(book: Book, title: str) -> Table:
    table = Table(
        *("", "requests/s", "± %", "of Express's map", "p50 ms", "p99 ms", "CPU µs", "wrk's core %"), title=title
    )
    express = CHECKLOGIN, labelled(MAP, SEEN)
    for label in book.labels(CHECKLOGIN):
        figures = book.figures(CHECKLOGIN, label)
        if figures is None:
            table.add_row(label, _errors(book, CHECKLOGIN, label))
            continue
        ratio = _number(book.ratio((CHECKLOGIN, label), express), 2)
        table.add_row(label, *_rate(figures), ratio, *_rest(figures))
    return table


def login_table(
    book: Book, servers: Mapping[str, Server], *, clients: Iterable[int], delays_ms: Iterable[int], title: str
) -> Table:
    table = Table(
        *("WeChat", "clients", "", "logins/s", "± %", "of what WeChat allows", "p50 ms", "p99 ms", "CPU µs"),
        *("clients' core %", "503 /s"),
        title=title,
    )
    each_clients = tuple(clients)
    for delay_ms in delays_ms:
        for number in each_clients:
            scenario = login_scenario(delay_ms, number)
            for name in book.labels(scenario):
                head = f"{delay_ms} ms", str(number), name
                figures = book.figures(scenario, name)
                if figures is None:
                    table.add_row(*head, _errors(book, scenario, name))
                    continue
                allowed = allowed_per_s(number, servers[name].places, delay_ms)
                reached = _number(figures.per_s / allowed, 2) if allowed else ""
                refused = f"{figures.refused_per_s:.0f}" if figures.refused_per_s else ""
                table.add_row(*head, *_rate(figures), reached, *_rest(figures), refused)
            table.add_section()
    return table


def waiting_table(book: Book, delays_ms: Iterable[int]) -> Table:
    table = Table(
        *("", "", "requests/s", "± %", "of alone", "p50 ms", "p99 ms", "CPU µs", "wrk's core %"),
        title=f"GET /checklogin, seen tokens, while {WAITING} logins wait for WeChat",
    )
    for name in book.labels(ALONE):
        for scenario in (ALONE, *map(waiting_scenario, delays_ms)):
            figures = book.figures(scenario, name)
            if figures is None:
                table.add_row(name, scenario, _errors(book, scenario, name))
                continue
            ratio = _number(book.ratio((scenario, name), (ALONE, name)), 2)
            # With others' logins in it, CPU is not that of a request.
            rest = _rest(figures) if scenario == ALONE else _rest(figures)[:2]
            table.add_row(name, scenario, *_rate(figures), ratio, *rest)
        table.add_section()
    return table


def memory_table(memory: Mapping[str, Memory], title: str) -> Table:
    table = Table("", "processes", "RSS MB", "PSS MB", title=title)
    for name, each in memory.items():
        table.add_row(name, str(each.processes), f"{each.rss:.0f}", f"{each.pss:.0f}")
    return table


def aims_table(aims: Iterable[Aim]) -> Table:
    table = Table("aim", "figure", "wanted", "", title="Aims")
    for aim in aims:
        met = {True: "met", False: "MISSED", None: "no figure"}[aim.is_met]
        table.add_row(aim.text, _number(aim.figure, 2), aim.wanted, met)
    return table


def ratios_table(ratios: Iterable[tuple[str, float | None]], title: str) -> Table:
    table = Table("", "ratio", title=title)
    for text, ratio in ratios:
        table.add_row(text, _number(ratio, 2) or "no figure")
    return table


def _rate(figures: Figures) -> tuple[str, str]:
    return f"{figures.per_s:,.0f}", "" if figures.spread is None else f"{figures.spread * 100:.0f}"


def _rest(figures: Figures) -> tuple[str, str, str, str]:
    cpu = "" if figures.cpu_us is None else f"{figures.cpu_us:.0f}"
    share = f"{figures.client_share * 100:.0f}{' FULL' if figures.client_share > _FULL else ''}"
    return f"{figures.p50_ms:.2f}", f"{figures.p99_ms:.1f}", cpu, share


def _errors(book: Book, scenario: str, label: str) -> str:
    return "ERRORS: " + "; ".join(book.errors(scenario, label)) if book.errors(scenario, label) else "not measured"


def _number(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"
