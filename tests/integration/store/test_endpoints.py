"""Endpoints and their signing keys in PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from dispatcher.errors import AlreadyExistsError, EtagMismatchError, NotFoundError, PreconditionError
from dispatcher.model import CommandKind, Endpoint, EndpointState, Outcome
from dispatcher.store import endpoint_deletion, endpoints, key_rotation, signing_keys
from dispatcher.store.changes import change
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest
from dispatcher.store.signing_keys import NewSigningKey
from tests.support.configured import (
    SETTINGS,
    attempted,
    make_endpoint,
    make_tenant,
    new_endpoint,
    new_event,
    publish_events,
    routing_version,
    some_etag,
)
from tests.support.waiting import until_blocked

DAY = timedelta(days=1)


def with_timeout(timeout_s: float):
    return lambda endpoint: replace(endpoint, settings=replace(endpoint.settings, timeout_s=timeout_s))


async def delete(db: Database, name: str = "billing", **how: object) -> endpoint_deletion.Deletion:
    return await endpoint_deletion.delete(db, "acme", name, actor="tester", **how)  # type: ignore[arg-type]


async def test_creation_makes_everything_an_endpoint_needs(db: Database) -> None:
    await make_tenant(db)
    before = await routing_version(db)
    created = await make_endpoint(db, labels={"a": "b"}, event_types=("order.*", "x"))
    assert await endpoints.get(db, "acme", "billing") == created
    assert (created.settings, created.revision, created.event_types) == (SETTINGS, 1, ("order.*", "x"))
    key = created.key
    assert await db.fetchval("SELECT partition FROM endpoint WHERE endpoint_id = $1", key.endpoint_id) == key.partition
    cursor = await db.fetchrow("SELECT seq, time FROM cursor WHERE endpoint_id = $1", key.endpoint_id)
    assert cursor["seq"] == 0
    assert cursor["time"] >= created.create_time
    assert await db.fetchval("SELECT count(*) FROM endpoint_revision WHERE endpoint_id = $1", key.endpoint_id) == 1
    assert [k.key_id for k in await signing_keys.list_live(db, key)] == ["k1"]
    assert await routing_version(db) != before


async def test_validate_only_leaves_nothing(db: Database) -> None:
    await make_tenant(db)
    before = await routing_version(db)
    await endpoints.create(db, "acme", new_endpoint("billing"), [], validate_only=True)
    for table in ("endpoint", "endpoint_revision", "cursor", "signing_key"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert await routing_version(db) == before
    made = await make_endpoint(db)
    assert (await endpoints.update(db, "acme", "billing", with_timeout(1), validate_only=True)).revision == 2
    await delete(db, validate_only=True)
    assert await endpoints.get(db, "acme", "billing") == made


async def test_a_name_is_never_free_again(db: Database) -> None:
    await make_tenant(db)
    await make_endpoint(db)
    with pytest.raises(AlreadyExistsError) as taken:
        await make_endpoint(db)
    await delete(db)
    with pytest.raises(AlreadyExistsError) as buried:
        await make_endpoint(db)
    assert [taken.value.reason, buried.value.reason] == ["ENDPOINT_EXISTS", "ENDPOINT_ID_TOMBSTONED"]


async def test_an_unknown_tenant_is_named(db: Database) -> None:
    with pytest.raises(NotFoundError) as refused:
        await make_endpoint(db, tenant="nobody")
    assert refused.value.resource_name == "tenants/nobody"


async def test_changed_settings_make_a_revision_and_keep_the_old_one(db: Database) -> None:
    await make_tenant(db)
    before = await make_endpoint(db)
    await db.execute("""UPDATE endpoint SET settings = settings || '{"newer": 1}'""")
    version = await routing_version(db)
    after = await endpoints.update(db, "acme", "billing", with_timeout(2.5), etag=str(before.etag))
    assert (after.revision, after.settings.timeout_s) == (2, 2.5)
    assert after.etag != before.etag
    stored = await db.fetch("SELECT settings FROM endpoint_revision ORDER BY revision")
    assert [row["settings"]["timeout_s"] for row in stored] == [15.0, 2.5]
    assert stored[1]["settings"]["newer"] == 1, "what a newer release stored survives"
    assert await routing_version(db) == version, "publish() reads the revision from the locked row"


async def test_state_changes_neither_revision_nor_routing_but_event_types_do_routing(db: Database) -> None:
    await make_tenant(db)
    await make_endpoint(db)
    version = await routing_version(db)
    paused = await endpoints.update(
        db, "acme", "billing", lambda e: replace(e, state=EndpointState.PAUSED, state_reason="holiday")
    )
    assert (paused.state, paused.state_reason, paused.revision) == (EndpointState.PAUSED, "holiday", 1)
    assert await routing_version(db) == version
    narrowed = await endpoints.update(db, "acme", "billing", lambda e: replace(e, event_types=("a",)))
    assert narrowed.event_types == ("a",)
    assert await routing_version(db) != version
    assert await endpoints.update(db, "acme", "billing", lambda e: e) == narrowed, "no change, nothing written"


async def test_of_two_updates_with_one_etag_one_wins(db: Database) -> None:
    await make_tenant(db)
    etag = str((await make_endpoint(db)).etag)
    outcomes = await asyncio.gather(
        *(endpoints.update(db, "acme", "billing", with_timeout(n + 1), etag=etag) for n in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Endpoint) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, EtagMismatchError) for outcome in outcomes) == 4
    assert await db.fetchval("SELECT count(*) FROM endpoint_revision") == 2


async def test_endpoints_are_listed_by_name_without_tombstones(db: Database) -> None:
    await make_tenant(db)
    for n in range(5):
        state = EndpointState.PAUSED if n % 2 else EndpointState.ACTIVE
        await make_endpoint(db, f"e{n}", state=state, labels={"n": str(n)})
    await delete(db, "e2")
    first = await endpoints.list_page(db, "acme", PageRequest(2))
    rest = await endpoints.list_page(db, "acme", PageRequest(2, first.next_token))
    assert [e.name for e in first.items + rest.items] == ["e0", "e1", "e3", "e4"]
    assert rest.next_token == ""
    paused = await endpoints.list_page(db, "acme", PageRequest(filter="state = PAUSED AND labels.n = 3"))
    assert [e.name for e in paused.items] == ["e3"]
    with pytest.raises(NotFoundError):
        await endpoints.get(db, "acme", "e2")
    assert (await endpoints.get(db, "acme", "e2", deleted_too=True)).delete_time is not None


async def test_an_endpoint_with_a_backlog_goes_only_by_force(db: Database) -> None:
    await make_tenant(db)
    key = (await make_endpoint(db)).key
    await publish_events(db, [new_event("e1"), new_event("e2")])
    await attempted(db, key, 1, "e1", Outcome.SUCCEEDED)
    with pytest.raises(PreconditionError) as refused:
        await delete(db)
    assert refused.value.reason == "ENDPOINT_HAS_BACKLOG"
    before = await routing_version(db)
    deletion = await delete(db, force=True)
    assert deletion == endpoint_deletion.Deletion(key, 2)
    command = await db.fetchrow("SELECT * FROM command")
    assert (command["endpoint_id"], command["partition"]) == (key.endpoint_id, key.partition)
    assert (command["kind"], command["actor"]) == (CommandKind.SKIP_BACKLOG, "tester")
    assert command["arguments"] == {"reason": "ENDPOINT_DELETED", "through_seq": 2}
    assert await db.fetchval("SELECT count(*) FROM signing_key") == 0
    assert await routing_version(db) != before


async def test_an_endpoint_whose_rows_are_settled_goes_without_force(db: Database) -> None:
    await make_tenant(db)
    key = (await make_endpoint(db)).key
    await publish_events(db, [new_event("e1"), new_event("e2"), new_event("e3")])
    await attempted(db, key, 1, "e1", Outcome.SUCCEEDED)
    await attempted(db, key, 2, "e2", Outcome.HTTP_ERROR)
    await attempted(db, key, 2, "e2", Outcome.SUCCEEDED, number=2)
    await db.execute(
        "INSERT INTO decision SELECT $1, $2, 3, 2, 'e3', 'X', 'y', clock_timestamp()", key.tenant_id, key.endpoint_id
    )
    with pytest.raises(EtagMismatchError):
        await delete(db, etag=some_etag())
    assert (await delete(db)).skip_through is None
    assert await db.fetchval("SELECT count(*) FROM command") == 0


async def test_a_success_of_another_event_settles_nothing(db: Database) -> None:
    """After a failover a sequence may be given out again: an acknowledgement counts only for its event id."""
    await make_tenant(db)
    key = (await make_endpoint(db)).key
    await publish_events(db, [new_event("e1")])
    await attempted(db, key, 1, "lost", Outcome.SUCCEEDED)
    with pytest.raises(PreconditionError):
        await delete(db)


async def test_a_deletion_sees_what_was_published_while_it_waited(db: Database) -> None:
    """The backlog is looked at after the wait for the lock; a row committed meanwhile must count."""
    await make_tenant(db)
    key = (await make_endpoint(db)).key
    publisher = await db.connect()
    try:
        transaction = publisher.transaction()
        await transaction.start()
        await publisher.execute("SELECT FROM endpoint WHERE endpoint_id = $1 FOR NO KEY UPDATE", key.endpoint_id)
        deletion = asyncio.create_task(delete(db))
        await until_blocked(db)
        await publisher.execute(
            """INSERT INTO outbox (tenant_id, endpoint_id, seq, time, event_id, event_time, type, revision, data_bytes)
               SELECT $1, $2, 1, t, 'e1', t, 'a', 1, 0 FROM clock_timestamp() t""",
            key.tenant_id,
            key.endpoint_id,
        )
        await transaction.commit()
        with pytest.raises(PreconditionError):
            await deletion
    finally:
        await publisher.close()


async def test_a_frozen_change_does_not_hold_publishers_for_long(db: Database) -> None:
    """The server ends a change that stands still between two statements, and with it its locks."""
    async with change(db) as connection:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "2s"
    async with db.acquire() as connection:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "10s"


async def test_a_rotation_keeps_the_old_key_for_the_overlap(db: Database) -> None:
    await make_tenant(db)
    before = await make_endpoint(db)
    rotation = await key_rotation.rotate(
        db, "acme", "billing", NewSigningKey("k2", b"s2"), overlap=DAY, etag=str(before.etag)
    )
    assert [k.key_id for k in rotation.live] == ["k2", "k1"]
    assert rotation.key.expire_time is None
    old = rotation.live[1]
    assert old.expire_time is not None
    assert timedelta(hours=23) < old.expire_time - rotation.key.create_time <= DAY
    with pytest.raises(EtagMismatchError):
        await key_rotation.rotate(db, "acme", "billing", NewSigningKey("k3", b"s3"), overlap=DAY, etag=str(before.etag))
    assert rotation.endpoint.update_time > before.update_time, "its owner must read it anew"
    assert await signing_keys.list_live_of(db, [before.key]) == {before.key: rotation.live}


async def test_without_overlap_the_old_key_stops_at_once(db: Database) -> None:
    await make_tenant(db)
    await make_endpoint(db)
    rotation = await key_rotation.rotate(db, "acme", "billing", NewSigningKey("k2", b"s2"), overlap=timedelta())
    assert [k.key_id for k in rotation.live] == ["k2"]
    assert await db.fetchval("SELECT count(*) FROM signing_key") == 1


async def test_live_keys_are_bounded(db: Database) -> None:
    await make_tenant(db)
    await make_endpoint(db)
    for n in range(2, key_rotation.LIVE_KEYS_MAX + 1):
        await key_rotation.rotate(db, "acme", "billing", NewSigningKey(f"k{n}", b"s"), overlap=DAY)
    with pytest.raises(PreconditionError) as refused:
        await key_rotation.rotate(db, "acme", "billing", NewSigningKey("k9", b"s"), overlap=DAY)
    assert refused.value.reason == "TOO_MANY_SIGNING_KEYS"
    key = (await endpoints.get(db, "acme", "billing")).key
    assert len(await signing_keys.list_live(db, key)) == key_rotation.LIVE_KEYS_MAX, "nothing was changed"


async def test_sealed_secrets_stay_out_of_reprs() -> None:
    assert "hush" not in repr(NewSigningKey("k", b"hush"))
