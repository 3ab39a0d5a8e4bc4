"""A lane never differs from a model that looks through all its rows at every step.

The model knows a rule only by its sentence: a row may start if no lower row that is not done has another ordering mode,
if (ORDERED) no lower row at all is not done, if (ORDERED_BY_KEY) none of its key is not done, and while there is room.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.delivery.lane import Lane, LaneLimits, LoadResult, ModeSettings
from dispatcher.delivery.slots import SlotState
from dispatcher.model import Cursor, OrderingMode, OutboxRow
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


class LaneMachine(RuleBasedStateMachine):
    @initialize(
        modes=st.lists(
            st.tuples(st.sampled_from(OrderingMode), st.integers(1, 4)), min_size=REVISIONS, max_size=REVISIONS
        ),
        rows_max=st.integers(1, 12),
        bytes_max=st.sampled_from([30, 60, 1000]),
        payload_rows_max=st.integers(1, 6),
    )
    def begin(self, modes, rows_max: int, bytes_max: int, payload_rows_max: int) -> None:
        self.modes = {number: ModeSettings(*mode) for number, mode in enumerate(modes, 1)}
        self.limits = LaneLimits(rows_max, bytes_max, payload_rows_max)
        self.published: list[Published] = []
        self.revision = 1
        self.now = 0.0
        self.take_over(0)
        self.configure()

    def take_over(self, seq: int) -> None:
        self.lane = Lane(KEY, 1, Cursor(KEY, seq, row_time(seq)), self.limits, highest_known=len(self.published))
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

    @rule(
        ordering_key=st.sampled_from([None, "a", "b"]),
        bump=st.sampled_from([0, 0, 0, 1]),
        data_bytes=st.integers(0, 40),
        told=st.sampled_from(["offer", "offer", "offer", "hint", "nothing"]),
    )
    def publish(self, ordering_key: str | None, bump: int, data_bytes: int, told: str) -> None:
        self.revision = min(REVISIONS, self.revision + bump)
        self.published.append(Published(ordering_key, self.revision, data_bytes))
        seq = len(self.published)
        if told == "hint":
            self.lane.hint(seq)
        elif told == "offer":
            offered = self.make(seq, payload=True)
            fits = seq == self.tail + 1 and self.window() < self.limits.rows_max
            assert self.lane.offer(offered) is fits
            if fits:
                self.take_in(offered)

    @rule()
    def sweep(self) -> None:
        self.lane.hint(len(self.published))

    @rule(overlap=st.integers(0, 2), more=st.integers(0, 2))
    def read(self, overlap: int, more: int) -> None:
        wanted = self.lane.wanted()
        assert wanted <= min(self.limits.rows_max - self.window(), self.lane.highest_known - self.tail)
        if not wanted:
            return
        last = min(len(self.published), self.tail + wanted + more)
        first = max(1, self.tail + 1 - overlap)
        rows = [self.make(seq, payload=False) for seq in range(first, last + 1)]
        for read_row in rows:
            if read_row.seq > self.tail and self.window() < self.limits.rows_max:
                self.take_in(read_row)
        assert self.lane.loaded(rows, reached_end=last == len(self.published)) is LoadResult.CONTIGUOUS

    @rule(skip_last=st.booleans())
    def read_payloads(self, skip_last: bool) -> None:
        wanted = self.lane.wants_payloads(self.now)
        assert len(wanted) <= self.limits.payload_rows_max
        assert all(want.payload is None and not self.rows[want.seq].is_done for want in wanted)
        for want in wanted[: len(wanted) - skip_last]:
            self.lane.attach(want, payload_of(want))
            assert want.payload is not None

    @rule()
    def configure(self) -> None:
        self.known = set(range(1, self.revision + 1))
        self.lane.configure({number: self.modes[number] for number in self.known})

    # --- deliveries ---

    @rule()
    def start(self) -> None:
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

    @rule(count=st.integers(1, 8))
    def start_with_payloads(self, count: int) -> None:
        for _ in range(count):
            self.read_payloads(skip_last=False)
            self.start()

    def pick(self, data: st.DataObject, *states: SlotState) -> int | None:
        found = [seq for seq, slot in self.rows.items() if slot.state in states]
        return data.draw(st.sampled_from(found)) if found else None

    def acknowledge(self, slot: Expected) -> None:
        slot.state = SlotState.SETTLED if slot.on_record else SlotState.ACKNOWLEDGED

    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        if (seq := self.pick(data, SlotState.IN_FLIGHT)) is not None:
            self.lane.succeeded(seq)
            self.acknowledge(self.rows[seq])

    @rule(data=st.data(), delay=st.sampled_from([0.0, 1.0, 5.0]))
    def fail(self, data: st.DataObject, delay: float) -> None:
        if (seq := self.pick(data, SlotState.IN_FLIGHT)) is None:
            return
        slot = self.rows[seq]
        self.lane.failed(seq, self.now + delay)
        if slot.proven:
            self.acknowledge(slot)
        else:
            slot.state, slot.due = SlotState.BACKING_OFF, self.now + delay

    @rule(data=st.data(), skip=st.booleans())
    def decide(self, data: st.DataObject, skip: bool) -> None:
        """Exhaustion ends the attempt in flight; an operator may skip a row that is not in flight."""
        states = (SlotState.WAITING, SlotState.BACKING_OFF) if skip else (SlotState.IN_FLIGHT,)
        if (seq := self.pick(data, *states)) is None:
            return
        slot = self.rows[seq]
        assert self.lane.deciding(seq) is not slot.proven
        if slot.proven:
            self.acknowledge(slot)
        else:
            slot.state = SlotState.DECIDING

    @rule(data=st.data())
    def decision_committed(self, data: st.DataObject) -> None:
        if (seq := self.pick(data, SlotState.DECIDING)) is not None:
            self.lane.decided(seq)
            self.rows[seq].state = SlotState.SETTLED
            self.published[seq - 1].settled = True

    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        if (seq := self.pick(data, SlotState.ACKNOWLEDGED)) is not None:
            self.lane.flushed(seq)
            self.rows[seq].state = SlotState.SETTLED
            self.published[seq - 1].settled = True

    @rule(data=st.data(), on_record=st.booleans())
    def late_success(self, data: st.DataObject, on_record: bool) -> None:
        if not self.published:
            return
        seq = data.draw(st.integers(1, len(self.published)))
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

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.lane.paused = self.paused = paused

    @precondition(lambda self: self.published)
    @rule(lag=st.integers(0, 3))
    def restart(self, lag: int) -> None:
        """A new lane from a stored cursor that lags behind; what was not flushed is forgotten."""
        self.take_over(max(0, self.contiguous((SlotState.SETTLED,)) - lag))
        self.configure()

    # --- at every step ---

    @invariant()
    def marks_agree(self) -> None:
        watermark = self.contiguous((SlotState.SETTLED,))
        assert self.lane.watermark == Cursor(KEY, watermark, row_time(watermark))
        assert self.lane.acknowledged_through == self.contiguous(DONE)
        assert self.lane.tail == self.tail
        assert self.lane.tail_time == row_time(self.tail)
        assert self.lane.in_flight == len(self.in_flight())
        assert self.lane.is_idle is (watermark == self.tail and self.lane.highest_known <= self.tail)

    @invariant()
    def states_agree(self) -> None:
        for seq, slot in self.rows.items():
            assert self.lane.state_of(seq) is slot.state
        blocked_by = self.rows.get(self.contiguous(DONE) + 1)
        assert self.lane.blocked_by is (blocked_by.row if blocked_by else None)

    @invariant()
    def payloads_are_bounded_and_let_go(self) -> None:
        holding = [slot.row for slot in self.rows.values() if slot.row.payload is not None]
        assert self.lane.bytes_held == sum(held.data_bytes for held in holding)
        assert self.lane.bytes_held <= self.limits.bytes_max or len([h for h in holding if h.data_bytes]) == 1
        for slot in self.rows.values():
            assert slot.row.payload is None or slot.state < SlotState.DECIDING

    @invariant()
    def an_unknown_revision_asks_for_a_reload(self) -> None:
        unknown = [seq for seq in self.rows if not self.rows[seq].is_done and self.mode(seq) is None]
        assert self.lane.needs_reload or not unknown

    @invariant()
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
        self.pause(paused=False)
        self.sweep()
        for _ in range(20 + 6 * len(self.published)):
            self.read(overlap=0, more=0)
            self.now += 100
            self.start_with_payloads(count=3)
            for seq, slot in self.rows.items():
                if slot.state is SlotState.IN_FLIGHT:
                    self.lane.succeeded(seq)
                    self.acknowledge(slot)
                if slot.state is SlotState.DECIDING:
                    self.lane.decided(seq)
                    slot.state = SlotState.SETTLED
                if slot.state is SlotState.ACKNOWLEDGED:
                    self.lane.flushed(seq)
                    slot.state = SlotState.SETTLED
        self.marks_agree()
        assert self.lane.is_idle
        assert self.lane.settled_through == len(self.published)
        assert self.lane.bytes_held == 0


TestLaneAgreesWithItsModel = LaneMachine.TestCase
TestLaneAgreesWithItsModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
