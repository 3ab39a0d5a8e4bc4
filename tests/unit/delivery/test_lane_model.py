"""A lane never differs from a model that looks through all its rows at every step.

The model knows a rule only by its sentence: a row may start if no lower row that is not done has another ordering mode,
if (ORDERED) no lower row at all is not done, if (ORDERED_BY_KEY) none of its key is not done, and while there is room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from dispatcher.delivery.lane import Lane, LaneLimits, LoadResult, ModeSettings
from dispatcher.delivery.payloads import PayloadBudget
from dispatcher.delivery.slots import SlotState
from dispatcher.model import Cursor, OrderingMode, OutboxRow
from tests.support.acting import ActingMachine, Choose, quickly
from tests.support.lanes import BY_KEY, KEY, ORDERED, payload_of, row, row_time

REVISIONS = 4
DONE = (SlotState.ACKNOWLEDGED, SlotState.SETTLED)


@dataclass
class Published:
    ordering_key: str | None
    revision: int
    data_bytes: int
    settled: bool = False


@dataclass
class Expected:
    """What the model knows of a row in the lane's memory."""

    row: OutboxRow
    state: SlotState = SlotState.WAITING
    due: float = 0.0
    proven: bool = False
    on_record: bool = False

    @property
    def is_done(self) -> bool:
        return self.state in DONE


class LaneMachine(ActingMachine):
    ACTIONS: ClassVar[Mapping[str, int]] = {
        "publish": 6,
        "sweep": 2,
        "read": 6,
        "read_payloads": 6,
        "configure": 2,
        "start": 20,
        "succeed": 12,
        "fail": 8,
        "exhaust": 3,
        "skip": 1,
        "decision_committed": 4,
        "flush": 10,
        "late_success": 3,
        "time_passes": 8,
        "pause": 1,
        "unpause": 3,
        "restart": 1,
        "others_hold_payloads": 2,
    }

    @initialize(
        modes=st.lists(
            st.tuples(st.sampled_from(OrderingMode), st.integers(1, 4)), min_size=REVISIONS, max_size=REVISIONS
        ),
        rows_max=st.integers(1, 12),
        bytes_max=st.sampled_from([30, 60, 1000]),
        payload_rows_max=st.integers(1, 6),
    )
    def begin(
        self, modes: list[tuple[OrderingMode, int]], rows_max: int, bytes_max: int, payload_rows_max: int
    ) -> None:
        self.modes = {number: ModeSettings(*mode) for number, mode in enumerate(modes, 1)}
        self.limits = LaneLimits(rows_max, bytes_max, payload_rows_max)
        self.published: list[Published] = []
        self.revision = 1
        self.now = 0.0
        self.take_over(0)
        self.configure()

    def take_over(self, seq: int) -> None:
        self.budget, self.others_bytes = PayloadBudget(80), 0
        cursor = Cursor(KEY, seq, row_time(seq))
        self.lane = Lane(KEY, 1, cursor, self.limits, len(self.published), self.budget)
        self.rows: dict[int, Expected] = {}
        self.cursor = self.tail = seq
        self.known: set[int] = set()
        self.paused = False

    # --- the model's sentences ---

    def mode(self, seq: int) -> OrderingMode | None:
        revision = self.rows[seq].row.revision
        return self.modes[revision].mode if revision in self.known else None

    def room(self) -> int:
        return max(1, self.modes[max(self.known)].max_in_flight) if self.known else 1

    def in_flight(self) -> list[int]:
        return [seq for seq, slot in self.rows.items() if slot.state is SlotState.IN_FLIGHT]

    def must_wait_for(self, seq: int, lower: int) -> bool:
        mode = self.mode(seq)
        if self.mode(lower) != mode or mode is ORDERED:
            return True
        return mode is BY_KEY and self.rows[lower].row.ordering_key == self.rows[seq].row.ordering_key

    def may_start(self, seq: int) -> bool:
        slot = self.rows[seq]
        is_up = slot.state is SlotState.WAITING or (slot.state is SlotState.BACKING_OFF and slot.due <= self.now)
        open_below = [lower for lower in self.rows if lower < seq and not self.rows[lower].is_done]
        return (
            is_up
            and not self.paused
            and self.mode(seq) is not None
            and not any(self.must_wait_for(seq, lower) for lower in open_below)
            and len(self.in_flight()) < self.room()
        )

    def startable(self) -> set[int]:
        return {seq for seq in self.rows if self.may_start(seq)}

    def contiguous(self, states: tuple[SlotState, ...]) -> int:
        seq = self.cursor
        while seq + 1 in self.rows and self.rows[seq + 1].state in states:
            seq += 1
        return seq

    def window(self) -> int:
        return self.tail - self.contiguous((SlotState.SETTLED,))

    # --- rows come ---

    def make(self, seq: int, *, payload: bool) -> OutboxRow:
        made = self.published[seq - 1]
        return row(
            seq,
            ordering_key=made.ordering_key,
            revision=made.revision,
            data_bytes=made.data_bytes,
            settled=made.settled,
            payload=payload,
        )

    def take_in(self, taken: OutboxRow) -> None:
        self.rows[taken.seq] = Expected(taken, SlotState.SETTLED if taken.settled else SlotState.WAITING)
        self.tail = taken.seq

    def publish(self, choose: Choose) -> None:
        self.revision = min(REVISIONS, self.revision + choose([0] * 9 + [1]))
        self.published.append(Published(choose([None, "a", "b"]), self.revision, choose([0, 1, 10, 10, 25, 40])))
        seq = len(self.published)
        told = choose(["offer"] * 8 + ["hint", "nothing"])
        if told == "hint":
            self.lane.hint(seq)
        elif told == "offer":
            offered = self.make(seq, payload=True)
            fits = seq == self.tail + 1 and self.window() < self.limits.rows_max
            assert self.lane.offer(offered) is fits
            if fits:
                self.take_in(offered)

    def sweep(self, _: Choose | None = None) -> None:
        self.lane.hint(len(self.published))

    def read(self, choose: Choose) -> None:
        """A read may begin lower and end higher than was asked."""
        wanted = self.lane.wanted()
        assert wanted <= max(0, min(self.limits.rows_max - self.window(), self.lane.highest_known - self.tail))
        if not wanted:
            return
        last = min(len(self.published), self.tail + wanted + choose([0, 1, 2]))
        first = max(1, self.tail + 1 - choose([0, 1, 2]))
        rows = [self.make(seq, payload=False) for seq in range(first, last + 1)]
        for read_row in rows:
            if read_row.seq > self.tail and self.window() < self.limits.rows_max:
                self.take_in(read_row)
        assert self.lane.loaded(rows, reached_end=last == len(self.published)) is LoadResult.CONTIGUOUS

    def read_payloads(self, choose: Choose) -> None:
        """The last payload asked for may be lost on its way."""
        wanted = self.lane.wants_payloads(self.now)
        assert len(wanted) <= self.limits.payload_rows_max
        assert all(want.payload is None and not self.rows[want.seq].is_done for want in wanted)
        for want in wanted[: len(wanted) - choose([0, 0, 1])]:
            self.lane.attach(want, payload_of(want))
            assert want.payload is not None

    def configure(self, _: Choose | None = None) -> None:
        self.known = set(range(1, self.revision + 1))
        self.lane.configure({number: self.modes[number] for number in self.known})

    # --- deliveries ---

    def start(self, _: Choose | None = None) -> None:
        startable = self.startable()
        started = self.lane.start(self.now)
        if started is not None:
            assert started.seq in startable
            assert started.payload is not None
            assert started is self.rows[started.seq].row
            self.rows[started.seq].state = SlotState.IN_FLIGHT
        elif startable:
            assert self.lane.needs_payloads
            assert self.lane.wants_payloads(self.now) or self.in_flight()

    def pick(self, choose: Choose, *states: SlotState) -> int | None:
        found = [seq for seq, slot in self.rows.items() if slot.state in states]
        return choose(found) if found else None

    def acknowledge(self, slot: Expected) -> None:
        slot.state = SlotState.SETTLED if slot.on_record else SlotState.ACKNOWLEDGED

    def succeed(self, choose: Choose) -> None:
        if (seq := self.pick(choose, SlotState.IN_FLIGHT)) is not None:
            self.lane.succeeded(seq)
            self.acknowledge(self.rows[seq])

    def fail(self, choose: Choose) -> None:
        if (seq := self.pick(choose, SlotState.IN_FLIGHT)) is None:
            return
        slot, due = self.rows[seq], self.now + choose([0.0, 1.0, 5.0])
        self.lane.failed(seq, due)
        if slot.proven:
            self.acknowledge(slot)
        else:
            slot.state, slot.due = SlotState.BACKING_OFF, due

    def exhaust(self, choose: Choose) -> None:
        self.decide(self.pick(choose, SlotState.IN_FLIGHT))

    def skip(self, choose: Choose) -> None:
        """An operator may skip any row that is not in flight."""
        self.decide(self.pick(choose, SlotState.WAITING, SlotState.BACKING_OFF))

    def decide(self, seq: int | None) -> None:
        if seq is None:
            return
        slot = self.rows[seq]
        assert self.lane.deciding(seq) is not slot.proven
        if slot.proven:
            self.acknowledge(slot)
        else:
            slot.state = SlotState.DECIDING

    def decision_committed(self, choose: Choose) -> None:
        if (seq := self.pick(choose, SlotState.DECIDING)) is not None:
            self.lane.decided(seq)
            self.rows[seq].state = SlotState.SETTLED
            self.published[seq - 1].settled = True

    def flush(self, choose: Choose) -> None:
        if (seq := self.pick(choose, SlotState.ACKNOWLEDGED)) is not None:
            self.lane.flushed(seq)
            self.rows[seq].state = SlotState.SETTLED
            self.published[seq - 1].settled = True

    def late_success(self, choose: Choose) -> None:
        """Of a former owner's attempt: only seen, or on record as well; of a row in memory or not."""
        if not self.published:
            return
        anywhere, here = range(1, len(self.published) + 1), range(self.lane.settled_through + 1, self.tail + 1)
        seq, on_record = choose(choose([anywhere, here or anywhere])), choose([True, False])
        slot = self.rows.get(seq)
        if on_record:
            self.lane.flushed(seq)
            self.published[seq - 1].settled = True
        else:
            self.lane.late_success(seq)
        if slot is None or slot.state is SlotState.SETTLED:
            return
        slot.proven, slot.on_record = True, slot.on_record or on_record
        if slot.state is not SlotState.IN_FLIGHT and slot.state is not SlotState.DECIDING:
            self.acknowledge(slot)

    def time_passes(self, choose: Choose) -> None:
        self.now += choose([0.5, 1.0, 10.0])

    def pause(self, _: Choose) -> None:
        self.lane.paused = self.paused = True

    def unpause(self, _: Choose | None = None) -> None:
        self.lane.paused = self.paused = False

    def restart(self, choose: Choose) -> None:
        """A new lane from a stored cursor that lags behind; what was not flushed is forgotten."""
        self.take_over(max(0, self.contiguous((SlotState.SETTLED,)) - choose([0, 1, 3])))
        self.configure()

    def others_hold_payloads(self, choose: Choose) -> None:
        """Other lanes take from the process's budget, or give back."""
        self.others_bytes, before = choose([0, 40, 80, 120]), self.others_bytes
        self.budget.used += self.others_bytes - before

    # --- at every step ---

    @invariant()
    def check(self) -> None:
        self.marks_agree()
        self.states_agree()
        self.payloads_are_bounded_and_let_go()
        self.an_unknown_revision_asks_for_a_reload()
        self.a_back_off_that_holds_something_up_has_its_timer()

    def marks_agree(self) -> None:
        watermark = self.contiguous((SlotState.SETTLED,))
        assert self.lane.watermark == Cursor(KEY, watermark, row_time(watermark))
        assert self.lane.acknowledged_through == self.contiguous(DONE)
        assert self.lane.tail == self.tail
        assert self.lane.tail_time == row_time(self.tail)
        assert self.lane.in_flight == len(self.in_flight())
        assert self.lane.is_idle is (watermark == self.tail and self.lane.highest_known <= self.tail)

    def states_agree(self) -> None:
        for seq, slot in self.rows.items():
            assert self.lane.state_of(seq) is slot.state
        blocked_by = self.rows.get(self.contiguous(DONE) + 1)
        assert self.lane.blocked_by is (blocked_by.row if blocked_by else None)

    def payloads_are_bounded_and_let_go(self) -> None:
        holding = [slot.row for slot in self.rows.values() if slot.row.payload is not None]
        assert self.lane.bytes_held == sum(held.data_bytes for held in holding)
        assert self.budget.used == self.lane.bytes_held + self.others_bytes
        assert self.lane.bytes_held <= self.limits.bytes_max or len([h for h in holding if h.data_bytes]) == 1
        for slot in self.rows.values():
            assert slot.row.payload is None or slot.state < SlotState.DECIDING

    def an_unknown_revision_asks_for_a_reload(self) -> None:
        unknown = [seq for seq in self.rows if not self.rows[seq].is_done and self.mode(seq) is None]
        assert self.lane.needs_reload or not unknown

    def a_back_off_that_holds_something_up_has_its_timer(self) -> None:
        """If only the passing of time lets a row start, the lane names a time not later than that."""
        if self.paused or self.startable() or self.in_flight():
            return
        now, moments = self.now, []
        for slot in list(self.rows.values()):
            if slot.state is SlotState.BACKING_OFF and slot.due > now:
                self.now = slot.due
                moments += [slot.due] if self.startable() else []
        self.now = now
        if moments:
            due = self.lane.next_due()
            assert due is not None
            assert now < due <= min(moments)

    def teardown(self) -> None:
        """Whatever has happened, once all goes well everything is delivered and nothing is left."""
        if not hasattr(self, "lane"):
            return
        self.configure()
        self.unpause()
        self.sweep()
        for _ in range(20 + 6 * len(self.published)):
            if self.lane.is_idle:
                break
            self.now += 100
            self.read(min)
            for _ in range(3):
                self.read_payloads(min)
                self.start()
            for action in (self.succeed, self.decision_committed, self.flush):
                for _ in range(4):
                    action(min)
        self.check()
        assert self.lane.is_idle
        assert self.lane.settled_through == len(self.published)
        assert self.lane.bytes_held == 0


TestLaneAgreesWithItsModel = LaneMachine.TestCase
TestLaneAgreesWithItsModel.settings = quickly(max_examples=100)
