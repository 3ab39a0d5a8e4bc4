"""A lane goes on by itself: worlds whose last owner stays, and whose halts are lifted one after the other.

A stalled lane is freed by the next takeover, so a world that ends with a new owner can't see it (`test_lane_world`).
Here halts expire often, receipts are lost with their owners, and most rows have one key, behind which many are parked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import ClassVar

from dispatcher.delivery.lane import Lane, LaneError
from dispatcher.model import OrderingMode
from tests.support.acting import Choose
from tests.support.lanes import payload_of, row
from tests.unit.delivery.test_lane_world import REVISIONS, WorldMachine

STEPS = 200
SEEDS = (*range(150), 909, 1180)
"""The last two found a key that never went on."""


class LivingWorld(WorldMachine):
    ACTIONS: ClassVar[Mapping[str, int]] = {
        **WorldMachine.ACTIONS,
        "expire_halted": 3,
        "take_over": 4,
        "flush": 3,
        "park": 14,
        "retry_halted": 0,
        "skip": 0,
        "publish": 16,
    }

    def publish(self, choose: Choose) -> None:
        self.revision = min(REVISIONS, self.revision + choose([0] * 25 + [1]))
        self.rows.append((choose(["a", "a", "a", "b"]), self.revision))
        choose(self.lanes).offer(row(len(self.rows), ordering_key=self.rows[-1][0], revision=self.revision))

    def answer(self, choose: Choose) -> None:
        """As there, save that no decision stays open: one that was not committed is given up."""
        if not self.sending:
            return
        lane, seq = self.sending.pop(choose(range(len(self.sending))))
        fate = choose(["2xx"] * 3 + ["failed"] * 3 + ["exhausted"] + ["halted"] * 2)
        if fate == "2xx":
            self.received.add(seq)
            self.facts.append((lane, seq))
            lane.succeeded(seq)
        elif fate == "failed":
            lane.failed(seq, self.now + choose([0.0, 1.0]))
        elif lane.deciding(seq) and lane is self.owner:
            self._decide(lane, seq, fate, is_committed=choose([True, True, False]))

    def _decide(self, lane: Lane, seq: int, fate: str, *, is_committed: bool) -> None:
        if not is_committed:
            lane.undecided(seq, self.now)
        elif fate == "halted":
            self.halts.add(seq)
            lane.halted(seq)
        else:
            self.decided.add(seq)
            lane.decided(seq)

    def flush(self, choose: Choose) -> None:
        """What the owner saw is on record; what others saw may be lost with them."""
        if not self.facts:
            return
        lane, seq = self.facts.pop(choose(range(len(self.facts))))
        if lane is self.owner or choose([True, False]):
            self.on_record.add(seq)
            lane.flushed(seq)
            if lane is not self.owner and choose([True, False]):
                self.owner.flushed(seq)

    def _record(self, seq: int) -> None:
        self.on_record.add(seq)
        self.owner.flushed(seq)

    def live_on(self) -> None:
        """What is under way comes to its end, and the owner delivers all there is."""
        owner = self.owner
        for lane, seq in self.sending:
            if lane is owner:
                lane.failed(seq, self.now)
        for lane, seq in self.facts:
            if lane is owner:
                self._record(seq)
        self.sending, self.facts = [], []
        for number in range(60 * (len(self.rows) + 1)):
            self._deliver_all()
            if number % 10 == 9 and self.halts:
                self._lift(min(self.halts))
            self.now += 1
        left = set(range(1, len(self.rows) + 1)) - self.on_record - self.decided
        assert not left, f"{sorted(left)} never went on"

    def _deliver_all(self) -> None:
        owner = self.owner
        if owner.needs_held:
            self.hold(owner)
        self.read(owner)
        owner.configure({number: self.modes[number] for number in range(1, self.revision + 1)})
        self.read_cold(owner)
        for want in owner.wants_payloads(self.now):
            owner.attach(want, payload_of(want))
        while (started := owner.start(self.now)) is not None:
            self.check_start(owner, started.seq)
            self.received.add(started.seq)
            owner.succeeded(started.seq)
            self._record(started.seq)
        chosen = [held.row.seq for held in owner.to_park()]
        if chosen:
            self.parked.update(chosen)
            owner.parked(chosen)
        finished = owner.take_finished().keys()
        self.parked -= finished
        self.halts -= finished & self.on_record
        owner.deleted()

    def _lift(self, seq: int) -> None:
        """A skip: of what is settled otherwise by the halt alone; a new owner where it is not in memory."""
        self.halts.discard(seq)
        if seq in self.on_record:
            self.take_over()
        elif seq in self.decided:
            self.owner.lift_halt(seq)
        else:
            is_claimed = self.owner.state_of(seq) is not None and self.owner.deciding(seq)
            self.decided.add(seq)
            if is_claimed:
                self.owner.decided(seq)
            else:
                self.take_over()


def broken(seed: int) -> str:
    """One such world; what is broken in it, or nothing."""
    rng = random.Random(seed)
    world = object.__new__(LivingWorld)
    modes = [rng.choice(list(OrderingMode)) for _ in range(REVISIONS)]
    if seed % 2:
        modes[0] = modes[2] = OrderingMode.ORDERED_BY_KEY
    world.set_up(modes)
    try:
        for name in rng.choices(list(world.ACTIONS), list(world.ACTIONS.values()), k=STEPS):
            getattr(world, name)(rng.choice)
            world.check()
        world.live_on()
    except (AssertionError, LaneError) as error:
        return repr(error)
    return ""


def test_the_owner_there_is_delivers_everything_once_its_halts_are_lifted() -> None:
    assert {seed: found for seed in SEEDS if (found := broken(seed))} == {}
