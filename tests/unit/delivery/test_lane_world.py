"""Promise 2 from outside: whatever owners come, go, freeze and come back, no row is sent on a guess.

A world with one database and several lanes on it at once: the present owner's and those of instances that lost their
lease and don't know. At every start the world itself checks that whatever the row must wait for was answered 2xx before
or is on record as decided. No lane is asked; the rule is spelled out over all rows ever published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.delivery.slots import SlotState
from dispatcher.model import Cursor, OrderingMode
from tests.support.acting import ActingMachine, Choose, quickly
from tests.support.lanes import BY_KEY, KEY, ORDERED, payload_of, row, row_time

REVISIONS = 3


class WorldMachine(ActingMachine):
    ACTIONS: ClassVar[Mapping[str, int]] = {
        "publish": 12,
        "go": 20,
        "answer": 20,
        "flush": 10,
        "take_over": 3,
        "checkpoint": 5,
        "skip": 1,
        "time_passes": 8,
    }

    @initialize(modes=st.lists(st.sampled_from(OrderingMode), min_size=REVISIONS, max_size=REVISIONS))
    def begin(self, modes: list[OrderingMode]) -> None:
        self.modes = {number: ModeSettings(mode, 3) for number, mode in enumerate(modes, 1)}
        self.rows: list[tuple[str | None, int]] = []
        self.revision, self.now, self.epoch, self.cursor = 1, 0.0, 0, 0
        self.received: set[int] = set()
        self.on_record: set[int] = set()
        self.decided: set[int] = set()
        self.facts: list[tuple[Lane, int]] = []
        self.sending: list[tuple[Lane, int]] = []
        self.lanes: list[Lane] = []
        self.take_over()

    # --- the world's own rule ---

    def must_precede(self, lower: int, seq: int) -> bool:
        (lower_key, lower_revision), (key, revision) = self.rows[lower - 1], self.rows[seq - 1]
        mode = self.modes[revision].mode
        if self.modes[lower_revision].mode != mode or mode is ORDERED:
            return True
        return mode is BY_KEY and lower_key == key

    def check_start(self, seq: int) -> None:
        for lower in range(1, seq):
            if self.must_precede(lower, seq):
                assert lower in self.received or lower in self.decided, f"{seq} was sent before {lower}"

    # --- what happens ---

    def take_over(self, _: Choose | None = None) -> None:
        """A new owner under a new epoch; whoever had the lease before goes on, for all it knows."""
        self.epoch += 1
        lane = Lane(KEY, self.epoch, Cursor(KEY, self.cursor, row_time(self.cursor)), LaneLimits(8, 1000), 0)
        self.lanes = [*self.lanes[-2:], lane]
        self.sending = [(sender, seq) for sender, seq in self.sending if sender in self.lanes]

    @property
    def owner(self) -> Lane:
        return self.lanes[-1]

    def publish(self, choose: Choose) -> None:
        """A row is offered to one of the lanes, which takes it or leaves it."""
        self.revision = min(REVISIONS, self.revision + choose([0] * 9 + [1]))
        self.rows.append((choose([None, "a", "b"]), self.revision))
        choose(self.lanes).offer(row(len(self.rows), ordering_key=self.rows[-1][0], revision=self.revision))

    def go(self, choose: Choose) -> None:
        """One lane reads what it lacks and starts what it may."""
        lane = choose([self.owner, *self.lanes])
        self.read(lane)
        if lane.needs_reload and choose([True, False]):
            lane.configure({number: self.modes[number] for number in range(1, self.revision + 1)})
        for want in lane.wants_payloads(self.now):
            lane.attach(want, payload_of(want))
        for _ in range(choose([1, 3])):
            started = lane.start(self.now)
            if started is not None:
                self.check_start(started.seq)
                self.sending.append((lane, started.seq))

    def read(self, lane: Lane) -> None:
        lane.hint(len(self.rows))
        rows = []
        for seq in range(lane.tail + 1, lane.tail + 1 + lane.wanted()):
            key, revision = self.rows[seq - 1]
            settled = seq in self.on_record or seq in self.decided
            rows.append(row(seq, ordering_key=key, revision=revision, settled=settled, payload=False))
        lane.loaded(rows, reached_end=False)

    def answer(self, choose: Choose) -> None:
        """A receiver may have got what its sender took for failed; the world counts only what it answered 2xx."""
        if not self.sending:
            return
        lane, seq = self.sending.pop(choose(range(len(self.sending))))
        fate = choose(["2xx", "2xx", "2xx", "failed", "failed", "exhausted"])
        if fate == "2xx":
            self.received.add(seq)
            self.facts.append((lane, seq))
            lane.succeeded(seq)
        elif fate == "failed":
            lane.failed(seq, self.now + choose([0.0, 1.0]))
        elif lane.deciding(seq) and lane is self.owner and choose([True, True, False]):
            self.decided.add(seq)
            lane.decided(seq)
        # else the decision is never known to be committed: the fence keeps former owners from it

    def flush(self, choose: Choose) -> None:
        """A success becomes a fact, whoever saw it; the present owner may hear of it before, or after, or never."""
        if not self.facts:
            return
        lane, seq = self.facts.pop(choose(range(len(self.facts))))
        if choose([True, True, True, False]):
            self.on_record.add(seq)
            lane.flushed(seq)
            if lane is not self.owner and choose([True, False]):
                self.owner.flushed(seq)
        elif lane is not self.owner:
            self.owner.late_success(seq)

    def checkpoint(self, _: Choose) -> None:
        """Fenced: only the present owner's watermark is ever stored."""
        self.cursor = max(self.cursor, self.owner.settled_through)

    def skip(self, choose: Choose) -> None:
        owner = self.owner
        window = range(owner.settled_through + 1, owner.tail + 1)
        skippable = [seq for seq in window if owner.state_of(seq) in (SlotState.WAITING, SlotState.BACKING_OFF)]
        if skippable:
            seq = choose(skippable)
            assert owner.deciding(seq)
            self.decided.add(seq)
            owner.decided(seq)

    def time_passes(self, _: Choose) -> None:
        self.now += 1

    @invariant()
    def check(self) -> None:
        """A watermark stands for facts: each row at or below it is on record, not merely believed to be done."""
        for lane in self.lanes:
            assert set(range(1, lane.settled_through + 1)) <= self.on_record | self.decided


TestNoRowIsSentOnAGuess = WorldMachine.TestCase
TestNoRowIsSentOnAGuess.settings = quickly(max_examples=200)
