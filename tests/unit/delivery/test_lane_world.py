"""Promise 2 from outside: whatever owners come, go, freeze and come back, no row is sent on a guess.

A world with one database and several lanes on it at once: the present owner's and those of instances that lost their
lease and don't know. At every start the world itself checks that whatever the row must wait for was answered 2xx before
or is on record as decided. No lane is asked; the rule is spelled out over all rows ever published.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.delivery.slots import SlotState
from dispatcher.model import Cursor, OrderingMode
from tests.support.lanes import BY_KEY, KEY, ORDERED, payload_of, row, row_time

REVISIONS = 3


class WorldMachine(RuleBasedStateMachine):
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

    @rule()
    def take_over(self) -> None:
        """A new owner under a new epoch; whoever had the lease before goes on, for all it knows."""
        self.epoch += 1
        lane = Lane(KEY, self.epoch, Cursor(KEY, self.cursor, row_time(self.cursor)), LaneLimits(8, 1000), 0)
        self.lanes = [*self.lanes[-2:], lane]
        self.sending = [(sender, seq) for sender, seq in self.sending if sender in self.lanes]

    def any_lane(self, data: st.DataObject) -> Lane:
        return data.draw(st.sampled_from(self.lanes[::-1]))

    @rule(
        ordering_key=st.sampled_from([None, "a", "b"]),
        bump=st.sampled_from([0, 0, 0, 1]),
        offered=st.booleans(),
        data=st.data(),
    )
    def publish(self, ordering_key: str | None, bump: int, offered: bool, data: st.DataObject) -> None:
        self.revision = min(REVISIONS, self.revision + bump)
        self.rows.append((ordering_key, self.revision))
        if offered:
            self.any_lane(data).offer(row(len(self.rows), ordering_key=ordering_key, revision=self.revision))

    @rule(data=st.data(), count=st.integers(1, 4))
    def go(self, data: st.DataObject, count: int) -> None:
        """One lane reads what it lacks and starts what it may."""
        lane = self.any_lane(data)
        self.read(lane)
        if lane.needs_reload:
            lane.configure({number: self.modes[number] for number in range(1, self.revision + 1)})
        for _ in range(count):
            for want in lane.wants_payloads(self.now):
                lane.attach(want, payload_of(want))
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

    @rule(data=st.data(), fate=st.sampled_from(["2xx", "2xx", "2xx", "error", "lost answer", "exhausted"]))
    def answer(self, data: st.DataObject, fate: str) -> None:
        """A receiver may have got what its sender took for failed; the world counts only what it answered 2xx."""
        if not self.sending:
            return
        lane, seq = self.sending.pop(data.draw(st.integers(0, len(self.sending) - 1)))
        if fate == "2xx":
            self.received.add(seq)
            self.facts.append((lane, seq))
            lane.succeeded(seq)
        elif fate != "exhausted":
            lane.failed(seq, self.now + data.draw(st.sampled_from([0.0, 1.0])))
        elif lane.deciding(seq) and lane is self.lanes[-1] and data.draw(st.booleans()):
            self.decided.add(seq)
            lane.decided(seq)
        # else the decision never comes to be known as committed: it is the fence that keeps former owners from it

    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        """A success becomes a fact, whoever saw it; the present owner may hear of it before or after, or never."""
        if not self.facts:
            return
        lane, seq = self.facts.pop(data.draw(st.integers(0, len(self.facts) - 1)))
        if data.draw(st.sampled_from([True, True, True, False])):
            self.on_record.add(seq)
            lane.flushed(seq)
            if lane is not self.lanes[-1] and data.draw(st.booleans()):
                self.lanes[-1].flushed(seq)
        elif lane is not self.lanes[-1]:
            self.lanes[-1].late_success(seq)

    @rule()
    def checkpoint(self) -> None:
        """Fenced: only the present owner's watermark is ever stored."""
        self.cursor = max(self.cursor, self.lanes[-1].settled_through)

    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        owner = self.lanes[-1]
        waiting = [
            seq
            for seq in range(owner.settled_through + 1, owner.tail + 1)
            if owner.state_of(seq) in (SlotState.WAITING, SlotState.BACKING_OFF)
        ]
        if waiting:
            seq = data.draw(st.sampled_from(waiting))
            assert owner.deciding(seq)
            self.decided.add(seq)
            owner.decided(seq)

    @rule()
    def time_passes(self) -> None:
        self.now += 1

    @invariant()
    def a_watermark_stands_for_facts(self) -> None:
        """Nothing at or below any lane's watermark is merely believed: each row is on record."""
        for lane in self.lanes:
            assert set(range(1, lane.settled_through + 1)) <= self.on_record | self.decided


TestNoRowIsSentOnAGuess = WorldMachine.TestCase
TestNoRowIsSentOnAGuess.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
