"""What follows a failed attempt: another one after a while, or the end. Pure: chance and time are passed in."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from dispatcher.model import Outcome

RETRY_AFTER_CHARS_MAX = 64
_SECONDS = re.compile(r"[0-9]{1,10}")


class ExhaustedReason(enum.StrEnum):
    """Why there is no further attempt; the reason on record of the dead letter."""

    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    AGE_EXCEEDED = "AGE_EXCEEDED"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential waits with full jitter, between bounds; `age_max_s` None means any age will do."""

    min_s: float
    max_s: float
    factor: float
    attempts_max: int
    age_max_s: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Don't try again."""

    reason: ExhaustedReason


def next_step(
    policy: RetryPolicy,
    *,
    attempt_number: int,
    age_s: float,
    outcome: Outcome,
    retry_after_s: float | None,
    draw: float,
) -> Retry | Exhausted:
    """What to do after attempt `attempt_number` (1 for the first) has failed with `outcome`.

    `age_s` is the time since the delivery's own first attempt began, `draw` is random in [0, 1). The wait is random in
    [0, min(max_s, min_s x factor^(attempt_number-1))]; a receiver's Retry-After (`retry_after_s`) may lengthen it up to
    `max_s`. A wait that would outlast `age_max_s` ends there, so that the last attempt comes before the end.
    Raises ValueError for an attempt that succeeded.
    """
    if outcome is Outcome.SUCCEEDED:
        raise ValueError("a success is not followed by a retry")
    if attempt_number >= policy.attempts_max:
        return Exhausted(ExhaustedReason.ATTEMPTS_EXHAUSTED)
    left_s = math.inf if policy.age_max_s is None else policy.age_max_s - age_s
    if left_s <= 0:
        return Exhausted(ExhaustedReason.AGE_EXCEEDED)
    # Only an answer can carry the header; what else came with a failure is not the receiver's word.
    asked_s = retry_after_s if retry_after_s is not None and outcome is Outcome.HTTP_ERROR else 0.0
    delay_s = max(draw * backoff_bound_s(policy, attempt_number), min(asked_s, policy.max_s))
    return Retry(min(delay_s, left_s))


def backoff_bound_s(policy: RetryPolicy, attempt_number: int) -> float:
    """The longest wait after attempt `attempt_number`, in seconds."""
    try:
        return min(policy.max_s, policy.min_s * policy.factor ** (attempt_number - 1))
    except OverflowError:
        return policy.max_s


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks to wait from `now` (aware), never negative; None if it makes no sense.

    Both forms of RFC 9110 section 10.2.3: delay-seconds and HTTP-date (section 5.6.7).
    """
    text = value.strip(" \t")
    if len(text) > RETRY_AFTER_CHARS_MAX:
        return None
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        # An HTTP-date is in GMT by definition; asctime's form does not even say so.
        return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
