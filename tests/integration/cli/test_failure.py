"""The operator's commands against a whole service and a receiver that misbehaves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.cli import CliResult, run_cli
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

BILLING = NAME.format("billing")


async def run(service: Service, *arguments: str) -> CliResult:
    return await asyncio.to_thread(run_cli, *arguments, "--target", f"127.0.0.1:{service.port}")


async def made(service: Service, *arguments: str) -> Any:
    """Run a command that must succeed; its JSON."""
    result = await run(service, *arguments, "--json")
    assert result.code == 0, result.err
    return result.json


async def until_status(service: Service, field: str) -> Any:
    async def is_told() -> bool:
        return field in await made(service, "endpoints", "status", BILLING)

    await until(is_told, 15)
    return (await made(service, "endpoints", "status", BILLING))[field]


async def test_from_a_halt_to_the_resume(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("billing", receiver.url("billing"))
        said = ["--then", "halt", "--max-attempts", "1", "--no-circuit", "--no-auto-disable", "--rate-limit", "500"]
        endpoint = await made(service, "endpoints", "on-failure", "billing", "-t", "acme", *said)
        assert endpoint["deliverySettings"]["exhaustionPolicy"] == "EXHAUSTION_POLICY_HALT"
        is_down = True
        receiver.on("billing", lambda _request: Answer(500 if is_down else 204))
        await service.publish("one", "two", "three")
        assert (await until_status(service, "halt"))["sequence"] == "1"
        shown = await run(service, "endpoints", "status", BILLING)
        for expected in ("halt.delivery", "halt.waiting_count", "halt.last_attempt.status_code"):
            assert expected in shown.out
        skipped = await made(service, "deliveries", "skip", f"{BILLING}/deliveries/1", "--reason", "INC-1")
        assert (skipped["state"], skipped["decision"]["reason"]) == ("STATE_SKIPPED", "INC-1")
        await until_status(service, "halt")
        paused = await made(service, "endpoints", "pause", BILLING, "--reason", "INC-1")
        assert (paused["state"], paused["stateReason"]) == ("STATE_PAUSED", "INC-1")
        is_down = False
        await made(service, "deliveries", "retry", f"{BILLING}/deliveries/2")
        await made(service, "endpoints", "resume", BILLING, "--rate", "50")
        await receiver.wait_for(lambda: len(receiver.accepted("billing")) == 2)
        unbound = await made(service, "endpoints", "on-failure", BILLING, "--rate-limit", "0")
        assert "rateLimit" not in unbound["deliverySettings"]
        again = await run(service, "deliveries", "skip", f"{BILLING}/deliveries/1", "--reason", "x")
        assert again.code == 5
        assert "DELIVERY_SETTLED" in again.err
    assert [r.event_id for r in receiver.accepted("billing")] == ["two", "three"]


async def test_dead_letters_and_replays(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("billing", receiver.url("billing"))
        said = ["--max-attempts", "1", "--no-circuit", "--no-auto-disable", "--final-status", "422"]
        await made(service, "endpoints", "on-failure", BILLING, *said)
        is_down = True
        receiver.on("billing", lambda _request: Answer(500 if is_down else 204))
        await service.publish("one", "two", "three")

        async def letters() -> list[Any]:
            found = await made(
                service, "dead-letters", "list", "-t", "acme", "-e", "billing", "--filter", "state = OPEN"
            )
            return found["deadLetters"]

        async def all_are_there() -> bool:
            return len(await letters()) == 3

        await until(all_are_there, 15)
        is_down = False
        name = f"{BILLING}/deadLetters/{{}}"
        assert (await made(service, "dead-letters", "get", name.format(1)))["dataText"] == "{}"
        discarded = await made(service, "dead-letters", "discard", name.format(1), "--reason", "INC-2")
        assert discarded["state"] == "STATE_DISCARDED"
        redriven = await made(service, "dead-letters", "redrive", name.format(2))
        assert redriven["delivery"]["replay"] is True
        started = await made(service, "dead-letters", "redrive", "-t", "acme", "-e", "billing", "--replay-id", "r-1")
        assert started["matchedCount"] == "1"
        await receiver.wait_for(lambda: len(receiver.accepted("billing")) == 2)

        since = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        what = ["billing", "-t", "acme", "--since", since, "-e", "order.*", "--status", "dead-lettered"]
        assert (await made(service, "replays", "create", *what, "--dry-run"))["matchedCount"] == "3"
        await made(service, "replays", "create", *what, "--replay-id", "r-2", "--rate", "100")
        await receiver.wait_for(lambda: len(receiver.accepted("billing")) == 5)
        listed = await made(service, "replays", "list", "-t", "acme")
        assert [replay["name"].rpartition("/")[2] for replay in listed["replays"]] == ["r-1", "r-2"]
        assert (await made(service, "replays", "cancel", "r-2", "-t", "acme"))["appendedCount"] == "3"
        assert (await made(service, "replays", "get", "r-2", "-t", "acme"))["state"] == "STATE_SUCCEEDED"
        backfill = await made(service, "replays", "backfill", BILLING, "--since", since, "--dry-run")
        assert "matchedCount" not in backfill  # it has had everything


async def test_a_tenant_is_paused_bounded_and_given_defaults(database: TestDatabase) -> None:
    async with running_service(database.dsn) as service:
        await service.tenant()
        tenant = await made(service, "tenants", "on-failure", "acme", "--schedule", "5s,5m,30m", "--max-age", "1d")
        policy = tenant["defaultRetryPolicy"]
        assert (policy["schedule"]["waits"], policy["maxAge"]) == (["5s", "300s", "1800s"], "86400s")
        assert "defaultRetryPolicy" not in await made(service, "tenants", "on-failure", "acme", "--clear-retries")
        bounded = await made(service, "tenants", "quota", "acme", "--events", "100")
        assert bounded["publishQuota"] == {"eventsPerSecond": 100.0}
        assert "publishQuota" not in await made(service, "tenants", "quota", "acme", "--events", "0")
        assert (await made(service, "tenants", "pause", "acme", "--reason", "INC-3"))["state"] == "STATE_PAUSED"
        assert (await made(service, "tenants", "resume", "acme", "--rate", "10"))["state"] == "STATE_ACTIVE"


async def test_a_disabled_endpoint_is_enabled(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("billing", receiver.url("billing"))
        receiver.on("billing", Answer(410))
        await service.publish("one")
        assert await until_status(service, "endpointState") is not None

        async def is_disabled() -> bool:
            return (await made(service, "endpoints", "get", BILLING))["state"] == "STATE_DISABLED"

        await until(is_disabled, 15)
        assert (await run(service, "endpoints", "resume", BILLING)).code == 5
        await made(service, "endpoints", "enable", BILLING, "--rate", "10")
        await receiver.wait_for(lambda: len(receiver.accepted("billing")) == 1)
