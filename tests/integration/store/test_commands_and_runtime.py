"""Commands, endpoint settings for delivery, instances, and hints by LISTEN."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from dispatcher.model import Command, CommandKind, EndpointKey, EndpointState, FleetLoad, Instance
from dispatcher.store import commands, instances, leases, listen, runtime
from dispatcher.store.database import Database
from tests.support.backlog import SETTINGS, add_endpoint, add_rows, add_tenant


def command_for(key: EndpointKey) -> Command:
    return Command(uuid.uuid4(), key, CommandKind.SKIP_BACKLOG, {"to_seq": 9}, "ann")


async def test_a_command_is_open_until_the_owner_finishes_it(db: Database, connection: asyncpg.Connection) -> None:
    key = await add_endpoint(connection, await add_tenant(connection), 7)
    command = command_for(key)
    async with db.transaction() as transaction:
        await commands.append(transaction, command)
    (found,) = await commands.open_commands(db, [6, 7])
    assert (found.command_id, found.key, found.kind, found.arguments) == (
        command.command_id,
        key,
        CommandKind.SKIP_BACKLOG,
        {"to_seq": 9},
    )
    assert await commands.open_commands(db, [6]) == []
    (lease,) = await leases.acquire(db, uuid.uuid4(), 1, 60.0, [7])
    assert not await commands.finish(db, lease.epoch - 1, found, {"skipped": 1})
    assert await commands.wait_result(db, key.tenant_id, command.command_id, 0.0) is None
    waiting = asyncio.create_task(commands.wait_result(db, key.tenant_id, command.command_id, 10.0))
    assert await commands.finish(db, lease.epoch, found, {"skipped": 9})
    assert await waiting == {"skipped": 9}
    assert await commands.open_commands(db, [7]) == []


async def test_settings_come_by_revision_from_the_lowest_row_that_is_left(
    db: Database, connection: asyncpg.Connection
) -> None:
    tenant_id = await add_tenant(connection, "acme")
    now = await connection.fetchval("SELECT now()")
    key = await add_endpoint(connection, tenant_id, 7, cursor_seq=1, cursor_time=now, state="PAUSED")
    for revision in (2, 3, 4):
        await connection.execute(
            "INSERT INTO endpoint_revision VALUES ($1, $2, $3, $4, now())",
            tenant_id,
            key.endpoint_id,
            revision,
            SETTINGS | {"timeout_s": float(revision)},
        )
    await connection.execute("UPDATE endpoint SET revision = 4, settings = $1", SETTINGS | {"timeout_s": 4.0})
    for seq, revision in ((1, 1), (2, 2), (3, 4)):
        await add_rows(connection, key, 1, first_seq=seq, time=now, revision=revision)
    for name, expires in (("old", now - timedelta(seconds=1)), ("retiring", now + timedelta(hours=1)), ("good", None)):
        await connection.execute(
            "INSERT INTO signing_key VALUES ($1, $2, $3, $4, now(), $5)",
            tenant_id,
            key.endpoint_id,
            name,
            b"s",
            expires,
        )
    (row,) = await runtime.load_runtime(db, [key, EndpointKey(tenant_id, uuid.uuid4())])
    assert (row.tenant_name, row.state, row.revision, row.delete_time) == ("acme", EndpointState.PAUSED, 4, None)
    assert {number: settings.timeout_s for number, settings in row.revisions.items()} == {2: 2.0, 3: 3.0, 4: 4.0}
    assert {key.key_id for key in row.signing_keys} == {"retiring", "good"}
    assert all(key.sealed == b"s" for key in row.signing_keys)


async def test_changed_endpoints_are_found_by_partition_and_time(db: Database, connection: asyncpg.Connection) -> None:
    tenant_id = await add_tenant(connection)
    old, _elsewhere = await add_endpoint(connection, tenant_id, 7), await add_endpoint(connection, tenant_id, 9)
    start = (await runtime.changes_since(db, [7], datetime.now(UTC))).start
    new = await add_endpoint(connection, tenant_id, 8)
    assert (await runtime.changes_since(db, [7, 8], start)).endpoints.keys() == {new}
    long_ago = start - timedelta(hours=1)
    assert (await runtime.changes_since(db, [7, 8], long_ago)).endpoints.keys() == {old, new}


async def test_a_changed_tenant_is_found_without_its_endpoints(db: Database, connection: asyncpg.Connection) -> None:
    tenant_id, other = await add_tenant(connection), await add_tenant(connection, "other")
    await add_endpoint(connection, tenant_id, 7)
    await connection.execute("UPDATE tenant SET update_time = now() - interval '1 hour'")
    await connection.execute("UPDATE endpoint SET update_time = now() - interval '1 hour'")
    start = (await runtime.changes_since(db, [7], datetime.now(UTC))).start
    await connection.execute("UPDATE tenant SET update_time = clock_timestamp() WHERE tenant_id = $1", tenant_id)
    changes = await runtime.changes_since(db, [7], start)
    assert (changes.tenants.keys(), changes.endpoints) == ({tenant_id}, {})
    assert (await runtime.changes_since(db, [7], start - timedelta(hours=2))).tenants.keys() == {tenant_id, other}


def instance_of(**changes: object) -> Instance:
    now = datetime.now(UTC)
    fields = {"draining": False, "in_flight": 3, "delivered_total": 10} | changes
    return Instance(uuid.uuid4(), "10.0.0.1:50051", "0.1.0", now, now, partitions=0, **fields)


async def test_an_instance_lives_as_long_as_its_heart_beats(db: Database, connection: asyncpg.Connection) -> None:
    here, silent = instance_of(), instance_of(draining=True)
    for instance in (here, silent, here):
        await instances.heartbeat(db, instance)
    await connection.execute(
        "UPDATE instance SET heartbeat_time = now() - interval '1 minute' WHERE instance_id = $1", silent.instance_id
    )
    await leases.acquire(db, here.instance_id, 5, 60.0)
    (alive,) = await instances.live(db, 30.0)
    assert (alive.instance_id, alive.partitions, alive.in_flight, alive.draining) == (here.instance_id, 5, 3, False)
    assert len(await instances.read_all(db)) == 2
    await instances.remove_dead(db, 30.0)
    await instances.remove(db, here.instance_id)
    assert await instances.read_all(db) == []


async def test_the_load_of_a_fleet_counts_no_host_that_drains_but_what_it_still_has_to_do(db: Database) -> None:
    """A scaler reckons with those that stay."""
    stays = instance_of(due_backlog=100, due_age_s=0.5)
    leaves = replace(instance_of(draining=True, due_backlog=200, due_age_s=2.5), address="10.0.0.2:50051")
    for instance in (stays, leaves):
        await instances.heartbeat(db, instance)
    assert await instances.fleet_load(db, 30.0) == FleetLoad(1, 300, 2.5)


class Heard:
    """What a listener told, to be waited for."""

    def __init__(self) -> None:
        self.payloads: asyncio.Queue[str] = asyncio.Queue()
        self.connections: asyncio.Queue[None] = asyncio.Queue()


@asynccontextmanager
async def listening(db: Database, channel: str) -> AsyncIterator[Heard]:
    heard = Heard()
    listener = listen.Listener(
        db,
        channel,
        on_payload=heard.payloads.put_nowait,
        on_connected=lambda: heard.connections.put_nowait(None),
        retry_s=0.05,
    )
    task = asyncio.create_task(listener.run())
    try:
        await asyncio.wait_for(heard.connections.get(), 5.0)
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_hints_arrive_and_a_cut_connection_is_reported_when_it_is_back(
    db: Database, connection: asyncpg.Connection
) -> None:
    channel = listen.channel_of(uuid.uuid4())
    key = EndpointKey(uuid.uuid4(), uuid.uuid4())
    async with listening(db, channel) as heard:
        (payload,) = listen.encode_hints([(key, 12)])
        await listen.notify(db, channel, payload)
        assert listen.decode_hints(await asyncio.wait_for(heard.payloads.get(), 5.0)) == [(key, 12)]
        await connection.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE query LIKE 'LISTEN%' AND datname = current_database()"""
        )
        await asyncio.wait_for(heard.connections.get(), 5.0)
        await listen.notify(db, channel, payload)
        assert await asyncio.wait_for(heard.payloads.get(), 5.0) == payload


async def test_a_payload_over_the_limit_is_refused_before_it_is_sent(db: Database) -> None:
    with pytest.raises(ValueError, match="7999"):
        await listen.notify(db, "x", "é" * 4000)
    await listen.notify(db, "x", "a" * 7999)


async def test_an_endpoint_with_settings_of_a_newer_release_is_left_out_and_its_neighbour_is_not(
    db: Database, connection: asyncpg.Connection
) -> None:
    tenant_id = await add_tenant(connection)
    newer, known = await add_endpoint(connection, tenant_id, 7), await add_endpoint(connection, tenant_id, 8)
    # A target of another kind than HTTP has no URL.
    for table in ("endpoint", "endpoint_revision"):
        pull = f"UPDATE {table} SET settings = settings - 'url' WHERE endpoint_id = $1"
        await connection.execute(pull, newer.endpoint_id)
    assert [row.key for row in await runtime.load_runtime(db, [newer, known])] == [known]
