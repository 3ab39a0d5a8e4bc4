"""Endpoints that change, stop or go while their events are on the way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.model import EndpointState
from dispatcher.store import endpoint_deletion, endpoints
from tests.support.node import Node, running_node
from tests.support.postgres import TestDatabase
from tests.support.publishing import make_tenant, new_event
from tests.support.receiver import Answer, Hang, Receiver
from tests.support.waiting import until


async def test_a_deleted_endpoint_that_hangs_keeps_no_other_from_its_change(database: TestDatabase) -> None:
    released = asyncio.Event()
    async with Receiver() as receiver, running_node(database.dsn) as node:
        db = node.core.database
        await make_tenant(db)
        for name in ("hangs", "moved"):
            await node.endpoint(name, receiver.url(name), event_types=(name,))
        receiver.on("hangs", Hang(released))
        receiver.on("moved", lambda _request: Answer(500))
        await node.publish(new_event(type="hangs"), new_event(type="moved"))
        await receiver.wait_for(lambda: bool(receiver.of("hangs") and receiver.of("moved")))
        await endpoint_deletion.delete(db, "acme", "hangs", actor="test", force=True)
        await asyncio.sleep(0.5)  # several polls: the command is met while the attempt hangs
        await endpoints.update(
            db, "acme", "moved", lambda e: replace(e, settings=replace(e.settings, url=receiver.url("new")))
        )
        await receiver.wait_for(lambda: len(receiver.accepted("new")) == 1, timeout_s=3)
        released.set()
        await until(lambda: db.fetchval("SELECT bool_and(done_time IS NOT NULL) FROM command"))


async def test_a_paused_endpoint_gets_nothing_and_goes_on_where_it_stopped(database: TestDatabase) -> None:
    async def set_state(state: EndpointState) -> None:
        await endpoints.update(node.core.database, "acme", "a", lambda e: replace(e, state=state))

    async with Receiver() as receiver, running_node(database.dsn) as node:
        await make_tenant(node.core.database)
        await node.endpoint("a", receiver.url("a"))
        await node.publish(new_event("1"))
        await receiver.wait_for(1)
        await set_state(EndpointState.PAUSED)
        await until(lambda: _noticed(node))
        await node.publish(new_event("2"), new_event("3"))
        await until(lambda: _is_paused(node))
        await asyncio.sleep(0.2)  # nothing is to be seen
        assert len(receiver.of("a")) == 1
        await set_state(EndpointState.ACTIVE)
        await receiver.wait_for(3)
    assert [r.event_id for r in receiver.of("a")] == ["1", "2", "3"]


async def test_a_command_of_a_newer_release_is_left_to_it(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_node(database.dsn) as node:
        db = node.core.database
        await make_tenant(db)
        endpoint = await node.endpoint("a", receiver.url("a"))
        await db.execute(
            "INSERT INTO command VALUES ($1, gen_random_uuid(), $2, $3, 'OF_THE_FUTURE', '{}', 'test', now())",
            endpoint.key.tenant_id,
            endpoint.key.endpoint_id,
            endpoint.key.partition,
        )
        await until(lambda: _owned(node), 5)
        await asyncio.sleep(0.5)  # several polls
        await node.publish(new_event())
        await receiver.wait_for(1)
        assert not node.task.done()


async def _owned(node: Node) -> bool:
    return len(node.core.engine.board.epochs) == 256


async def _noticed(node: Node) -> bool:
    """The lane is gone, and no configuration from before the pause is left: forgotten, or read anew."""
    board = node.core.engine.board
    return not board.lanes and all(known.state is EndpointState.PAUSED for known in board.runtimes.values())


async def _is_paused(node: Node) -> bool:
    return any(lane.paused for lane in node.core.engine.board.lanes.values())


async def test_a_long_backlog_is_skipped_over_several_polls(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One deleted endpoint's millions keep no other's change or command waiting; each poll goes on from the cursor."""
    monkeypatch.setattr("dispatcher.delivery.commands.SKIP_ROWS_MAX", 2)
    monkeypatch.setattr("dispatcher.delivery.commands.SKIP_STEPS_MAX", 2)
    async with Receiver() as receiver, running_node(database.dsn, command_poll_interval_s="60") as node:
        db = node.core.database
        await make_tenant(db)
        receiver.default = Answer(500)
        endpoint = await node.endpoint("a", receiver.url("a"))
        await until(lambda: _owned(node), 5)
        await node.publish(*[new_event() for _ in range(11)])
        await endpoint_deletion.delete(db, "acme", "a", actor="ann", force=True)
        node.core.engine.board.retire(endpoint.key)
        await node.core.engine.sending.quiesced(lambda _key: True)
        polls = []
        while not await db.fetchval("SELECT bool_and(done_time IS NOT NULL) FROM command"):
            await node.core.engine.watch.poll()
            polls.append(await db.fetchval("SELECT seq FROM cursor"))
            assert len(polls) <= 3
        skipped = await db.fetch("SELECT seq, reason, actor FROM decision ORDER BY seq")
    assert polls == [4, 8, 11]
    assert [tuple(row) for row in skipped] == [(seq, "ENDPOINT_DELETED", "ann") for seq in range(1, 12)]
