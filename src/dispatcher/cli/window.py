"""What has been sent on a stream of events and not been answered: a pure state machine, in the order of the file.

A stream that breaks is rewound: all that was not answered is sent again, in the same order and with the same ids. A
request that the service refuses for what is in it is halved until one event is left to blame; a suspect travels
alone, because the service answers ABORTED to whatever follows a refusal on the same stream.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from dispatcher.cli.records import Batch
from dispatcher.cli.status import Code, ServiceStatus

REQUESTS_MAX = 16
BYTES_MAX = 8 * 1024 * 1024
"""A further request waits while so many, or so many bytes of lines, are unanswered."""
RETRY_DELAY_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The service's answer to the request `sequence`; `known` tells of each event whether it was a duplicate."""

    sequence: int
    status: ServiceStatus
    known: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A batch on its way. A suspect is a part of a request that was refused."""

    batch: Batch
    suspect: bool = False


class Window:
    """The unanswered requests. The first `sent` of them are on the present stream."""

    def __init__(self, requests_max: int = REQUESTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._requests: deque[Request] = deque()
        self._sequences: deque[int] = deque()
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._last_sequence = 0

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def front(self) -> Request:
        """The oldest unanswered request."""
        return self._requests[0]

    @property
    def in_flight(self) -> int:
        """How many requests are on the present stream."""
        return len(self._sequences)

    @property
    def wants_more(self) -> bool:
        """Whether everything is on its way and there is room for another batch."""
        return (
            self.in_flight == len(self._requests) < self._requests_max
            and self._bytes < self._bytes_max
            and not (self._requests and self._requests[-1].suspect)
        )

    def add(self, batch: Batch) -> None:
        self._requests.append(Request(batch))
        self._bytes += batch.line_bytes

    def next_unsent(self) -> Request | None:
        """The request to send now, if any may be sent."""
        sent = self.in_flight
        if sent == len(self._requests):
            return None
        request = self._requests[sent]
        return None if sent and (request.suspect or self._requests[sent - 1].suspect) else request

    def mark_sent(self) -> int:
        """`next_unsent` goes out; returns its sequence on the stream."""
        self._last_sequence += 1
        self._sequences.append(self._last_sequence)
        return self._last_sequence

    def expects(self, sequence: int) -> bool:
        """Whether this is the answer that comes next."""
        return bool(self._sequences) and self._sequences[0] == sequence

    def settle(self) -> Batch:
        """The front is done, in whatever way; returns its batch."""
        request = self._requests.popleft()
        if self._sequences:
            self._sequences.popleft()
        self._bytes -= request.batch.line_bytes
        return request.batch

    def rewind(self) -> None:
        """The stream is gone: everything is to be sent anew."""
        self._sequences.clear()

    def halve_front(self) -> None:
        """Put the two halves of the front, of at least two events, in its place, as suspects. Only after a rewind."""
        batch = self._requests.popleft().batch
        middle = len(batch.records) // 2
        half_bytes = batch.line_bytes // 2
        first = Batch(batch.records[:middle], half_bytes)
        second = Batch(batch.records[middle:], batch.line_bytes - half_bytes)
        self._requests.extendleft((Request(second, suspect=True), Request(first, suspect=True)))


class Verdict(Enum):
    """What a refusal calls for."""

    RETRY = auto()
    """Send the same again later: nothing is wrong with it."""
    BLAME_EVENT = auto()
    """Some event of the request is refused; others may pass."""
    STOP = auto()
    """Nothing will pass."""


def judge(status: ServiceStatus) -> Verdict:
    """Decide by the code, and by whether the service or gRPC itself speaks. Events have ids, so any may be repeated."""
    match status.code:
        case Code.OK | Code.UNAVAILABLE | Code.ABORTED | Code.CANCELLED | Code.DEADLINE_EXCEEDED:
            return Verdict.RETRY
        case Code.RESOURCE_EXHAUSTED:
            too_large = not status.reason and "larger than max" in status.message
            return Verdict.STOP if too_large else Verdict.RETRY
        case Code.INTERNAL | Code.UNKNOWN:
            return Verdict.STOP if status.reason else Verdict.RETRY
        case Code.INVALID_ARGUMENT | Code.ALREADY_EXISTS | Code.FAILED_PRECONDITION | Code.OUT_OF_RANGE:
            fields = [violation.field for violation in status.violations]
            return Verdict.STOP if fields and set(fields) == {"parent"} else Verdict.BLAME_EVENT
        case Code.NOT_FOUND | Code.PERMISSION_DENIED | Code.UNAUTHENTICATED | Code.UNIMPLEMENTED | Code.DATA_LOSS:
            return Verdict.STOP
        case _:
            assert_never(status.code)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of sending again: `retries_max` in a row without any answer of OK in between."""

    retries_max: int = 10
    backoff_min_s: float = 0.1
    backoff_max_s: float = 10.0

    def delay_s(self, retry: int, status: ServiceStatus, random_share: float) -> float:
        """Wait before retry number `retry` (from 1): exponential with jitter, and never shorter than RetryInfo asks.

        `random_share` is in [0, 1). What RetryInfo asks is honoured up to RETRY_DELAY_MAX_S.
        """
        bound = min(self.backoff_max_s, self.backoff_min_s * 2.0 ** min(retry - 1, 30))
        asked = min(status.retry_delay_s or 0.0, RETRY_DELAY_MAX_S)
        return asked + bound * random_share
