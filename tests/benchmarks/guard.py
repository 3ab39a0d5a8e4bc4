"""The cheap guard of CI: a small run of the first row must keep most of the ratio that is on record.

`python -m tests.benchmarks.guard` measures and compares, `--record` writes what it has measured into guard.json.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.benchmarks.delivering import deliver_sampled
from tests.benchmarks.rig import running_rig
from tests.benchmarks.sizes import GUARD

RECORD = Path(__file__).with_name("guard.json")
LOSS_MAX = 0.30
RECORDED_OF = 7
"""So many repetitions is the median of that is written."""
TRIES = 2
"""A machine that is busy with something else gets a second chance."""


async def measured(repeat: int = 1) -> float:
    """The ratio of the first row at the guard's size."""
    with running_rig(own_receiver=True) as rig:
        (row,) = await deliver_sampled(rig, GUARD.repeated(repeat))
    assert row.ratio is not None
    print(f"{row.name}: {row.value:,.0f} {row.unit}, ratio {row.ratio:.2f}")
    return row.ratio


def main() -> int:
    if "--record" in sys.argv:
        RECORD.write_text(json.dumps({"deliver_sampled": round(asyncio.run(measured(RECORDED_OF)), 2)}) + "\n")
        return 0
    least = json.loads(RECORD.read_text())["deliver_sampled"] * (1 - LOSS_MAX)
    for _ in range(TRIES):
        if asyncio.run(measured()) >= least:
            print(f"ok: at least {least:.2f}")
            return 0
    print(f"lost more than {LOSS_MAX:.0%} of the ratio on record: less than {least:.2f}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
