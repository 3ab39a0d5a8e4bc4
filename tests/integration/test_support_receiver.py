"""The test receiver itself: a tool that lies would make every other test worthless."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import aiohttp
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.receiver import Answer, Behaviour, Garbage, Hang, Receiver, Request, Reset

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def post(receiver: Receiver, endpoint: str, event_id: str = "e", body: bytes = b"{}") -> int | str:
    """The status, or what the client saw instead."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(receiver.url(endpoint), data=body, headers={"Webhook-Id": event_id}) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientConnectorError:
            return "refused"
        except aiohttp.ServerDisconnectedError:
            return "closed"
        except aiohttp.ClientOSError:
            return "reset"
        except aiohttp.ClientResponseError:
            return "garbage"


async def test_it_keeps_every_request_in_order_of_arrival(receiver: Receiver) -> None:
    for number in range(3):
        assert await post(receiver, "a", f"e-{number}", b"x" * number) == 204
    assert await post(receiver, "b") == 204
    assert [(r.number, r.endpoint, r.event_id, r.body) for r in receiver.of("a")] == [
        (1, "a", "e-0", b""),
        (2, "a", "e-1", b"x"),
        (3, "a", "e-2", b"xx"),
    ]
    assert [request.number for request in receiver.requests] == [1, 2, 3, 4]
    assert receiver.requests == sorted(receiver.requests, key=lambda request: request.at_s)


async def test_scripted_behaviours_are_used_up_one_by_one(receiver: Receiver) -> None:
    receiver.on("a", Answer(500), Answer(503, headers={"retry-after": "1"}), Reset(), Garbage())
    assert [await post(receiver, "a", "e") for _ in range(5)] == [500, 503, "reset", "garbage", 204]
    assert [request.status for request in receiver.of("a")] == [500, 503, None, None, 204]
    assert len(receiver.accepted("a")) == 1
    assert receiver.first_receipts("a") == ["e"]


async def test_a_function_decides_per_request(receiver: Receiver) -> None:
    def decide(request: Request) -> Behaviour:
        return Answer(200 if request.event_id == "good" else 418)

    receiver.on("a", decide)
    assert [await post(receiver, "a", event) for event in ("good", "bad", "good")] == [200, 418, 200]
    assert await post(receiver, "b", "bad") == 204


async def test_a_hanging_request_is_on_record_and_answered_once_released(receiver: Receiver) -> None:
    released = asyncio.Event()
    receiver.on("a", Hang(released, Answer(201)))
    pending = asyncio.create_task(post(receiver, "a"))
    await receiver.wait_for(lambda: len(receiver.of("a")) == 1)
    assert (receiver.in_flight["a"], receiver.of("a")[0].status) == (1, None)
    assert await post(receiver, "b") == 204
    released.set()
    assert await pending == 201
    await receiver.wait_for(2)
    assert (receiver.in_flight["a"], receiver.in_flight_max["a"]) == (0, 1)


async def test_waiting_in_vain_fails_and_says_what_came(receiver: Receiver) -> None:
    await post(receiver, "a")
    with pytest.raises(AssertionError, match=r"\('a', 204\): 1"):
        await receiver.wait_for(2, timeout_s=0.05)


async def test_it_breaks_connections_when_stopped_and_returns_on_the_same_port(receiver: Receiver) -> None:
    receiver.on("a", Hang(asyncio.Event()))
    pending = asyncio.create_task(post(receiver, "a"))
    await receiver.wait_for(lambda: len(receiver.requests) == 1)
    before = receiver.url("a")
    await receiver.stop()
    assert await pending == "closed"
    assert await post(receiver, "a") == "refused"
    async with receiver:
        assert receiver.url("a") == before
        assert await post(receiver, "a") == 204


async def test_chunked_bodies_and_kept_connections_are_understood(receiver: Receiver) -> None:
    async def chunks():
        yield b"hello "
        yield b"world"

    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(receiver.url("a"), data=chunks()) as answer:
                assert answer.status == 204
    assert [request.body for request in receiver.requests] == [b"hello world"] * 2
    assert [request.connection for request in receiver.requests] == [1, 1]


async def test_a_signature_is_verified_by_the_third_partys_library(receiver: Receiver) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    signature = Webhook(SECRET).sign("e-1", now, "{}")
    headers = {"webhook-id": "e-1", "webhook-timestamp": f"{now.timestamp():.0f}", "webhook-signature": signature}
    request = Request(1, 0.0, 1, "POST", "/hooks/a", headers, b"{}")
    request.verify(SECRET)
    request.body = b"{ }"
    with pytest.raises(WebhookVerificationError):
        request.verify(SECRET)
