"""What is put on record when a delivery's attempts are used up; pure."""

from __future__ import annotations

from dispatcher.delivery.attempt import AttemptResult
from dispatcher.delivery.retry import Exhausted
from dispatcher.model import Attempt, DeadLetter, Decision, DecisionKind, Halt, OrderingMode, OutboxRow

ACTOR = "dispatcher"


def dead_letter(row: OutboxRow, result: AttemptResult, step: Exhausted) -> tuple[Decision, DeadLetter]:
    """The decision, and what the dead letter keeps beside it."""
    return decided(row, DecisionKind.DEAD_LETTER, step.reason), letter(row, result.attempt)


def decided(row: OutboxRow, kind: DecisionKind, reason: str) -> Decision:
    """A decision that nobody asked for."""
    return Decision(
        key=row.key,
        seq=row.seq,
        event_id=row.event_id,
        event_time=row.event_time,
        kind=kind,
        reason=reason,
        actor=ACTOR,
    )


def letter(row: OutboxRow, last: Attempt | None) -> DeadLetter:
    """What a dead letter keeps; `last` is the last attempt, None where none was made."""
    return DeadLetter(
        key=row.key,
        seq=row.seq,
        event_id=row.event_id,
        event_time=row.event_time,
        type=row.type,
        ordering_key=row.ordering_key,
        attempts=row.attempts,
        last_outcome=None if last is None else last.outcome,
        last_status_code=None if last is None else last.status_code,
        last_error=None if last is None else last.error,
    )


def halt(row: OutboxRow, mode: OrderingMode, result: AttemptResult, step: Exhausted) -> Halt:
    """The halt at this row, whose revision was ordered by `mode`."""
    attempt = result.attempt
    return Halt(
        key=row.key,
        seq=row.seq,
        event_id=row.event_id,
        event_time=row.event_time,
        type=row.type,
        ordering_key=row.ordering_key,
        ordering_mode=mode,
        reason=step.reason,
        attempts=row.attempts,
        last_outcome=attempt.outcome,
        last_status_code=attempt.status_code,
        last_error=attempt.error,
    )
