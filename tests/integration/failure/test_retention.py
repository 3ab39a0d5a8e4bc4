"""What is undelivered at the end of the retention is dead-lettered first, audibly; that releases no halt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from webhooks.v1 import endpoint_pb2, policy_pb2

from dispatcher.model import Outcome
from dispatcher.store import partitions, upkeep
from dispatcher.store.database import Database
from dispatcher.store.upkeep import UpkeepSettings
from tests.integration.test_measures import page_of
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

DAYS = 40
TABLES = ("event", "outbox")


async def age_everything(service: Service) -> None:
    """Move all that is published, and the cursors, 40 days back: as if the clock had moved on.

    In one transaction, for the service's own upkeep drops an old day that is empty.
    """
    day = (datetime.now(UTC) - timedelta(days=DAYS)).date()
    async with service.database.transaction() as connection:
        for table in (*TABLES, "attempt"):
            partition = partitions.Partition(table, day)
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {partition.name} PARTITION OF {table} FOR VALUES {partition.values_sql}"
            )
        for table in TABLES:
            await connection.execute(f"UPDATE {table} SET time = time - interval '{DAYS} days'")
        await connection.execute(f"UPDATE outbox SET event_time = event_time - interval '{DAYS} days'")
        await connection.execute(f"UPDATE attempt SET time = time - interval '{DAYS} days'")
        await connection.execute(f"UPDATE cursor SET time = time - interval '{DAYS} days'")
        await connection.execute(f"UPDATE halt SET event_time = event_time - interval '{DAYS} days'")
        await connection.execute(
            f"UPDATE parked SET time = time - interval '{DAYS} days', event_time = event_time - interval '{DAYS} days'"
        )


async def rounds_until_dropped(service: Service) -> None:
    """Upkeep asks the owner to dead-letter, then drops the day."""

    async def is_dropped() -> bool:
        report = await upkeep.run_round(service.database, UpkeepSettings())
        return any(name.startswith("outbox") for name in report.dropped)

    await until(is_dropped, 20)


async def test_an_undelivered_row_becomes_a_dead_letter_before_its_day_is_dropped(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        async with running_service(database.dsn) as service:
            await service.tenant()
            await service.endpoint("a", receiver.url("a"))
            await service.endpoint("ops", receiver.url("ops"), event_types=("dispatcher.delivery.dead_lettered",))
            await service.endpoints.PauseEndpoint(endpoint_pb2.PauseEndpointRequest(name=NAME.format("a")))
            await service.publish("old-1", "old-2", data=b"payload")
        async with running_service(database.dsn) as service:
            await service.node.stop()
        async with running_service(database.dsn) as service:
            await age_everything(service)
            await service.node.crash()
        async with running_service(database.dsn) as service:
            await rounds_until_dropped(service)
            letters = await service.database.fetch(
                "SELECT d.seq, x.kind, x.reason, p.data FROM dead_letter d"
                " JOIN decision x USING (tenant_id, endpoint_id, seq)"
                " JOIN dead_letter_payload p ON p.event_id = d.event_id ORDER BY d.seq"
            )
            assert [tuple(row) for row in letters] == [
                (1, 3, "EXPIRED", b"payload"),
                (2, 3, "EXPIRED", b"payload"),
            ]
            await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 2)
            assert 'dispatcher_deliveries_total{dispatcher_delivery_outcome="dead_lettered"} 2.0' in page_of(service)
            await service.endpoints.ResumeEndpoint(endpoint_pb2.ResumeEndpointRequest(name=NAME.format("a")))
            await service.publish("new")
            await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
    assert [(r.event_id, r.sequence) for r in receiver.of("a")] == [("new", 3)]


@pytest.mark.parametrize("cursor_seq", [0, 40])
async def test_a_parked_delivery_becomes_one_dead_letter_before_its_day_is_dropped(
    database: TestDatabase, cursor_seq: int
) -> None:
    """With what its last attempt came to. The cursor has passed over it, or was lost on the way."""
    async with Receiver() as receiver:
        receiver.on("a", lambda request: Answer(500 if request.event_id == "e-0" else 204))
        async with running_service(database.dsn, lane_rows_max="16") as service:
            await service.tenant()
            await service.endpoint(
                "a",
                receiver.url("a"),
                ordering_mode=endpoint_pb2.ORDERING_MODE_UNORDERED,
                retry_policy={"schedule": {"waits": [{"seconds": 3600}]}},
            )
            await service.publish(*[f"e-{i}" for i in range(40)], data=b"payload")

            async def is_passed_over() -> bool:
                return bool(await service.database.fetchval("SELECT seq FROM cursor") == 40)

            await until(is_passed_over, 20)
            await service.until_attempts("a", 1, 1)
            await age_everything(service)
            await service.node.crash()
        async with Database.open(database.options) as db:
            await db.execute("UPDATE cursor SET seq = $1", cursor_seq)
        async with running_service(database.dsn) as service:
            await rounds_until_dropped(service)
            letters = await service.database.fetch(
                "SELECT d.seq, x.reason, d.attempts, d.last_outcome, d.last_status_code, p.data FROM dead_letter d"
                " JOIN decision x USING (tenant_id, endpoint_id, seq)"
                " JOIN dead_letter_payload p ON p.event_id = d.event_id"
            )
            assert await service.database.fetchval("SELECT count(*) FROM parked") == 0
            assert await service.database.fetchval("SELECT count(*) FROM decision") == 1
    assert [tuple(row) for row in letters] == [(1, "EXPIRED", 1, Outcome.HTTP_ERROR, 500, b"payload")]
    assert len(receiver.of("a")) == 40


async def test_an_owner_whose_position_was_left_behind_by_a_drop_finds_the_new_one(database: TestDatabase) -> None:
    """What expired is gone with its day. The stored cursor stands behind it, the one in memory does not."""
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish("first")
        await receiver.wait_for(1)

        async def is_idle() -> bool:
            return not service.node.core.engine.board.lanes

        await until(is_idle, 10)
        await service.database.execute("DELETE FROM outbox")
        await service.database.execute("UPDATE cursor SET seq = 3")
        await service.publish("after")
        await receiver.wait_for(2)
    assert [(r.event_id, r.sequence) for r in receiver.of("a")] == [("first", 1), ("after", 4)]


async def test_an_expired_halt_still_holds_what_is_behind_it(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        receiver.on("a", lambda request: Answer(500 if request.event_id == "poison" else 204))
        async with running_service(database.dsn) as service:
            await service.tenant()
            await service.endpoint(
                "a",
                receiver.url("a"),
                exhaustion_policy=policy_pb2.EXHAUSTION_POLICY_HALT,
                retry_policy={"max_attempts": 1},
            )
            await service.publish("poison")

            async def is_halted() -> bool:
                return (await service.status("a")).halt_count == 1

            await until(is_halted, 10)
            await age_everything(service)
            await service.node.crash()
        async with running_service(database.dsn) as service:
            await service.publish("behind")
            await rounds_until_dropped(service)
            reasons = await service.database.fetch("SELECT reason FROM decision")
            assert [row["reason"] for row in reasons] == ["EXPIRED"]
            assert (await service.status("a")).halt_count == 1
            assert len(receiver.of("a")) == 1
            await service.node.crash()
        async with running_service(database.dsn) as service:
            await service.endpoint("b", receiver.url("b"))
            await service.publish("later")
            await receiver.wait_for(lambda: len(receiver.accepted("b")) == 1)
            assert [r.event_id for r in receiver.of("a")] == ["poison"]
            lifted = await service.skip("a", 1, "INC-5")
            assert lifted.decision.reason == "EXPIRED"
            await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
    assert [r.event_id for r in receiver.of("a")] == ["poison", "behind", "later"]
