"""The garbage collector of a serving process: less eager, since a backlog in memory is not garbage.

With Python's own thresholds two thirds of a delivery's CPU time went into walking rows that were still wanted
(docs/benchmarks.md). Reference counts free nearly everything here; cycles are few, and are still collected.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS_MAX = 50_000
"""More new containers than freed ones before the young are looked at."""
YOUNG_ROUNDS = 20
MIDDLE_ROUNDS = 100


def tune_collector() -> None:
    """Call once all modules are imported: those are never walked again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, YOUNG_ROUNDS, MIDDLE_ROUNDS)
