"""Rows that nobody told the owner of are found all the same."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.model import PARTITION_COUNT
from dispatcher.store import backlog
from dispatcher.store.backlog import EndpointPosition, load_partition
from dispatcher.store.database import Database
from tests.support.node import Node, running_node
from tests.support.postgres import TestDatabase
from tests.support.publishing import make_tenant, new_event
from tests.support.receiver import Receiver
from tests.support.waiting import until


async def test_a_row_committed_during_a_takeover_is_found_at_once(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = False

    async def probe_then_publish(db: Database, partition: int) -> list[EndpointPosition]:
        nonlocal published
        positions = await load_partition(db, partition)
        if positions and not published:
            published = True
            await node.publish(new_event("between"))
        return positions

    async with Receiver() as receiver:
        async with running_node(database.dsn) as node:
            await make_tenant(node.core.database)
            await node.endpoint("a", receiver.url("a"))
        monkeypatch.setattr("dispatcher.delivery.ownership.backlog.load_partition", probe_then_publish)
        async with running_node(database.dsn, sweep_interval_s="300") as node:
            await receiver.wait_for(1, timeout_s=10)
    assert [r.event_id for r in receiver.of("a")] == ["between"]


async def test_a_row_of_which_only_the_former_owner_was_told_is_found_soon_after_the_takeover(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever publishes knows of the new owner only from its next look at the fleet on."""
    sweep = backlog.sweep
    published = False

    async def sweep_then_publish(*arguments: Any) -> Any:
        nonlocal published
        swept = await sweep(*arguments)
        if not published and await _owns_all(node):
            published = True
            await until(lambda: _listens(node))
            watch = node.core.engine.watch
            watch._sweep_now.clear()  # what the takeover, and the listener that has connected, ask for is done
            await node.publish(new_event("astray"))
        return swept

    monkeypatch.setattr("dispatcher.delivery.watch.backlog.sweep", sweep_then_publish)
    monkeypatch.setattr("dispatcher.delivery.engine.Engine.owns", lambda _engine, _key: False)
    monkeypatch.setattr("dispatcher.delivery.engine.Engine.hint", lambda _engine, _highest: None)
    async with Receiver() as receiver:
        async with running_node(database.dsn) as node:
            await make_tenant(node.core.database)
            await node.endpoint("a", receiver.url("a"))
            published = True
        published = False
        async with running_node(database.dsn, sweep_interval_s="300") as node:
            await receiver.wait_for(1, timeout_s=10)
    assert [r.event_id for r in receiver.of("a")] == ["astray"]


async def test_a_sweep_in_between_does_not_stand_in_for_the_second_one(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that connects again asks for one, too, and it may be too early to see what went astray."""
    sweep, sweeps = backlog.sweep, []

    async def counted(*arguments: Any) -> Any:
        if await _owns_all(node):
            sweeps.append(arguments)
        return await sweep(*arguments)

    monkeypatch.setattr("dispatcher.delivery.watch.backlog.sweep", counted)
    async with running_node(database.dsn, sweep_interval_s="300") as node:
        await until(lambda: _listens(node))
        await until(lambda: _any(sweeps))
        watch, met = node.core.engine.watch, len(sweeps)
        watch.sweep_soon()
        await until(lambda: _any(sweeps[met:]))
        watch._sweep_now.clear()
        await until(lambda: _any(sweeps[met + 1 :]), 10)


async def test_a_row_whose_commit_took_longer_than_the_look_back_is_found_by_the_probe(database: TestDatabase) -> None:
    """The commit waited for a standby for an hour, and the client that could have told of it was gone."""
    async with Receiver() as receiver, running_node(database.dsn, sweep_interval_s="300") as node:
        db = node.core.database
        await make_tenant(db)
        await until(lambda: _owns_all(node))
        endpoint = await node.endpoint("a", receiver.url("a"))
        await db.execute("UPDATE cursor SET time = time - interval '2 hours'")
        time = endpoint.create_time - timedelta(hours=1)
        await db.execute(
            "INSERT INTO event (tenant_id, event_id, time, type, content_type, data)"
            " VALUES ($1, 'late', $2, 'a', 'text/plain', 'x')",
            endpoint.key.tenant_id,
            time,
        )
        await db.execute(
            "INSERT INTO outbox (tenant_id, endpoint_id, seq, time, event_id, event_time, type, revision, data_bytes)"
            " VALUES ($1, $2, 1, $3, 'late', $3, 'a', 1, 1)",
            endpoint.key.tenant_id,
            endpoint.key.endpoint_id,
            time,
        )
        for _ in range(PARTITION_COUNT):
            await node.core.engine.watch.probe()
        await receiver.wait_for(1, timeout_s=5)
    assert [r.event_id for r in receiver.of("a")] == ["late"]


async def test_the_look_back_covers_what_the_server_lets_a_statement_take(database: TestDatabase) -> None:
    async with running_node(database.dsn, statement_timeout_s="90") as node:
        assert node.core.engine._settings.look_back_s > 90


async def _listens(node: Node) -> bool:
    """Whether its channel is listened to; a connection's last statement is what it is known by."""
    asked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = current_database())"
    return bool(await node.core.database.fetchval(asked))


async def _owns_all(node: Node) -> bool:
    return len(node.core.engine.board.epochs) == PARTITION_COUNT


async def _any(found: list[Any]) -> bool:
    return bool(found)
