"""The plan that a fleet follows without talking to each other."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.delivery.shares import Plan, View, assignments, decide, targets

COUNT = 32
INSTANCES = [UUID(int=n + 1) for n in range(10)]
DEAD = UUID(int=99)

fleets = st.sets(st.sampled_from(INSTANCES), min_size=1)
ownerships = st.dictionaries(st.integers(0, COUNT - 1), st.sampled_from([*INSTANCES, DEAD]))


def view_of(me: UUID, live: set[UUID], owners: dict[int, UUID], releasing: frozenset[int] = frozenset()) -> View:
    return View(me, frozenset(live), owners, releasing, COUNT)


def shares(live: set[UUID], owners: dict[int, UUID]) -> list[int]:
    return [sum(owner == instance for owner in owners.values()) for instance in live]


def follow(live: set[UUID], owners: dict[int, UUID]) -> dict[int, UUID]:
    """Everyone carries out its plan from the same view."""
    after = dict(owners)
    for me in live:
        plan = decide(view_of(me, live, owners))
        for partition in plan.release:
            del after[partition]
        after.update(dict.fromkeys(plan.acquire, me))
    return after


@given(fleets, ownerships)
def test_no_partition_is_planned_by_two_and_none_that_is_in_force(live: set[UUID], owners: dict[int, UUID]) -> None:
    planned = [p for me in live for p in decide(view_of(me, live, owners)).acquire]
    assert len(planned) == len(set(planned))
    assert not set(planned) & owners.keys()


@given(fleets, ownerships)
def test_targets_cover_everything_and_differ_by_one_at_most(live: set[UUID], owners: dict[int, UUID]) -> None:
    wanted = targets(view_of(min(live), live, owners))
    assert wanted.keys() == live
    assert sum(wanted.values()) == COUNT
    assert max(wanted.values()) - min(wanted.values()) <= 1


@given(fleets, ownerships)
def test_any_state_converges_in_two_rounds_once_the_dead_have_expired(live: set[UUID], owners: dict[int, UUID]) -> None:
    state = {partition: owner for partition, owner in owners.items() if owner in live}
    for _ in range(2):
        state = follow(live, state)
    assert state.keys() == set(range(COUNT))
    assert max(shares(live, state)) - min(shares(live, state)) <= 1
    assert follow(live, state) == state


@given(st.lists(fleets, min_size=1, max_size=6))
@settings(max_examples=50)
def test_joining_and_leaving_moves_no_more_than_it_must(fleet_history: list[set[UUID]]) -> None:
    state: dict[int, UUID] = {}
    for live in fleet_history:
        kept = {partition: owner for partition, owner in state.items() if owner in live}
        state = follow(live, follow(live, kept))
        share, odd = divmod(COUNT, len(live))
        most_first = sorted(shares(live, kept), reverse=True)
        must_move = sum(max(0, count - share - (rank < odd)) for rank, count in enumerate(most_first))
        assert sum(state[partition] != owner for partition, owner in kept.items()) <= must_move
        assert max(shares(live, state)) - min(shares(live, state)) <= 1


@given(fleets, ownerships)
def test_a_balanced_fleet_gives_nothing_back(live: set[UUID], owners: dict[int, UUID]) -> None:
    balanced = follow(live, follow(live, {p: o for p, o in owners.items() if o in live}))
    assert all(decide(view_of(me, live, balanced)) == Plan() for me in live)


@given(fleets, ownerships, st.sets(st.integers(0, COUNT - 1)))
def test_what_is_on_its_way_back_counts_as_given_back(
    live: set[UUID], owners: dict[int, UUID], started: set[int]
) -> None:
    me = min(live)
    mine = frozenset(p for p, owner in owners.items() if owner == me)
    releasing = mine & started
    release = set(decide(view_of(me, live, owners, releasing)).release)
    surplus = max(0, len(mine) - targets(view_of(me, live, owners))[me])
    assert not release & releasing
    assert len(release) == max(0, surplus - len(releasing))


def test_an_instance_that_drains_gives_everything_back_and_takes_nothing() -> None:
    me, other = INSTANCES[:2]
    assert decide(view_of(me, {other}, {1: me, 2: me, 3: other})) == Plan(release=(1, 2))
    assert decide(view_of(me, {other}, {})) == Plan()


def test_the_last_instance_drains_too() -> None:
    me = INSTANCES[0]
    view = view_of(me, set(), {1: me})
    assert decide(view) == Plan(release=(1,))
    assert assignments(view) == {}
