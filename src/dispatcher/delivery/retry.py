"""What follows a failed attempt: another one after a while, or the end. Pure: chance and time are passed in."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from dispatcher.model import Outcome
from dispatcher.policy import Backoff, ExponentialBackoff, RetryPolicy, RetrySchedule, wait_bound_s

SCHEDULE_JITTER = 0.1
RETRY_AFTER_CHARS_MAX = 64
_SECONDS = re.compile(r"[0-9]{1,10}")


class ExhaustedReason(enum.StrEnum):
    """Why there is no further attempt; the reason on record of the dead letter."""

    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    AGE_EXCEEDED = "AGE_EXCEEDED"
    FINAL_STATUS = "FINAL_STATUS"


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
    status_code: int | None,
    retry_after_s: float | None,
    draw: float,
) -> Retry | Exhausted:
    """What to do after attempt `attempt_number` (1 for the first) has failed with `outcome`.

    `age_s` is the time since the delivery's own first attempt began, `draw` is random in [0, 1). A receiver's
    Retry-After (`retry_after_s`) may lengthen the wait up to the policy's longest. A wait that would outlast
    `age_max_s` ends there, so that the last attempt comes before the end. Raises ValueError for an attempt that
    succeeded.
    """
    if outcome is Outcome.SUCCEEDED:
        raise ValueError("a success is not followed by a retry")
    if outcome is Outcome.HTTP_ERROR and status_code in policy.final_status_codes:
        return Exhausted(ExhaustedReason.FINAL_STATUS)
    if attempt_number >= policy.attempts_max:
        return Exhausted(ExhaustedReason.ATTEMPTS_EXHAUSTED)
    left_s = math.inf if policy.age_max_s is None else policy.age_max_s - age_s
    if left_s <= 0:
        return Exhausted(ExhaustedReason.AGE_EXCEEDED)
    delay_s = max(wait_s(policy.backoff, attempt_number, draw), hold_s(policy, outcome, retry_after_s) or 0.0)
    return Retry(min(delay_s, left_s))


def hold_s(policy: RetryPolicy, outcome: Outcome, retry_after_s: float | None) -> float | None:
    """What a receiver's Retry-After amounts to under the policy; None where it said nothing."""
    # Only an answer can carry the header; what else came with a failure is not the receiver's word.
    if retry_after_s is None or outcome is not Outcome.HTTP_ERROR:
        return None
    return min(retry_after_s, policy.longest_wait_s)


def rest_s(policy: RetryPolicy, *, attempt_number: int, since_s: float, age_s: float, draw: float) -> float:
    """What is left of the wait after attempt `attempt_number`, which a former owner made `since_s` ago: 0 if nothing.

    As in `next_step`, the wait does not outlast `age_max_s`. A receiver's Retry-After is not on record.
    """
    wait = wait_s(policy.backoff, attempt_number, draw)
    left_s = math.inf if policy.age_max_s is None else policy.age_max_s - age_s
    return max(0.0, min(wait - max(0.0, since_s), left_s))


def wait_s(backoff: Backoff, attempt_number: int, draw: float) -> float:
    """The wait after attempt `attempt_number`: random up to its bound (full jitter), or the schedule's, up to a tenth
    longer so that deliveries which failed together don't come back together."""
    match backoff:
        case ExponentialBackoff():
            return draw * wait_bound_s(backoff, attempt_number)
        case RetrySchedule():
            return wait_bound_s(backoff, attempt_number) * (1 + SCHEDULE_JITTER * draw)


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
