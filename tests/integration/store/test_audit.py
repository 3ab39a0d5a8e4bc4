"""The audit table: append-only, read newest first by pages, kept for a time of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from dispatcher.errors import InvalidRequestError
from dispatcher.store import audit, partitions
from dispatcher.store.audit import AuditCall, AuditTable
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest
from dispatcher.store.partitions import Partition
from dispatcher.store.upkeep import UpkeepSettings, run_round


def call(tenant: str = "acme", principal: str = "alice", method: str = "webhooks.v1.EndpointService/X") -> AuditCall:
    return AuditCall(uuid7(), tenant, principal, "tokens", method, f"tenants/{tenant}", "ipv4:127.0.0.1:1", "r", "")


async def test_a_call_is_read_back_as_it_was_newest_first(db: Database) -> None:
    trail, first, second = AuditTable(db), call(), call("other")
    await trail.begun(first)
    await trail.begun(second)
    await trail.ended(first, "OK")
    page = await audit.list_page(db, PageRequest())
    assert [(each.phase, each.call, each.status) for each in page.items] == [
        ("ENDED", first, "OK"),
        ("BEGUN", second, ""),
        ("BEGUN", first, ""),
    ]
    assert page.next_token == ""


async def test_pages_follow_each_other_without_gap_or_repetition(db: Database) -> None:
    trail, calls = AuditTable(db), [call(principal=f"p{n}") for n in range(7)]
    for each in calls:
        await trail.begun(each)
    found, token = [], ""
    while True:
        page = await audit.list_page(db, PageRequest(2, token))
        found += [each.call for each in page.items]
        token = page.next_token
        if not token:
            break
    assert found == calls[::-1]
    with pytest.raises(InvalidRequestError):
        await audit.list_page(db, PageRequest(2, "x"))


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ("", 3),
        ('tenant = "acme"', 2),
        ('principal = "bob"', 1),
        ('tenant = "acme" AND principal = "bob"', 0),
        ('method = "webhooks.v1.EndpointService/X"', 2),
        ('time >= "2020-01-01T00:00:00Z"', 3),
        ('time < "2020-01-01T00:00:00Z"', 0),
    ],
)
async def test_a_filter_keeps_what_it_names(db: Database, wanted: str, count: int) -> None:
    trail = AuditTable(db)
    for each in (call(), call("other", "bob"), call(method="webhooks.v1.TenantService/Y")):
        await trail.begun(each)
    assert len((await audit.list_page(db, PageRequest(filter=wanted))).items) == count


async def test_a_scan_that_reaches_its_bound_goes_on_with_the_next_page(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SCAN_ROWS_MAX", 2)
    trail, wanted = AuditTable(db), call(principal="bob")
    for each in (wanted, *(call() for _ in range(5))):
        await trail.begun(each)
    found, token, pages = [], "", 0
    while pages == 0 or token:
        page = await audit.list_page(db, PageRequest(10, token, 'principal = "bob"'))
        found, token, pages = [*found, *(each.call for each in page.items)], page.next_token, pages + 1
    assert (found, pages) == ([wanted], 4)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET principal = 'nobody'", "DELETE FROM audit", "TRUNCATE audit"],
)
async def test_a_record_is_neither_changed_nor_taken_away(
    db: Database, connection: asyncpg.Connection, statement: str
) -> None:
    await AuditTable(db).begun(call())
    partition = Partition("audit", datetime.now(UTC).date()).name
    for text in (statement, statement.replace("audit", partition)):
        if text == f"TRUNCATE {partition}":
            continue  # a statement-level trigger is the parent's alone: see docs/security.md
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(text)
    assert len((await audit.list_page(db, PageRequest())).items) == 1


async def test_records_are_kept_for_their_own_time(db: Database, connection: asyncpg.Connection) -> None:
    today = datetime.now(UTC).date()
    kept, gone = (Partition("audit", today - timedelta(days=days)) for days in (99, 102))
    for each in (kept, gone):
        assert await partitions._create_and_attach(connection, each)
    await run_round(db, UpkeepSettings(retention_days=10, audit_days=100))
    left = {each.name for each in await partitions.attached(connection)}
    assert kept.name in left
    assert gone.name not in left
