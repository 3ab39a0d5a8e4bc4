"""What one attempt's end means for its endpoint: rate, circuits, health, and when the delivery is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable

from dispatcher.clocks import Clocks
from dispatcher.delivery.admissions import CHANGES_MAX
from dispatcher.delivery.attempt import AttemptResult
from dispatcher.delivery.board import Board
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.health import DisableReason, Trouble
from dispatcher.delivery.keeping import Disabling
from dispatcher.delivery.retry import Exhausted, Retry, hold_s, next_step, parse_retry_after
from dispatcher.model import EndpointKey, OrderingMode, OutboxRow

GONE = 410
"""RFC 9110 section 15.5.11: the receiver is gone and is not coming back."""


class Conclusions:
    """For attempts of lanes that are still current; what outlived its lease decides nothing."""

    def __init__(
        self,
        board: Board,
        disable: Callable[[Disabling], None],
        *,
        clocks: Clocks,
        chance: random.Random | None = None,
    ) -> None:
        self._board = board
        self._disable = disable
        self._clock = clocks.monotonic
        self._now = clocks.now
        self._random = chance or random.Random()  # noqa: S311 -- jitter, no secret

    def note(self, runtime: EndpointRuntime, row: OutboxRow, result: AttemptResult) -> float | None:
        """Tell the endpoint's admission and health; returns what the receiver's Retry-After amounts to, in seconds."""
        attempt = result.attempt
        held_s = None if result.is_success else self._held_s(runtime, result)
        standing = self._board.admissions.get(runtime.key)
        if standing is None:
            return held_s
        changes = standing.admission.ended(
            self._clock(),
            self._url(runtime, attempt.url_index),
            failed=not result.is_success,
            status_code=attempt.status_code,
            hold_s=held_s,
        )
        if changes:
            room = CHANGES_MAX - len(standing.changes)
            standing.changes.extend((change, row.type) for change in list(changes)[:room])
        if result.is_success:
            if not standing.health.is_well:
                lane = self._board.lanes.get(runtime.key)
                standing.health.succeeded(is_halted=lane is not None and lane.is_halted)
        else:
            standing.health.failed(self._now())
            self._check(runtime, row, attempt.epoch, attempt.status_code, attempt.url_index)
        return held_s

    def _held_s(self, runtime: EndpointRuntime, result: AttemptResult) -> float | None:
        asked_s = None if result.retry_after is None else parse_retry_after(result.retry_after, self._now())
        return hold_s(runtime.policies.retry, result.attempt.outcome, asked_s)

    def next_step(
        self, runtime: EndpointRuntime, row: OutboxRow, result: AttemptResult, held_s: float | None
    ) -> Retry | Exhausted:
        """When the delivery is tried again: at once where its URL's circuit is open and another URL may be tried."""
        now = self._now()
        first = row.first_attempt_time or now
        step = next_step(
            runtime.policies.retry,
            attempt_number=row.attempts,
            age_s=max(0.0, (now - first).total_seconds()),
            outcome=result.attempt.outcome,
            status_code=result.attempt.status_code,
            retry_after_s=held_s,
            draw=self._random.random(),
        )
        standing = self._board.admissions.get(runtime.key)
        if isinstance(step, Retry) and standing is not None and runtime.fallbacks:
            url = self._url(runtime, result.attempt.url_index)
            if standing.admission.has_another_url(self._clock(), url):
                return Retry(0.0)
        return step

    def proxy_failed(self, key: EndpointKey) -> float:
        """The egress proxy failed an attempt: no more than a wait, in seconds, follows from it for the endpoint."""
        standing = self._board.admissions.get(key)
        return 0.0 if standing is None else standing.admission.proxy_failed(self._clock(), self._random.random())

    def exhausted(self, runtime: EndpointRuntime, row: OutboxRow, epoch: int) -> None:
        """A delivery has no further attempt; where others wait for it that counts against its endpoint."""
        standing = self._board.admissions.get(runtime.key)
        if standing is None or runtime.settings.ordering_mode is OrderingMode.UNORDERED:
            return
        standing.health.exhausted()
        self._check(runtime, row, epoch, None, 0)

    def halted(self, key: EndpointKey) -> None:
        """Subscribers have been told of a halt: the next success is told as well."""
        standing = self._board.admissions.get(key)
        if standing is not None and standing.health.trouble is None:
            standing.health.trouble = Trouble.HALTED

    def _check(
        self, runtime: EndpointRuntime, row: OutboxRow, epoch: int, status_code: int | None, url_index: int
    ) -> None:
        standing = self._board.admissions.get(runtime.key)
        if standing is None or standing.admission.is_shut:
            return
        reason = standing.health.reason_to_disable(runtime.policies.disable, self._now())
        # A fallback that is gone is only one that fails.
        if status_code == GONE and url_index == 0:
            reason = DisableReason.GONE
        if reason is not None:
            self._disable(Disabling(runtime.key, epoch, runtime.revision, reason, row.type, status_code))

    @staticmethod
    def _url(runtime: EndpointRuntime, url_index: int) -> str:
        urls = runtime.policies.admission.urls
        if not url_index:
            return urls[0]
        return urls[url_index] if url_index < len(urls) else urls[0]
