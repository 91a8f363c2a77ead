"""Which thread of a worker runs first, where there are more of them than cores (sched(7)).

Threads wake one another for every request. Linux lets the one that is woken interrupt the one that is at work, each
time; where a worker has one core, that is a third of the CPU that a check of a new token takes. What is done here is
left undone where the system does not know it, or forbids it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

_NICER: Final = 7
"""A fifth of the share. With 10, logins beside many checks get fewer; with 5, checks beside logins, and with 3 what is
said in `come_last` shows."""


def let_others_finish() -> None:
    """From now on this thread, and those that it starts, interrupt nobody when they are woken."""
    _take("SCHED_BATCH")


def come_first() -> None:
    """As every thread does by itself."""
    _take("SCHED_OTHER")


def come_last() -> None:
    """The same as `let_others_finish`, and this thread gets less of the core than those that take requests in.

    granian's thread yields (sched_yield(2)) whenever it has nothing to take, and since Linux 6.6 who yields comes after
    everybody else that wants the core: behind 48 logins some 30 ms, in which neither a login nor a check is taken.
    """
    let_others_finish()
    if sys.platform == "linux":  # elsewhere it would be the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICER)


def _take(policy: str) -> None:
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))
