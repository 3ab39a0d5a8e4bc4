"""What the runs of `make test-chaos` measured: one JSON object a line while they run, one table in the end.

    python -m tests.support.chaos.figures FILE [--part]

Fails unless everything of `SOMETIMES` has happened: faults that never bite prove nothing. Not so for a part of a run.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE_VARIABLE = "CHAOS_FIGURES"
SOMETIMES = ("steal", "fenced flush", "duplicate", "dead letter", "takeover")


@dataclass(slots=True)
class Figures:
    """Of one scene. Times are seconds; `duplicates` has one number for each time that the fault was made."""

    fault: str
    runs: int = 0
    """How often the fault was made."""
    duplicates: list[int] = field(default_factory=list)
    duplicates_allowed: list[int] = field(default_factory=list)
    takeovers_s: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    """Of the rebalancing at planned joins and leaves: the longest that an endpoint with a backlog got nothing."""
    acknowledged: int = 0
    receipts: int = 0
    drained_s: float = 0.0
    happened: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Add it to the file that the environment names, if it does."""
        print(json.dumps(asdict(self)))
        if path := os.environ.get(FILE_VARIABLE):
            with Path(path).open("a") as file:  # one short line, appended at once: workers do not mix theirs
                file.write(json.dumps(asdict(self)) + "\n")


def summary(all_figures: Iterable[Figures]) -> list[str]:
    """A line for each fault, then what all have in common."""
    by_fault: dict[str, list[Figures]] = defaultdict(list)
    for figures in all_figures:
        by_fault[figures.fault].append(figures)
    lines = [f"{'fault':44} runs  events  receipts  duplicates (most each)  drained in"]
    for fault, made in sorted(by_fault.items()):
        duplicates = [count for figures in made for count in figures.duplicates]
        events, receipts = sum(f.acknowledged for f in made), sum(f.receipts for f in made)
        lines.append(
            f"{fault:44} {sum(f.runs for f in made):4} {events:7} {receipts:9}"
            f"  {sum(duplicates):10} ({max(duplicates, default=0)})       {max(f.drained_s for f in made):6.1f} s"
        )
    every = [figures for made in by_fault.values() for figures in made]
    lines.append(_spread("takeover after a crash", [s for f in every for s in f.takeovers_s]))
    lines.append(_spread("pause while rebalancing", [s for f in every for s in f.pauses_s]))
    return lines


def _spread(name: str, times_s: Sequence[float]) -> str:
    if not times_s:
        return f"{name}: never"
    return f"{name}: median {statistics.median(times_s):.2f} s, most {max(times_s):.2f} s, of {len(times_s)}"


def missing(all_figures: Iterable[Figures]) -> list[str]:
    """What should have happened now and then, and never did."""
    happened = {word for figures in all_figures for word in figures.happened}
    return [word for word in SOMETIMES if word not in happened]


def main(path: str, *options: str) -> int:
    """Print the summary; 1 if something never happened in a whole run."""
    every = [Figures(**json.loads(line)) for line in Path(path).read_text().splitlines()]
    print("\n".join(summary(every)))
    never = [] if "--part" in options else missing(every)
    if never:
        print(f"never happened: {', '.join(never)}", file=sys.stderr)
    return 1 if never else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
