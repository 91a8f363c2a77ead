"""What the machine says of itself and of processes: cores, CPU, memory, whether others are at work."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CORES: Final = tuple(sorted(os.sched_getaffinity(0)))
SERVER_CORE: Final = CORES[0]
CLIENT_CORE: Final = CORES[min(1, len(CORES) - 1)]

BUSY: Final = 0.1  # of all cores; a machine at rest has less to do
_LOOK_S: Final = 2.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_FEWEST_TICKS: Final = 20  # fewer are more than a twentieth wrong


@dataclass
class Took:
    """Seconds of CPU within a block."""

    cpu_s: float = 0

    def each_us(self, number: int) -> float | None:
        """None: too little to be told from the clock's ticks."""
        return self.cpu_s / number * 1e6 if number and self.cpu_s * _TICKS_PER_S >= _FEWEST_TICKS else None


@dataclass(frozen=True)
class Memory:
    """Megabytes of so many processes together. In `rss` a page that they share is counted for each of them."""

    processes: int
    rss: float
    pss: float


def family(pid: int) -> tuple[int, ...]:
    """The process, its children and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return tuple(found)


@contextmanager
def cpu_of(pids: Collection[int]) -> Iterator[Took]:
    took = Took()
    before = _cpu_s(pids)
    yield took
    took.cpu_s = _cpu_s(pids) - before


def memory_of(pids: Collection[int]) -> Memory:
    rss = pss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, *value = line.split()
            rss += int(value[0]) if name == "Rss:" else 0
            pss += int(value[0]) if name == "Pss:" else 0
    return Memory(len(pids), rss / 1024, pss / 1024)


class Others:
    """How much of all cores others have used since this was made; other guests of the same host are among them."""

    def __init__(self) -> None:
        self._busy, self._all = _busy_and_all()
        self._own = _own_ticks()

    def share(self) -> float:
        """Of processes of ours those count that have ended, and this one: a look when all of them have."""
        busy, everything = _busy_and_all()
        others = busy - self._busy - (_own_ticks() - self._own)
        return max(0.0, others / max(1, everything - self._all))


def others_now() -> float:
    """The same of the next two seconds."""
    others = Others()
    time.sleep(_LOOK_S)
    return others.share()


def _cpu_s(pids: Collection[int]) -> float:
    ticks = 0
    for pid in pids:
        user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / _TICKS_PER_S


def _busy_and_all() -> tuple[int, int]:
    # user nice system idle iowait irq softirq steal; what guests take is in user already. Whose the interrupts are
    # nobody says, and most are those of our own connections.
    ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks[:3]) + ticks[7], sum(ticks)


def _own_ticks() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) * _TICKS_PER_S
