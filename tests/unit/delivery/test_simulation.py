"""Whole engines in a simulated world keep their promises; and where one is broken on purpose, the checker says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.sim.plan import collected, simulate
from tests.support.sim.planted import BUGS

SEEDS = 300
PARTS = 6


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    with collected():
        yield


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_crashes_freezes_or_is_cut_off_the_promises_hold(part: int) -> None:
    """`make test-sim` runs 10,000; `make test-sim SEED=17` tells what happens in one."""
    outcomes = [simulate(seed) for seed in range(part, SEEDS, PARTS)]
    assert {outcome.seed: outcome.violations for outcome in outcomes if outcome.violations} == {}
    shown = Counter(name for outcome in outcomes for name in outcome.sometimes)
    for name in ("takeover", "duplicate", "dead_letter", "halt", "park", "crash", "database crash", "lost reply"):
        assert shown[name], f"no seed has shown: {name}"


def test_a_seed_replays_exactly() -> None:
    for seed in range(20):
        assert simulate(seed) == simulate(seed)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    bug = BUGS[name]
    said = [violation for seed in bug.seeds for violation in simulate(seed, bug.planted).violations]
    assert any(bug.shows in violation for violation in said), said[:3]
