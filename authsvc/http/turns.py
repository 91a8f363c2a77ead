"""Which thread of a worker runs first, where there are more of them than cores (sched(7)).

Threads wake one another for every request. Linux lets the one that is woken interrupt the one that is at work, each
time; where a worker has one core, that is a third of the CPU that a check of a new token takes. What is done here is
left undone where the system does not know it, or forbids it.
"""

from __future__ import annotations

import contextlib
import os


def let_others_finish() -> None:
    """From now on this thread, and those that it starts, interrupt nobody when they are woken."""
    _take("SCHED_BATCH")


def come_first() -> None:
    """As every thread does by itself."""
    _take("SCHED_OTHER")


def _take(policy: str) -> None:
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))
