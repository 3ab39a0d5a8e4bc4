"""Bugs to plant: each is what to put in the place of something, for `simulate(seed, bug)`. Nothing in src knows of it.

Some are those that the design warns of, the others were really there until the simulation found them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatcher.delivery import aside
from dispatcher.delivery.flush import Flusher
from dispatcher.delivery.lane_state import LaneState
from dispatcher.delivery.leases import LeaseKeeper
from dispatcher.delivery.window import WindowLane
from dispatcher.model import Attempt, Cursor, OutboxRow
from dispatcher.store import attempts
from tests.support.sim import store
from tests.support.sim.database import SimDatabase
from tests.support.sim.fleet import Node
from tests.support.sim.world import World

Planted = tuple[Any, str, Any]
"""Where, under which name, and what is put there."""


def _watermark_of_all_read(lane: LaneState) -> Cursor:
    return Cursor(lane.key, lane._tail, lane._tail_time)


def _held_by_anyone(_world: World, epochs: Mapping[int, int]) -> set[int]:
    return set(epochs)


def _offer_whatever_comes(lane: WindowLane, row: OutboxRow) -> bool:
    if row.seq > lane._tail:
        lane._append(row)
        lane._highest_known = max(lane._highest_known, row.seq)
        return True
    return False


_add = Flusher.add


def _flushed_before_it_is_written(flusher: Flusher, attempt: Attempt) -> None:
    _add(flusher, attempt)
    flusher._on_flushed([attempt])


async def _append_volatile(db: SimDatabase, made: Sequence[Attempt]) -> None:
    world, batch = db.world, list(made)

    def action() -> None:
        store._record(world, batch)
        world.volatile.append(undo)

    def undo() -> None:
        for attempt in batch:
            world.attempts[attempt.key, attempt.seq].remove(attempt)

    await world.ask(db.process, action, durable=False)


async def _publish_volatile(node: Node, event_id: str, ordering_key: str | None, data: bytes) -> None:
    world = node.database.world

    def action() -> None:
        rows = world.publish(event_id, ordering_key, data)
        if rows:
            world.volatile.append(functools.partial(_take_back, world, event_id))

    await world.ask(node.process, action, durable=False)


def _take_back(world: World, event_id: str) -> None:
    del world.published[event_id]
    for rows in world.outbox.values():
        rows[:] = [row for row in rows if row.event_id != event_id]


async def _each_and_forget(one: Any, wanted: Any, work: Any) -> None:
    for lane in one._board.take_lanes(wanted, 200):
        try:
            await work(lane)
        except BaseException:
            wanted[lane.key] = None
            raise


def _succeed_on_a_guess(lane: WindowLane, seq: int, due: float) -> None:
    """A failed attempt counts as done for those behind it."""
    del due
    lane.succeeded(seq)


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug, what the checker says of it, and seeds of which one at least shows it."""

    planted: Planted
    shows: str
    seeds: range = range(60)


PENDING = "is pending"
LOST = "is neither delivered nor decided"
BUGS: dict[str, Bug] = {
    "the cursor moves before anything is sent": Bug(
        (LaneState, "watermark", property(_watermark_of_all_read)), PENDING
    ),
    "decisions without a fence": Bug((World, "held", _held_by_anyone), LOST, range(1990, 2000)),
    "sending without a look at the lease": Bug(
        (LeaseKeeper, "sendable_until", lambda _keeper: math.inf), "without a lease"
    ),
    "a hand-off that is not contiguous": Bug((WindowLane, "offer", _offer_whatever_comes), LOST),
    "an acknowledgement counts before it is written": Bug((Flusher, "add", _flushed_before_it_is_written), PENDING),
    "an acknowledgement counts before it is durable": Bug((attempts, "append", _append_volatile), PENDING),
    "publish answers before it is durable": Bug(
        (Node, "publish", _publish_volatile), "was acknowledged and is there 0 times"
    ),
    "n+1 is sent though n failed": Bug((WindowLane, "failed", _succeed_on_a_guess), LOST),
    "a failed read of parked rows forgets the others": Bug(
        (aside.Aside, "_each", _each_and_forget), LOST, range(2453, 2454)
    ),
}
