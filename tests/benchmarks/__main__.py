"""`make bench`, `make bench-full`: every row with its baseline of the same run.

python -m tests.benchmarks [--full] [--only NAME,…] [--json FILE] [--own-receiver] [--repeat N]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.benchmarks import delivering, disturbing, fanning, idling, latency, publishing, scaling
from tests.benchmarks.report import Machine, Row, costs, table, write_json
from tests.benchmarks.rig import Rig, running_rig
from tests.benchmarks.sizes import FULL, SHORT, Sizes

Measure = Callable[[Rig, Sizes], Awaitable[list[Row]]]
MEASURES: dict[str, Measure] = {
    "deliver_sampled": delivering.deliver_sampled,
    "deliver_all_spans": delivering.deliver_all_spans,
    "deliver_keyed": delivering.deliver_keyed,
    "deliver_unordered": delivering.deliver_unordered,
    "deliver_100": delivering.deliver_100,
    "deliver_10": delivering.deliver_10,
    "publish_batch": publishing.publish_batch,
    "publish_unary": publishing.publish_unary,
    "latency_p50": latency.latency,
    "hanging_neighbours": latency.hanging_neighbours,
    "held_xmin": disturbing.held_xmin,
    "two_workers": disturbing.two_workers,
    "backlog_cost": scaling.backlog_cost,
    "backlog_start_s": scaling.backlog_start,
    "idle_cpu": idling.idle,
    "fan_out": fanning.fan_out,
    "memory_growth": scaling.memory_growth,
}
"""By the name of the first row that each makes."""


async def run(rig: Rig, sizes: Sizes, names: list[str]) -> list[Row]:
    """The rows of these measures; what is done is said on standard error."""
    rows: list[Row] = []
    for name in names:
        begun = time.monotonic()
        made = await MEASURES[name](rig, sizes)
        rows += made
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
        print("\n".join(table(made).splitlines()[2:]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--full", action="store_true", help="the sizes of the published table")
    parser.add_argument("--only", default=",".join(MEASURES), help="measures by name, comma separated")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--own-receiver", action="store_true", help="not nginx, though it is installed")
    parser.add_argument("--repeat", type=int, help="repetitions of each measure")
    said = parser.parse_args()
    sizes = FULL if said.full else SHORT
    if said.repeat:
        sizes = sizes.repeated(said.repeat)
    names = said.only.split(",")
    if unknown := set(names) - set(MEASURES):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    with running_rig(own_receiver=said.own_receiver) as rig:
        rows = asyncio.run(run(rig, sizes, names))
        machine = Machine.present(rig.receiver.kind)
    print(f"{machine.date}, {machine.processor}, {machine.cores} cores, receiver: {machine.receiver}\n")
    print(table(rows))
    print(f"\nPer event:\n\n{costs(rows)}")
    if said.json:
        write_json(said.json, machine, rows)


if __name__ == "__main__":
    main()
