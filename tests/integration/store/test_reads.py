"""Events, deliveries, attempts and endpoint status read back, and at what cost."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.errors import InvalidRequestError, NotFoundError
from dispatcher.model import DeliveryState, EndpointKey, Outcome
from dispatcher.store import attempt_history, dead_letters, deliveries, endpoint_deletion, endpoint_status, events
from dispatcher.store.database import Database
from dispatcher.store.paging import SCAN_ROWS_MAX, PageRequest
from tests.support.configured import (
    attempted,
    decided,
    make_endpoint,
    make_tenant,
    new_event,
    publish_events,
)


def today(hours: int = 0) -> str:
    return f'"{(datetime.now(UTC) - timedelta(hours=hours)).isoformat()}"'


async def one_endpoint(db: Database, count: int = 0) -> EndpointKey:
    await make_tenant(db)
    key = (await make_endpoint(db)).key
    if count:
        await publish_events(db, [new_event(f"e{n}") for n in range(1, count + 1)])
    return key


async def test_an_event_is_read_as_it_was_published(db: Database) -> None:
    await one_endpoint(db)
    time = await publish_events(db, [new_event("e1", "order.paid", b"\0body", "acct-1")])
    event = await events.get(db, "acme", "e1")
    assert (event.event_id, event.type, event.data, event.ordering_key) == ("e1", "order.paid", b"\0body", "acct-1")
    assert (event.publish_time, event.source, event.subject) == (time, "src", "sub")
    assert event.attributes == {"region": "eu"}
    assert (await events.get(db, "acme", "e1", with_data=False)).data is None
    later = await publish_events(db, [new_event("e1", data=b"again")])
    assert (await events.get(db, "acme", "e1")).publish_time == later, "the newest of an id used again"
    for tenant, event_id in (("acme", "nope"), ("nobody", "e1")):
        with pytest.raises(NotFoundError):
            await events.get(db, tenant, event_id)


async def test_events_are_listed_in_pages_by_id(db: Database) -> None:
    await one_endpoint(db)
    await publish_events(db, [new_event(f"e{n}", f"t.{n % 2}", key=str(n % 3)) for n in range(9)])
    seen, token = [], ""
    while True:
        page = await events.list_page(db, "acme", PageRequest(2, token))
        seen += [event.event_id for event in page.items]
        token = page.next_token
        if not token:
            break
    assert seen == [f"e{n}" for n in range(9)]
    odd = await events.list_page(db, "acme", PageRequest(filter='type = "t.1" AND ordering_key = "0"'))
    assert [event.event_id for event in odd.items] == ["e3"]
    assert odd.items[0].data is None
    early = await events.list_page(db, "acme", PageRequest(filter=f"publish_time < {today(1)}"))
    assert (early.items, early.next_token) == ((), "")
    with pytest.raises(InvalidRequestError):
        await events.list_page(
            db, "acme", PageRequest(filter=f"publish_time >= {today(30)} AND publish_time < {today()}")
        )


async def test_a_page_with_payloads_is_bounded_in_bytes(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAGE_DATA_BYTES_MAX", 25)
    await one_endpoint(db)
    await publish_events(db, [new_event(f"e{n}", data=b"x" * size) for n, size in enumerate((10, 10, 10, 90, 5))])
    pages, token = [], ""
    while True:
        page = await events.list_page(db, "acme", PageRequest(9, token), with_data=True)
        pages.append([len(event.data or b"") for event in page.items])
        token = page.next_token
        if not token:
            break
    assert pages == [[10, 10], [10], [90], [5]]


async def test_the_state_of_a_delivery_is_computed(db: Database) -> None:
    key = await one_endpoint(db, 7)
    await attempted(db, key, 1, "e1", Outcome.HTTP_ERROR)
    await attempted(db, key, 1, "e1", Outcome.SUCCEEDED, number=2)
    await decided(db, key, 2, "e2", 1)
    await decided(db, key, 3, "e3", 2)
    await decided(db, key, 4, "e4", 3)
    await decided(db, key, 5, "e5", 1)
    await attempted(db, key, 5, "e5", Outcome.SUCCEEDED)
    await attempted(db, key, 6, "lost", Outcome.SUCCEEDED)
    await attempted(db, key, 7, "e7", Outcome.TIMEOUT)
    page = await deliveries.list_page(db, "acme", "billing", PageRequest())
    states = {d.seq: d.state for d in page.items}
    assert [d.seq for d in page.items] == [7, 6, 5, 4, 3, 2, 1]
    assert states == {
        1: DeliveryState.DELIVERED,
        2: DeliveryState.DEAD_LETTERED,
        3: DeliveryState.SKIPPED,
        4: DeliveryState.DEAD_LETTERED,
        5: DeliveryState.DELIVERED,
        6: DeliveryState.PENDING,
        7: DeliveryState.PENDING,
    }
    by_seq = {d.seq: d for d in page.items}
    assert by_seq[1] == await deliveries.get(db, "acme", "billing", 1)
    first = by_seq[1]
    assert (first.attempt_count, first.event_id, first.endpoint_name, first.revision) == (2, "e1", "billing", 1)
    assert first.last_attempt is not None
    assert (first.last_attempt.number, first.last_attempt.duration_s) == (2, 0.002)
    assert first.deliver_time == first.last_attempt.start_time + timedelta(milliseconds=2)
    assert by_seq[5].decision is not None, "a late success keeps the decision on record"
    assert by_seq[6].last_attempt is None
    assert by_seq[7].last_attempt is not None
    assert by_seq[7].last_attempt.response_excerpt == b"oops\0"
    for state in DeliveryState:
        filtered = await deliveries.list_page(db, "acme", "billing", PageRequest(filter=f"state = {state}"))
        assert [d.seq for d in filtered.items] == [s for s in sorted(states, reverse=True) if states[s] is state]


async def test_missing_deliveries_are_named(db: Database) -> None:
    await one_endpoint(db, 2)
    with pytest.raises(NotFoundError) as refused:
        await deliveries.get(db, "acme", "billing", 3)
    assert refused.value.resource_name == "tenants/acme/endpoints/billing/deliveries/3"
    for tenant, endpoint in (("acme", "nope"), ("nobody", "billing")):
        with pytest.raises(NotFoundError):
            await deliveries.list_page(db, tenant, endpoint, PageRequest())


async def list_all(db: Database, endpoint: str | None, text: str, size: int = 2) -> list[tuple[str, int]]:
    seen, token = [], ""
    while True:
        page = await deliveries.list_page(db, "acme", endpoint, PageRequest(size, token, text))
        seen += [(d.endpoint_name, d.seq) for d in page.items]
        token = page.next_token
        if not token:
            return seen


async def test_deliveries_are_listed_per_endpoint_event_and_time(db: Database) -> None:
    await make_tenant(db)
    await make_endpoint(db, "a")
    await make_endpoint(db, "b")
    await make_endpoint(db, "c", event_types=("other",))
    await publish_events(db, [new_event("e1"), new_event("e2", "other", key="k"), new_event("e3")])
    assert await list_all(db, "a", "") == [("a", 3), ("a", 2), ("a", 1)]
    assert await list_all(db, None, 'event = "tenants/acme/events/e2"') == [("c", 1), ("b", 2), ("a", 2)]
    assert await list_all(db, "b", 'event = "tenants/acme/events/e2"') == [("b", 2)]
    everything = [("c", 1), ("b", 3), ("b", 2), ("b", 1), ("a", 3), ("a", 2), ("a", 1)]
    assert await list_all(db, None, f"create_time >= {today(1)}") == everything
    assert await list_all(db, None, f"create_time >= {today(1)} AND event_type = other") == [
        ("c", 1),
        ("b", 2),
        ("a", 2),
    ]
    assert await list_all(db, "a", "ordering_key = k") == [("a", 2)]
    assert await list_all(db, "a", f"create_time < {today(1)}") == []
    assert await list_all(db, None, 'event = "tenants/acme/events/nope"') == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "event_type = a",
        'event = "tenants/other/events/e1"',
        f"create_time >= {today(30)} AND create_time < {today()}",
    ],
)
async def test_all_endpoints_are_listed_only_for_an_event_or_a_day(db: Database, text: str) -> None:
    await make_tenant(db)
    with pytest.raises(InvalidRequestError) as refused:
        await deliveries.list_page(db, "acme", None, PageRequest(filter=text))
    assert refused.value.violations[0].field == "filter"


async def test_a_token_leads_into_no_other_endpoint(db: Database) -> None:
    await one_endpoint(db, 3)
    await make_endpoint(db, "other")
    page = await deliveries.list_page(db, "acme", "billing", PageRequest(1))
    with pytest.raises(InvalidRequestError):
        await deliveries.list_page(db, "acme", "other", PageRequest(1, page.next_token))


async def test_a_scan_that_finds_nothing_goes_on_with_the_next_page(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (deliveries, events, attempt_history):
        monkeypatch.setattr(module, "SCAN_ROWS_MAX", 2)
    monkeypatch.setattr(deliveries, "STATE_SCAN_ROWS_MAX", 2)
    key = await one_endpoint(db, 5)
    await publish_events(db, [new_event("x6", "rare")])
    await attempted(db, key, 1, "e1", Outcome.SUCCEEDED)
    for seq in range(2, 6):
        await attempted(db, key, seq, f"e{seq}", Outcome.HTTP_ERROR)
    first = await deliveries.list_page(db, "acme", "billing", PageRequest(filter="state = DELIVERED"))
    assert first.items == ()
    assert first.next_token
    assert await list_all(db, "billing", "state = DELIVERED") == [("billing", 1)]
    assert await list_all(db, "billing", "event_type = rare") == [("billing", 6)]
    page = await events.list_page(db, "acme", PageRequest(filter="type = rare"))
    assert page.items == ()
    page = await events.list_page(db, "acme", PageRequest(token=page.next_token, filter="type = rare"))
    page = await events.list_page(db, "acme", PageRequest(token=page.next_token, filter="type = rare"))
    assert [event.event_id for event in page.items] == ["x6"]
    page = await attempt_history.list_page(db, "acme", "billing", None, PageRequest(filter="outcome = SUCCEEDED"))
    assert page.items == ()
    assert page.next_token


async def test_attempts_are_listed_newest_first(db: Database) -> None:
    key = await one_endpoint(db, 2)
    other = (await make_endpoint(db, "later")).key
    for number in (1, 2, 3):
        await attempted(db, key, 1, "e1", Outcome.HTTP_ERROR, number)
    await attempted(db, key, 2, "e2", Outcome.SUCCEEDED)
    await publish_events(db, [new_event("e3")])
    await attempted(db, other, 1, "e3", Outcome.TIMEOUT)

    async def listed(endpoint: str | None, seq: int | None, text: str = "") -> list[tuple[str, int, int]]:
        seen, token = [], ""
        while True:
            page = await attempt_history.list_page(db, "acme", endpoint, seq, PageRequest(2, token, text))
            seen += [(item.endpoint_name, item.attempt.seq, item.attempt.number) for item in page.items]
            token = page.next_token
            if not token:
                return seen

    failures = [("billing", 1, 3), ("billing", 1, 2), ("billing", 1, 1)]
    assert await listed("billing", 1) == failures
    assert await listed("billing", 2) == [("billing", 2, 1)]
    assert await listed("billing", None) == [("billing", 2, 1), *failures]
    assert await listed("billing", None, "outcome != SUCCEEDED") == failures
    assert await listed(None, None, f"start_time >= {today(1)}") == [("later", 1, 1), ("billing", 2, 1), *failures]
    assert await listed("billing", 1, f"start_time < {today(1)}") == []
    with pytest.raises(InvalidRequestError):
        await listed(None, None)
    with pytest.raises(NotFoundError):
        await listed("billing", 9)


async def test_status_tells_watermark_backlog_and_what_blocks(db: Database) -> None:
    key = await one_endpoint(db)
    fresh = await endpoint_status.read(db, "acme", "billing")
    assert (fresh.last_sequence, fresh.settled_through, fresh.backlog_count) == (0, 0, 0)
    assert (fresh.oldest_pending_time, fresh.blocked_by) == (None, None)
    published = await publish_events(db, [new_event(f"e{n}") for n in range(1, 7)])
    await attempted(db, key, 1, "e1", Outcome.SUCCEEDED)
    await decided(db, key, 2, "e2", 1)
    await attempted(db, key, 4, "e4", Outcome.HTTP_ERROR)
    await attempted(db, key, 5, "e5", Outcome.SUCCEEDED)
    status = await endpoint_status.read(db, "acme", "billing")
    assert (status.last_sequence, status.settled_through, status.backlog_count) == (6, 2, 3)
    assert not status.backlog_capped
    assert status.oldest_pending_time == published
    assert status.now >= published
    assert status.blocked_by is not None
    assert (status.blocked_by.seq, status.blocked_by.event_id, status.blocked_by.attempt_count) == (4, "e4", 1)
    assert status.blocked_by.last_attempt is not None
    assert status.blocked_by.last_attempt.error == "HTTP 500"
    await db.execute("UPDATE cursor SET seq = 2")
    assert (await endpoint_status.read(db, "acme", "billing")).backlog_count == 3
    capped = await endpoint_status.read(db, "acme", "billing", backlog_rows_max=2)
    assert capped.backlog_capped
    assert capped.last_sequence == 6


async def test_status_holds_where_all_rows_are_settled_or_dropped(db: Database) -> None:
    key = await one_endpoint(db, 2)
    for seq in (1, 2):
        await attempted(db, key, seq, f"e{seq}", Outcome.SUCCEEDED)
    status = await endpoint_status.read(db, "acme", "billing")
    assert (status.last_sequence, status.settled_through, status.backlog_count) == (2, 2, 0)
    await db.execute("UPDATE cursor SET seq = 2, time = clock_timestamp()")
    await db.execute("TRUNCATE outbox")
    status = await endpoint_status.read(db, "acme", "billing")
    assert (status.last_sequence, status.settled_through) == (2, 2)


async def test_history_of_a_deleted_endpoint_can_be_read(db: Database) -> None:
    await one_endpoint(db, 1)
    await endpoint_deletion.delete(db, "acme", "billing", actor="tester", force=True)
    assert (await deliveries.get(db, "acme", "billing", 1)).state is DeliveryState.PENDING
    assert (await endpoint_status.read(db, "acme", "billing")).backlog_count == 1


FAILURES = 20
"""Of each endpoint, by FILL."""
FILL = """
WITH r AS (
    SELECT e.tenant_id, e.endpoint_id, g AS seq, clock_timestamp() - interval '20 minutes' + g * interval '1 ms' AS time
    FROM endpoint e CROSS JOIN generate_series(1, 20000) g
), a AS (
    INSERT INTO attempt
    SELECT tenant_id, endpoint_id, seq, 1, 1, time, 'e' || seq, 100, 1, 200, NULL, NULL::bytea FROM r WHERE seq < 19000
    UNION ALL
    SELECT tenant_id, endpoint_id, seq, 1, 0, time, 'e' || seq, 100, 2, 503, NULL, NULL FROM r WHERE seq % 1000 = 0
), d AS (
    INSERT INTO decision
    SELECT tenant_id, endpoint_id, seq, 1, 'e' || seq, 'EXPIRED', 'x', time FROM r WHERE seq > 19900
), l AS (
    INSERT INTO dead_letter
    SELECT tenant_id, endpoint_id, seq, 'e' || seq, time, 'a', NULL, 'x/y', 1 FROM r
    WHERE seq > 19900
), v AS (
    INSERT INTO event
    SELECT tenant_id, 'e' || seq, time, 'a', NULL, 'x/y', '', NULL, NULL, NULL, NULL, NULL
    FROM r WHERE endpoint_id = (SELECT min(endpoint_id::text)::uuid FROM endpoint)
)
INSERT INTO outbox SELECT tenant_id, endpoint_id, seq, time, 'e' || seq, time, 'a', NULL, 1, 0, NULL FROM r"""


async def test_no_read_scans_a_partition(db: Database) -> None:
    """Each statement is explained as the module sends it, on tables that are filled and analysed."""
    await make_tenant(db)
    names = [f"e{n}" for n in range(4)]
    for name in names:
        await make_endpoint(db, name)
    await db.execute(FILL)
    await db.execute("UPDATE cursor SET seq = 18500, time = clock_timestamp() - interval '1 hour'")
    for table in ("outbox", "event", "attempt", "endpoint", "cursor", "decision", "dead_letter"):
        await db.execute(f"VACUUM ANALYZE {table}")
    spy = SpyDatabase(db)
    page = PageRequest(50)
    day = f"create_time >= {today(1)}"
    await events.get(spy, "acme", "e77")
    await events.list_page(spy, "acme", page)
    await deliveries.get(spy, "acme", "e1", 5000)
    await deliveries.list_page(spy, "acme", "e1", page)
    await deliveries.list_page(spy, "acme", "e1", PageRequest(filter="state = PENDING"))
    await deliveries.list_page(spy, "acme", None, PageRequest(filter=day))
    found = await deliveries.list_page(spy, "acme", None, PageRequest(filter="event = 'tenants/acme/events/e77'"))
    assert found.items
    await attempt_history.list_page(spy, "acme", "e1", 77, page)
    await attempt_history.list_page(spy, "acme", "e1", None, page)
    await attempt_history.list_page(spy, "acme", None, None, PageRequest(filter=day.replace("create", "start")))
    one = "event = 'tenants/acme/events/e77'"
    for text in ("last_status_code = 503", "event_type = a AND ordering_key = k", f"{one} AND state = PENDING"):
        await deliveries.list_page(spy, "acme", "e1", PageRequest(filter=text))
    for text in ("status_code = 200", "event_type = b", one):
        await attempt_history.list_page(spy, "acme", "e1", None, PageRequest(filter=text))
    assert (await attempt_history.list_page(spy, "acme", None, None, PageRequest(filter=one))).items
    await dead_letters.list_page(spy, "acme", "e1", PageRequest(filter="state = OPEN AND event_type = a"))
    await dead_letters.list_page(spy, "acme", None, PageRequest(filter="reason = EXPIRED"))
    await dead_letters.get(spy, "acme", "e1", 19901)
    status = await endpoint_status.read(spy, "acme", "e1")
    assert status.backlog_count == 901
    assert len(spy.plans) > 15
    for sql, plan in spy.plans:
        scans = re.findall(r"Seq Scan on (?:outbox|event|attempt)_p\S+", plan)
        # What a scan never starts costs nothing, and an empty partition has no better plan.
        assert not [scan for scan in scans if not _is_idle(scan, plan)], f"{sql}\n{plan}"
        assert _rows_read(plan) <= 3 * SCAN_ROWS_MAX, f"{sql}\n{plan}"


async def test_a_list_of_failures_reads_the_failures_alone(db: Database) -> None:
    """Few among many successes; the index that leads to them holds no success."""
    await make_tenant(db)
    await make_endpoint(db, "e1")
    await db.execute(FILL)
    for table in ("outbox", "attempt", "endpoint"):
        await db.execute(f"VACUUM ANALYZE {table}")
    indexes = "SELECT c.relname, c.reltuples FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    of_failures = await db.fetch(f"{indexes} WHERE i.inhparent = 'attempt_failure'::regclass")
    assert sum(max(0, row["reltuples"]) for row in of_failures) == FAILURES
    spy = SpyDatabase(db)
    day = f"start_time >= {today(1)}"
    for text in ("outcome != SUCCEEDED", "outcome = HTTP_ERROR", "status_code = 503"):
        for endpoint, filter_ in (("e1", text), (None, f"{text} AND {day}")):
            page = await attempt_history.list_page(spy, "acme", endpoint, None, PageRequest(filter=filter_))
            assert len(page.items) == FAILURES
            sql, plan = spy.plans[-1]
            assert any(row["relname"] in plan for row in of_failures), f"{sql}\n{plan}"
            assert _rows_read(plan) <= 2 * FAILURES, f"{sql}\n{plan}"


def _is_idle(scan: str, plan: str) -> bool:
    lines = [line for line in plan.splitlines() if scan in line]
    return all("never executed" in line or "rows=0" in line.split("actual", 1)[1] for line in lines)


def _rows_read(plan: str) -> int:
    """The most rows any one scan of a partition gave or threw away, over all its loops."""
    given = [
        int(float(rows) * int(loops))
        for rows, loops in re.findall(r"Scan.* on \w+_p\d+.*actual.*rows=([\d.]+) loops=(\d+)", plan)
    ]
    removed = [int(rows) for rows in re.findall(r"Rows Removed by (?:Filter|Index Recheck): (\d+)", plan)]
    return max(given + removed, default=0)


class SpyDatabase(Database):
    """Explains each statement before it runs."""

    def __init__(self, db: Database) -> None:
        super().__init__(db.options, db._pool)
        self.plans: list[tuple[str, str]] = []

    async def fetch(self, sql: str, *arguments: Any) -> Any:
        await self._explain(sql, arguments)
        return await super().fetch(sql, *arguments)

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        await self._explain(sql, arguments)
        return await super().fetchrow(sql, *arguments)

    async def _explain(self, sql: str, arguments: tuple[Any, ...]) -> None:
        rows = await super().fetch("EXPLAIN (ANALYZE, TIMING OFF) " + sql, *arguments)
        self.plans.append((sql, "\n".join(row[0] for row in rows)))
