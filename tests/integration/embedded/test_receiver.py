"""The demo receiver over real HTTP, with signatures made by another library than the one it verifies with."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from svix.webhooks import Webhook as SvixWebhook

from dispatcher.embedded.ledger import OrderLedger
from dispatcher.embedded.receiver import DemoReceiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY = '{"total": "12.50", "name": "Zoë"}'


def signed(event_id: str, *, secret: str = SECRET, at: datetime | None = None, attempt: int = 1) -> dict[str, str]:
    at = at or datetime.now(UTC)
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": SvixWebhook(secret).sign(event_id, at, BODY),
        "webhook-attempt": str(attempt),
    }


@pytest.fixture
def ledger() -> OrderLedger:
    return OrderLedger()


@pytest.fixture
async def receiver(ledger: OrderLedger) -> AsyncIterator[DemoReceiver]:
    async with DemoReceiver(ledger, failure_share=0.0) as running:
        running.register("shop", SECRET)
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def post(client: aiohttp.ClientSession, url: str, headers: dict[str, str], body: str = BODY) -> int:
    async with client.post(url, data=body.encode(), headers=headers) as answer:
        return answer.status


async def test_a_verified_webhook_is_accepted_and_written_down(
    receiver: DemoReceiver, ledger: OrderLedger, client: aiohttp.ClientSession
) -> None:
    ledger.acknowledged("e-1", ["shop"], sent_s=0.0)
    assert await post(client, receiver.url("shop"), signed("e-1")) == 204
    assert ledger.totals().is_clean
    assert await post(client, receiver.url("shop"), signed("e-1", attempt=2)) == 204
    assert (ledger.totals().duplicates, ledger.totals().retried) == (1, 1)


async def test_what_does_not_verify_gets_no_2xx_and_no_place_in_the_order(
    receiver: DemoReceiver, ledger: OrderLedger, client: aiohttp.ClientSession
) -> None:
    good = signed("e-1")
    bad = [
        signed("e-1", secret=OTHER_SECRET),
        signed("e-1", at=datetime.now(UTC) - timedelta(minutes=6)),
        good | {"webhook-id": "e-2"},
        good | {"webhook-signature": "v1"},
        good | {"webhook-signature": "v1,###"},
        good | {"webhook-timestamp": "soon"},
        {name: value for name, value in good.items() if name != "webhook-signature"},
    ]
    assert [await post(client, receiver.url("shop"), headers) for headers in bad] == [401] * len(bad)
    assert await post(client, receiver.url("shop"), good, body=BODY + " ") == 401
    assert (ledger.totals().unverified, ledger.totals().deliveries) == (len(bad) + 1, 0)
    assert await post(client, receiver.url("shop"), good) == 204


async def test_an_unknown_endpoint_is_not_found(receiver: DemoReceiver, client: aiohttp.ClientSession) -> None:
    assert await post(client, receiver.url("other"), signed("e-1")) == 404


async def test_a_new_secret_replaces_the_old_one(
    receiver: DemoReceiver, ledger: OrderLedger, client: aiohttp.ClientSession
) -> None:
    ledger.acknowledged("e-1", ["shop"], sent_s=0.0)
    receiver.register("shop", OTHER_SECRET)
    assert await post(client, receiver.url("shop"), signed("e-1")) == 401
    assert await post(client, receiver.url("shop"), signed("e-1", secret=OTHER_SECRET)) == 204
    assert ledger.totals().delivered == 1


async def test_the_configured_share_of_requests_fails_and_a_retry_gets_through(
    ledger: OrderLedger, client: aiohttp.ClientSession
) -> None:
    answers = []
    async with DemoReceiver(ledger, failure_share=0.3, chance=random.Random(7)) as receiver:
        receiver.register("shop", SECRET)
        for number in range(200):
            ledger.acknowledged(f"e-{number}", ["shop"], sent_s=0.0)
            attempt = 1
            while (status := await post(client, receiver.url("shop"), signed(f"e-{number}", attempt=attempt))) == 500:
                answers.append(status)
                attempt += 1
            answers.append(status)
    assert set(answers) == {204, 500}
    assert 0.2 < answers.count(500) / len(answers) < 0.4
    assert ledger.totals().is_clean
    assert ledger.totals().retried == answers.count(500)


async def test_a_taken_port_is_an_error(receiver: DemoReceiver, ledger: OrderLedger) -> None:
    with pytest.raises(OSError, match="in use"):
        await DemoReceiver(ledger, port=receiver.port).__aenter__()
