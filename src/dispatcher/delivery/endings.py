"""What is put on record when a delivery's attempts are used up; pure."""

from __future__ import annotations

from dispatcher.delivery.attempt import AttemptResult
from dispatcher.delivery.retry import Exhausted
from dispatcher.model import DeadLetter, Decision, DecisionKind, Halt, OrderingMode, OutboxRow

ACTOR = "dispatcher"


def dead_letter(row: OutboxRow, result: AttemptResult, step: Exhausted) -> tuple[Decision, DeadLetter]:
    """The decision, and what the dead letter keeps beside it."""
    attempt = result.attempt
    decision = Decision(
        key=row.key,
        seq=row.seq,
        event_id=row.event_id,
        event_time=row.event_time,
        kind=DecisionKind.DEAD_LETTER,
        reason=step.reason,
        actor=ACTOR,
    )
    letter = DeadLetter(
        key=row.key,
        seq=row.seq,
        event_id=row.event_id,
        event_time=row.event_time,
        type=row.type,
        ordering_key=row.ordering_key,
        attempts=row.attempts,
        last_outcome=attempt.outcome,
        last_status_code=attempt.status_code,
        last_error=attempt.error,
    )
    return decision, letter


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
