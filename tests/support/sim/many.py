"""`make test-sim`: many seeds on all cores; a seed that fails is printed, and does the same again by itself."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.support.sim.plan import Outcome, collected, simulate
from tests.unit.delivery.test_lane_world import run_seed

CHUNK = 50
SOMETIMES = (
    "takeover",
    "fenced",
    "duplicate",
    "duplicate publish",
    "dead_letter",
    "halt",
    "skip",
    "park",
    "mode change",
    "crash",
    "database crash",
    "lost reply",
    "disable",
    "refused",
)
"""What a run of many seeds must have shown: else it has shown little."""


def mute() -> None:
    """What killed processes leave is collected at the end of this one, too."""
    sys.unraisablehook = lambda _: None


def fleet(seeds: range) -> list[Outcome]:
    with collected():
        return [simulate(seed) for seed in seeds]


def lanes(seeds: range) -> list[Outcome]:
    """The lanes of one endpoint alone, with owners that come and go."""
    return [Outcome(seed, [broken] if (broken := run_seed(seed)) else [], {}, []) for seed in seeds]


def chunks(first: int, count: int) -> Iterator[range]:
    for start in range(first, first + count, CHUNK):
        yield range(start, min(start + CHUNK, first + count))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make test-sim")
    parser.add_argument("--seed", type=int, help="this one alone, told in full")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--lanes", type=int, default=10_000, help="seeds of the lanes' world")
    arguments = parser.parse_args()
    mute()
    if arguments.seed is not None:
        with collected():
            return tell(simulate(arguments.seed))
    began, shown, failed = time.monotonic(), Counter[str](), 0
    with multiprocessing.get_context("spawn").Pool(initializer=mute) as pool:
        for word, work, count in (("SEED", fleet, arguments.count), ("LANES", lanes, arguments.lanes)):
            for outcomes in pool.imap(work, chunks(arguments.first, count)):
                for outcome in outcomes:
                    shown.update(outcome.sometimes.keys())
                    if outcome.violations:
                        failed += 1
                        print(f"{word}={outcome.seed}: {outcome.violations[0]}", flush=True)
    print(f"{arguments.count} fleets, {arguments.lanes} lanes in {time.monotonic() - began:.0f} s; runs that showed:")
    print("  " + ", ".join(f"{name} {shown[name]}" for name in sorted(shown)))
    missing = [name for name in SOMETIMES if not shown[name]] if arguments.count >= 1000 else []
    if missing:
        print(f"never shown: {', '.join(missing)}")
    print(f"{arguments.count + arguments.lanes - failed} passed, {failed + len(missing)} failed")
    return 1 if failed or missing else 0


def tell(outcome: Outcome) -> int:
    """One run in words."""
    print(
        "\n".join([*outcome.events, *outcome.violations, f"seed {outcome.seed}: {len(outcome.violations)} violations"])
    )
    return 1 if outcome.violations else 0
