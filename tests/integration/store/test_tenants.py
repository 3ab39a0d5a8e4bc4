"""Tenants and their event types in PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.errors import (
    AlreadyExistsError,
    EtagMismatchError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)
from dispatcher.model import EventType, Tenant
from dispatcher.store import endpoint_deletion, event_types, routes, tenants
from dispatcher.store.database import Database
from dispatcher.store.event_types import NewEventType
from dispatcher.store.paging import PageRequest
from tests.support.configured import make_endpoint, make_tenant, routing_version, some_etag


def renamed(display_name: str):
    return lambda tenant: replace(tenant, display_name=display_name)


def requiring(tenant: Tenant) -> Tenant:
    return replace(tenant, require_registered_event_types=True)


def archived(event_type: EventType) -> EventType:
    return replace(event_type, archived=True)


async def test_a_tenant_is_read_as_it_was_created(db: Database) -> None:
    created = await make_tenant(db, labels={"stage": "prod"})
    assert await tenants.get(db, "acme") == created
    assert created.labels == {"stage": "prod"}


async def test_a_taken_name_is_refused(db: Database) -> None:
    await make_tenant(db)
    with pytest.raises(AlreadyExistsError) as refused:
        await make_tenant(db)
    assert refused.value.reason == "TENANT_EXISTS"


async def test_one_of_many_simultaneous_creations_wins(db: Database) -> None:
    outcomes = await asyncio.gather(*(make_tenant(db) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(outcome, Tenant) for outcome in outcomes) == 1
    assert all(isinstance(outcome, Tenant | AlreadyExistsError) for outcome in outcomes)


async def test_validate_only_checks_everything_and_writes_nothing(db: Database) -> None:
    checked = await tenants.create(db, tenants.NewTenant("acme", "", {}, False), validate_only=True)
    assert checked.name == "acme"
    with pytest.raises(NotFoundError):
        await tenants.get(db, "acme")
    made = await make_tenant(db)
    with pytest.raises(AlreadyExistsError):
        await tenants.create(db, tenants.NewTenant("acme", "", {}, False), validate_only=True)
    assert (await tenants.update(db, "acme", renamed("x"), validate_only=True)).display_name == "x"
    await tenants.delete(db, "acme", validate_only=True)
    assert await tenants.get(db, "acme") == made


async def test_an_update_changes_the_etag_but_routing_only_where_it_matters(db: Database) -> None:
    before = await make_tenant(db)
    after = await tenants.update(db, "acme", renamed("New"), etag=str(before.etag))
    assert (after.display_name, after.routing_version) == ("New", before.routing_version)
    assert after.etag != before.etag
    assert after.update_time > before.update_time
    required = await tenants.update(db, "acme", requiring)
    assert required.routing_version != before.routing_version
    assert await tenants.update(db, "acme", requiring) == required, "no change, nothing written"


async def test_of_two_updates_with_one_etag_one_wins(db: Database) -> None:
    etag = str((await make_tenant(db)).etag)
    outcomes = await asyncio.gather(
        *(tenants.update(db, "acme", renamed(f"n{n}"), etag=etag) for n in range(5)), return_exceptions=True
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, Tenant)]
    assert len(winners) == 1
    assert all(isinstance(outcome, Tenant | EtagMismatchError) for outcome in outcomes)
    assert await tenants.get(db, "acme") == winners[0]


async def test_updates_without_etag_lose_none_of_each_other(db: Database) -> None:
    await make_tenant(db)

    def add(n: int):
        return lambda tenant: replace(tenant, labels={**tenant.labels, f"l{n}": "x"})

    await asyncio.gather(*(tenants.update(db, "acme", add(n)) for n in range(8)))
    assert len((await tenants.get(db, "acme")).labels) == 8


async def test_a_tenant_with_endpoints_stays(db: Database) -> None:
    await make_tenant(db)
    await make_endpoint(db)
    with pytest.raises(PreconditionError) as refused:
        await tenants.delete(db, "acme")
    assert refused.value.reason == "TENANT_NOT_EMPTY"


async def test_a_deleted_name_starts_afresh_under_a_new_uid(db: Database) -> None:
    old = await make_tenant(db)
    await event_types.create(db, "acme", NewEventType("order.paid", "", {}))
    with pytest.raises(EtagMismatchError):
        await tenants.delete(db, "acme", etag=some_etag())
    await tenants.delete(db, "acme", etag=str(old.etag))
    with pytest.raises(NotFoundError):
        await tenants.get(db, "acme")
    with pytest.raises(NotFoundError):
        await tenants.delete(db, "acme")
    new = await make_tenant(db)
    assert new.tenant_id != old.tenant_id
    assert (await event_types.list_page(db, "acme", PageRequest())).items == ()


async def test_deleting_a_tenant_while_an_endpoint_is_created_leaves_no_orphan(db: Database) -> None:
    for n in range(5):
        name = f"t{n}"
        await make_tenant(db, name)
        created, deleted = await asyncio.gather(
            make_endpoint(db, tenant=name), tenants.delete(db, name), return_exceptions=True
        )
        assert isinstance(created, NotFoundError) != isinstance(deleted, PreconditionError)


async def test_tenants_are_listed_by_name_in_pages(db: Database) -> None:
    for n in range(7):
        await make_tenant(db, f"t{n}", labels={"odd": str(n % 2)})
    first = await tenants.list_page(db, PageRequest(3))
    second = await tenants.list_page(db, PageRequest(3, first.next_token))
    third = await tenants.list_page(db, PageRequest(3, second.next_token))
    assert [t.name for p in (first, second, third) for t in p.items] == [f"t{n}" for n in range(7)]
    assert third.next_token == ""
    odd = await tenants.list_page(db, PageRequest(2, filter='labels.odd = "1"'))
    assert [t.name for t in odd.items] == ["t1", "t3"]
    with pytest.raises(InvalidRequestError):
        await tenants.list_page(db, PageRequest(2, odd.next_token, 'labels.odd = "0"'))
    with pytest.raises(InvalidRequestError):
        await tenants.list_page(db, PageRequest(2, filter="name = t1"))
    nothing = await tenants.list_page(db, PageRequest(filter="labels.odd = 7"))
    assert (nothing.items, nothing.next_token) == ((), "")


async def test_event_types_live_through_create_update_and_delete(db: Database) -> None:
    await make_tenant(db)
    created = await event_types.create(db, "acme", NewEventType("order.paid", "paid", {"team": "a"}))
    assert await event_types.get(db, "acme", "order.paid") == created
    with pytest.raises(AlreadyExistsError):
        await event_types.create(db, "acme", NewEventType("order.paid", "", {}))
    with pytest.raises(EtagMismatchError):
        await event_types.update(db, "acme", "order.paid", archived, etag=some_etag())
    updated = await event_types.update(db, "acme", "order.paid", archived, etag=str(created.etag))
    assert updated.archived
    assert await event_types.get(db, "acme", "order.paid") == updated
    await event_types.create(db, "acme", NewEventType("order.sent", "", {}))
    listed = await event_types.list_page(db, "acme", PageRequest(filter="archived = true AND labels.team = a"))
    assert listed.items == (updated,)
    page = await event_types.list_page(db, "acme", PageRequest(1))
    rest = await event_types.list_page(db, "acme", PageRequest(1, page.next_token))
    assert [e.name for e in page.items + rest.items] == ["order.paid", "order.sent"]
    await event_types.delete(db, "acme", "order.paid")
    for call in (event_types.get, event_types.delete):
        with pytest.raises(NotFoundError):
            await call(db, "acme", "order.paid")
    with pytest.raises(NotFoundError):
        await event_types.create(db, "nobody", NewEventType("a", "", {}))


async def test_a_routing_version_is_never_one_that_was_before(db: Database) -> None:
    """A counter would repeat: after a failover that lost a change, or for a tenant made anew under its name."""
    versions = []
    for _ in range(3):
        await make_tenant(db)
        versions.append(await routing_version(db))
        endpoint = await make_endpoint(db)
        versions.append(await routing_version(db))
        await endpoint_deletion.delete(db, "acme", endpoint.name, actor="test", force=True)
        versions.append(await routing_version(db))
        await db.execute("DELETE FROM endpoint")
        await tenants.delete(db, "acme")
    assert len(set(versions)) == 9
    assert {version.version for version in versions} == {4}, "random ones"


async def test_the_catalogue_changes_routing_only_where_registration_is_required(db: Database) -> None:
    await make_tenant(db)
    before = await routing_version(db)
    await event_types.create(db, "acme", NewEventType("a", "", {}))
    assert await routing_version(db) == before
    await tenants.update(db, "acme", requiring)
    versions = [await routing_version(db)]
    for change in (
        event_types.create(db, "acme", NewEventType("b", "", {})),
        event_types.update(db, "acme", "a", archived),
        event_types.delete(db, "acme", "b"),
    ):
        await change
        versions.append(await routing_version(db))
    assert len(set(versions)) == 4
    await event_types.update(db, "acme", "a", lambda e: replace(e, description="x"))
    assert await routing_version(db) == versions[-1]
    known = await routes.load(db, "acme")
    assert known is not None
    assert known.registered_event_types == frozenset()
