"""Receivers and the network to them: what arrives is on record, whatever becomes of the answer."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest
from tests.support.checker import Receipt
from tests.support.sim.loop import Process, SimLoop


@dataclass(slots=True)
class Habits:
    """How one receiver behaves. `fails` and `loses` are shares of requests; `poison` are events that it never takes."""

    fails: float = 0.0
    loses: float = 0.0
    hangs: float = 0.0
    latency_s: float = 0.01
    is_away: bool = False
    poison: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    """Events answered with 410."""


@dataclass(slots=True)
class Receivers:
    """All receivers. `log` is in the order of arrival."""

    loop: SimLoop
    chance: random.Random
    habits: dict[str, Habits] = field(default_factory=lambda: defaultdict(Habits))
    log: list[Receipt] = field(default_factory=list)

    def arrive(self, endpoint: str, request: WebhookRequest, sender: str) -> tuple[Receipt | None, Exchange | None]:
        """What a request that gets there is answered; None where no answer ever comes, or nothing arrives."""
        habits = self.habits[endpoint]
        if habits.is_away:
            return None, Exchange(ExchangeKind.CONNECTION_FAILED, 0.0, error="refused")
        receipt = Receipt(
            endpoint=endpoint,
            sequence=int(request.headers["webhook-sequence"]),
            event_id=request.headers["webhook-id"],
            ordering_key=request.headers.get("webhook-ordering-key"),
            body=request.body,
            at=self.loop.time(),
            sender=sender,
        )
        self.log.append(receipt)
        return receipt, self._answer(habits, receipt)

    def _answer(self, habits: Habits, receipt: Receipt) -> Exchange | None:
        draw = self.chance.random()
        if receipt.event_id in habits.poison or draw < habits.fails:
            receipt.status = 410 if receipt.event_id in habits.gone else 500
        elif draw < habits.fails + habits.hangs:
            return None
        else:
            receipt.status = 200
        receipt.answered_at = self.loop.time()
        if self.chance.random() < habits.loses:
            return Exchange(ExchangeKind.CONNECTION_FAILED, 0.0, error="reset after it was processed")
        return Exchange(ExchangeKind.RESPONSE, 0.0, status_code=receipt.status)


class SimClient:
    """The HTTP client of one process."""

    def __init__(self, receivers: Receivers, process: Process, on_start: Callable[[str, int], None]) -> None:
        """`on_start` is told of each request, endpoint and sequence, before it leaves."""
        self._receivers = receivers
        self._process = process
        self._on_start = on_start

    async def post(self, request: WebhookRequest) -> Exchange:
        receivers, loop = self._receivers, self._receivers.loop
        endpoint = request.url.host.partition(".")[0]
        answer: asyncio.Future[Exchange] = loop.create_future()
        self._on_start(endpoint, int(request.headers["webhook-sequence"]))
        latency_s = receivers.habits[endpoint].latency_s

        def arrive() -> None:
            _, exchange = receivers.arrive(endpoint, request, self._process.name)
            if exchange is not None:
                loop.at(receivers.chance.expovariate(1 / latency_s), lambda: _tell(answer, exchange))

        loop.at(receivers.chance.expovariate(1 / latency_s), arrive)
        began = loop.time()
        try:
            async with asyncio.timeout(request.timeout_s):
                found = await answer
        except TimeoutError:
            return Exchange(ExchangeKind.TIMEOUT, loop.time() - began, error="timed out")
        return Exchange(found.kind, loop.time() - began, found.status_code, error=found.error)


def _tell(answer: asyncio.Future[Exchange], exchange: Exchange) -> None:
    if not answer.done():
        answer.set_result(exchange)
