"""Replays append, never rewind; killed in the middle they repeat nothing that they have appended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from webhooks.v1 import endpoint_pb2, replay_pb2

from dispatcher.store import replays
from tests.support.api import refused
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

# A backfill waits for the longest publish to be over: short here.
QUICK = {"statement_timeout_s": "1", "lock_timeout_s": "1", "look_back_slack_s": "1", "replay_interval_s": "0.05"}


def ago(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(datetime.now(UTC) - timedelta(seconds=seconds))
    return time


def create(service: Service, name: str = "r", endpoint: str = "a", *, dry_run: bool = False, **fields: Any) -> Any:
    fields.setdefault("replay_events", replay_pb2.ReplayEvents(start_time=ago(3600)))
    replay = replay_pb2.Replay(endpoint=NAME.format(endpoint), **fields)
    return service.replays.CreateReplay(
        replay_pb2.CreateReplayRequest(parent="tenants/acme", replay_id=name, replay=replay, dry_run=dry_run)
    )


async def succeeded(service: Service, name: str = "r", timeout_s: float = 20.0) -> replay_pb2.Replay:
    async def is_done() -> bool:
        return (await service.replay(name)).state == replay_pb2.Replay.STATE_SUCCEEDED

    await until(is_done, timeout_s)
    return await service.replay(name)


async def test_a_replay_sends_again_what_was_delivered_marked_and_with_its_ids(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.endpoint("ops", receiver.url("ops"), event_types=("dispatcher.replay.completed",))
        await service.publish("one", "two")
        await service.publish("three", type="other")
        await receiver.wait_for(3)
        await service.until_attempts("a", 3)
        source = replay_pb2.ReplayEvents(start_time=ago(3600), event_types=["order.*"])
        counted = await create(service, dry_run=True, replay_events=source)
        assert (counted.matched_count, counted.name) == (2, "")
        assert await service.database.fetchval("SELECT count(*) FROM replay") == 0
        await create(service, replay_events=source)
        assert (await refused(create(service, replay_events=source))).reason == "REPLAY_EXISTS"
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 5)
        done = await succeeded(service)
        assert (done.matched_count, done.appended_count) == (2, 2)
        await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 1)
        second = await create(service, "again", replay_events=source)
        assert second.matched_count == 2  # what a replay made is not replayed
    again = receiver.of("a")[3:5]
    assert [(r.event_id, r.sequence, r.headers["webhook-replay"]) for r in again] == [
        ("one", 4, "true"),
        ("two", 5, "true"),
    ]


async def test_only_dead_lettered_ones_may_be_asked_for(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), retry_policy={"max_attempts": 1})
        receiver.on("a", Answer(204), Answer(500), Answer(204))
        await service.publish("one", "two", "three")
        await receiver.wait_for(3)
        await service.until_attempts("a", 3)
        selection = replay_pb2.ReplayEvents.SELECTION_DEAD_LETTERED
        await create(service, replay_events=replay_pb2.ReplayEvents(start_time=ago(60), selection=selection))
        await succeeded(service)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 3)
    assert receiver.of("a")[-1].event_id == "two"


async def test_killed_in_the_middle_it_goes_on_without_repeating(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        async with running_service(database.dsn, **QUICK) as service:
            await service.tenant()
            await service.endpoint("a", receiver.url("a"))
            for start in range(0, 300, 100):
                await service.publish(*[f"e-{i}" for i in range(start, start + 100)])
            await receiver.wait_for(300)
            await service.until_attempts("a", 300)
            await create(service, max_per_second=100)

            async def is_under_way() -> bool:
                return (await service.replay("r")).appended_count > 20

            await until(is_under_way, 10)
            await service.node.crash()
        async with running_service(database.dsn, **QUICK) as service:
            await service.publish("live")
            done = await succeeded(service)
            assert done.appended_count == 300
            await receiver.wait_for(lambda: len({r.sequence for r in receiver.accepted("a")}) == 601)
            rows = await service.database.fetch("SELECT event_id FROM outbox WHERE replay_of IS NOT NULL ORDER BY seq")
            sequences = await service.database.fetch("SELECT seq FROM outbox ORDER BY seq")
    assert [row["event_id"] for row in rows] == [f"e-{i}" for i in range(300)]
    assert [row["seq"] for row in sequences] == list(range(1, 602))


async def test_live_events_do_not_queue_behind_a_replay(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK, replay_ahead_rows_max="20") as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish(*[f"e-{i}" for i in range(200)])
        await receiver.wait_for(200)
        await service.until_attempts("a", 200)
        receiver.on("a", lambda _request: Answer(204, delay_s=0.005))
        await create(service, max_per_second=10_000)
        await receiver.wait_for(210)
        await service.publish("live")
        sent = len(receiver.of("a"))
        await receiver.wait_for(lambda: any(r.event_id == "live" for r in receiver.accepted("a")))
        place = next(i for i, r in enumerate(receiver.of("a")) if r.event_id == "live")
        assert place - sent <= 25
        await succeeded(service)


async def test_replays_that_wait_starve_no_others(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "RUNNING_MAX", 1)
    async with Receiver() as receiver, running_service(database.dsn, **QUICK, replay_ahead_rows_max="10") as service:
        await service.tenant()
        for name in ("held", "a"):
            await service.endpoint(name, receiver.url(name))
        await service.publish(*[f"e-{i}" for i in range(30)])
        for name in ("held", "a"):
            await receiver.wait_for(lambda name=name: len(receiver.accepted(name)) == 30)
            await service.until_attempts(name, 30)
        pause = endpoint_pb2.PauseEndpointRequest(name=NAME.format("held"))
        await service.endpoints.PauseEndpoint(pause)
        await create(service, "first", "held", max_per_second=10_000)

        async def waits() -> bool:
            return (await service.replay("first")).appended_count == 10

        await until(waits, 10)
        await create(service, "second", "a", max_per_second=10_000)
        assert (await succeeded(service, "second")).appended_count == 30
        assert (await service.replay("first")).state == replay_pb2.Replay.STATE_RUNNING


async def test_a_cancelled_replay_appends_nothing_more(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish(*[f"e-{i}" for i in range(50)])
        await receiver.wait_for(50)
        await service.until_attempts("a", 50)
        await create(service, max_per_second=5)
        await receiver.wait_for(51)
        cancelled = await service.replays.CancelReplay(replay_pb2.CancelReplayRequest(name="tenants/acme/replays/r"))
        assert cancelled.state == replay_pb2.Replay.STATE_CANCELLED
        assert 0 < cancelled.appended_count < 50
        count = await service.database.fetchval("SELECT count(*) FROM outbox WHERE replay_of IS NOT NULL")
        assert count == cancelled.appended_count
        listed = await service.replays.ListReplays(
            replay_pb2.ListReplaysRequest(parent="tenants/acme", filter="state = CANCELLED")
        )
        assert [replay.name for replay in listed.replays] == ["tenants/acme/replays/r"]


async def test_a_backfill_and_the_live_subscription_give_every_event_once(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK) as service:
        await service.tenant()
        await service.endpoint("old", receiver.url("old"), event_types=("nothing",))
        stop = asyncio.Event()
        published: list[str] = []

        async def keep_publishing() -> None:
            while not stop.is_set():
                ids = [f"e-{len(published) + i}" for i in range(5)]
                await service.publish(*ids)
                published.extend(ids)
                await asyncio.sleep(0)

        publishing = asyncio.create_task(keep_publishing())
        while len(published) < 100:
            await asyncio.sleep(0.01)
        await service.endpoint("a", receiver.url("a"))
        backfill = replay_pb2.BackfillEndpoint(start_time=ago(3600))
        started = await create(service, backfill_endpoint=backfill, replay_events=None, max_per_second=10_000)
        assert started.matched_count >= 100
        while len(published) < started.matched_count + 100:
            await asyncio.sleep(0.01)
        stop.set()
        await publishing
        await succeeded(service, timeout_s=40)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) >= len(published), timeout_s=40)
    received = [r.event_id for r in receiver.accepted("a")]
    assert sorted(received) == sorted(published)
    backfilled = [r.event_id for r in receiver.accepted("a") if r.headers.get("webhook-replay") == "true"]
    assert backfilled == sorted(backfilled, key=lambda event_id: int(event_id[2:]))


async def test_what_is_wrong_with_a_request_is_named(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        source = replay_pb2.ReplayEvents(start_time=ago(0), end_time=ago(60), event_types=["*.*"])
        problem = await refused(create(service, replay_events=source, max_per_second=1e6))
    assert problem.fields == [
        "replay.replay_events.end_time",
        "replay.replay_events.event_types[0]",
        "replay.max_per_second",
    ]
