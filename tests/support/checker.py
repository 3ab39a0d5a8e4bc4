"""Decides from what publishers were told, what receivers got, and what the database says in the end, whether the
promises of README were kept. Knows nothing of how: simulations and whole processes are judged alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Receipt:
    """One request as a receiver saw it. `status` is None where it never answered; times are the receiver's seconds.

    `is_ghost`: of a row that a failover undid and that was then written anew, in the same place. The receiver has it,
    which counts; when it came says nothing of the order."""

    endpoint: str
    sequence: int
    event_id: str
    ordering_key: str | None
    body: bytes
    at: float
    sender: str = ""
    status: int | None = None
    answered_at: float | None = None
    is_ghost: bool = False

    @property
    def is_accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Row:
    """One delivery in the database: its place, and what is on record of it in the end.

    `mode` is that of its endpoint's revision. `decided_at` is on the receiver's clock, None where that is not known.
    """

    endpoint: str
    sequence: int
    event_id: str
    ordering_key: str | None
    mode: str
    is_delivered: bool
    decisions: int
    is_parked: bool = False
    decided_at: float | None = None
    is_replay: bool = False


@dataclass(slots=True)
class Record:
    """All that there is to judge. `acknowledged` lists per publisher the events that it was told are accepted, in that
    order; a publisher waits for each answer before it asks again. `refused` are events of which it was told for certain
    that nothing was written. `cursors` and `halts` are those left in the end, by endpoint."""

    acknowledged: Mapping[str, Sequence[str]]
    refused: Iterable[str]
    receipts: Sequence[Receipt]
    rows: Sequence[Row]
    cursors: Mapping[str, int] = field(default_factory=dict)
    halts: Mapping[str, int] = field(default_factory=dict)
    endpoints: Sequence[str] = ()
    """Those that take every event; by default all that rows name."""


def violations(record: Record) -> list[str]:
    """Every promise that was not kept, in words; empty where all were."""
    by_endpoint: dict[str, list[Row]] = defaultdict(list)
    for row in record.rows:
        by_endpoint[row.endpoint].append(row)
    for rows in by_endpoint.values():
        rows.sort(key=lambda row: row.sequence)
    receipts: dict[str, list[Receipt]] = defaultdict(list)
    for receipt in record.receipts:
        receipts[receipt.endpoint].append(receipt)
    found = [*_lost(record, by_endpoint), *_refused(record)]
    for endpoint, rows in sorted(by_endpoint.items()):
        found += _numbers(endpoint, rows)
        found += _states(record, endpoint, rows)
        found += _copies(endpoint, rows, receipts[endpoint])
        found += _received(endpoint, rows, receipts[endpoint])
        found += _order(endpoint, rows, receipts[endpoint])
        found += _publishers_order(record, endpoint, rows)
    return found


def _lost(record: Record, by_endpoint: Mapping[str, Sequence[Row]]) -> list[str]:
    """Promise 1: what was acknowledged is there, once, for every endpoint."""
    found = []
    for endpoint in record.endpoints or sorted(by_endpoint):
        counts: dict[str, int] = defaultdict(int)
        for row in by_endpoint.get(endpoint, ()):
            counts[row.event_id] += not row.is_replay
        for publisher, events in record.acknowledged.items():
            found += [
                f"{endpoint}: {event} of {publisher} was acknowledged and is there {counts[event]} times"
                for event in events
                if counts[event] != 1
            ]
    return found


def _refused(record: Record) -> list[str]:
    """Nothing that was refused for certain is ever received."""
    refused = set(record.refused)
    return sorted({f"{r.event_id} was refused and was received" for r in record.receipts if r.event_id in refused})


def _numbers(endpoint: str, rows: Sequence[Row]) -> list[str]:
    """Sequences are 1, 2, 3, … without a gap."""
    numbers = [row.sequence for row in rows]
    return [] if numbers == list(range(1, len(rows) + 1)) else [f"{endpoint}: sequences are not gapless: {numbers}"]


def _states(record: Record, endpoint: str, rows: Sequence[Row]) -> list[str]:
    """Promise 4: each row ends in exactly one way, and nothing is left aside."""
    found = []
    for row in rows:
        if not row.is_delivered and row.decisions != 1:
            found.append(f"{endpoint}/{row.sequence} ({row.event_id}) is neither delivered nor decided")
        if row.decisions > 1:
            found.append(f"{endpoint}/{row.sequence} has {row.decisions} decisions")
        if row.is_parked:
            found.append(f"{endpoint}/{row.sequence} is parked for ever")
    if record.halts.get(endpoint):
        found.append(f"{endpoint}: {record.halts[endpoint]} halts are left")
    if endpoint in record.cursors and record.cursors[endpoint] != len(rows):
        found.append(f"{endpoint}: the cursor is at {record.cursors[endpoint]} of {len(rows)}")
    return found


def _copies(endpoint: str, rows: Sequence[Row], receipts: Sequence[Receipt]) -> list[str]:
    """Promise 3: copies are alike, and what is received is what was accepted under that number."""
    found, by_number, bodies = [], {row.sequence: row for row in rows}, {}
    for receipt in receipts:
        row = by_number.get(receipt.sequence)
        if row is None or (row.event_id, row.ordering_key) != (receipt.event_id, receipt.ordering_key):
            found.append(f"{endpoint}/{receipt.sequence} was received as {receipt.event_id}, which it is not")
        if bodies.setdefault(receipt.sequence, receipt.body) != receipt.body:
            found.append(f"{endpoint}/{receipt.sequence} was received with two bodies")
    return found


def _received(endpoint: str, rows: Sequence[Row], receipts: Sequence[Receipt]) -> list[str]:
    """Promise 4: what is on record as delivered was accepted by the receiver."""
    accepted = {receipt.sequence for receipt in receipts if receipt.is_accepted}
    return [
        f"{endpoint}/{row.sequence} is on record as delivered and was never accepted"
        for row in rows
        if row.is_delivered and row.sequence not in accepted
    ]


def must_precede(lower: Row, row: Row) -> bool:
    """Whether `row` may start only after `lower` is done: both in order, of one key, or of different modes."""
    if lower.mode != row.mode or row.mode == "ORDERED":
        return True
    return row.mode == "ORDERED_BY_KEY" and lower.ordering_key == row.ordering_key


def _order(endpoint: str, rows: Sequence[Row], receipts: Sequence[Receipt]) -> list[str]:
    """Promise 2: at the first receipt of a row, all that must precede it has been accepted, or is decided."""
    found = []
    done: set[int] = set()
    seen: set[int] = set()
    pending = sorted(receipts, key=lambda receipt: receipt.at)
    ends = sorted((r.answered_at, r.sequence) for r in receipts if r.is_accepted and r.answered_at is not None)
    by_number = {row.sequence: row for row in rows}
    floor = 0  # all rows up to here are done
    for receipt in pending:
        while ends and ends[0][0] <= receipt.at:
            done.add(ends.pop(0)[1])
        row = by_number.get(receipt.sequence)
        if row is None or receipt.sequence in seen or receipt.is_ghost:
            continue
        seen.add(receipt.sequence)
        while floor < len(rows) and rows[floor].sequence in done:
            floor += 1
        for lower in rows[floor : receipt.sequence - 1]:
            if lower.sequence not in done and must_precede(lower, row) and not _was_decided(lower, receipt.at):
                found.append(f"{endpoint}: {receipt.sequence} was received before {lower.sequence} was done")
                break
    return found


def _was_decided(row: Row, at: float) -> bool:
    return row.decisions > 0 and (row.decided_at is None or row.decided_at <= at)


def _publishers_order(record: Record, endpoint: str, rows: Sequence[Row]) -> list[str]:
    """Numbers follow each publisher's order of acknowledgement."""
    place = {row.event_id: row.sequence for row in reversed(rows) if not row.is_replay}
    found = []
    for publisher, events in record.acknowledged.items():
        numbers = [place[event] for event in events if event in place]
        if numbers != sorted(numbers):
            found.append(f"{endpoint}: the numbers of {publisher} are out of order: {numbers}")
    return found


def copies_of_accepted(receipts: Sequence[Receipt]) -> list[Receipt]:
    """Requests that came again after their receiver had accepted them: the duplicates."""
    accepted: dict[tuple[str, int], float] = {}
    copies = []
    for receipt in sorted(receipts, key=lambda r: r.at):
        place = (receipt.endpoint, receipt.sequence)
        first = accepted.get(place)
        if first is not None and receipt.at >= first:
            copies.append(receipt)
        if receipt.is_accepted and receipt.answered_at is not None:
            accepted.setdefault(place, receipt.answered_at)
    return copies
