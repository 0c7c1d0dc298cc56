"""How crowded this machine is: limits of seconds are for cores that have nothing else to do."""

import os


def crowded(seconds: float) -> float:
    """The seconds that something may take here which takes at most `seconds` on idle cores.

    As many times more as there are processes that want a core, on average over the last minute.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return seconds * max(1.0, os.getloadavg()[0] / (cores or 1))
