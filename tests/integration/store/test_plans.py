"""Statements keep their plans on empty tables and on full ones: index probes, only in the partitions that matter."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson
import pytest

from dispatcher.store import (
    appending,
    backlog,
    dead_letters,
    decisions,
    delivery_commands,
    endpoint_troubles,
    halts,
    parked,
    partitions,
    recent,
    replay_sources,
    runtime,
    tenant_status,
    upkeep,
)
from dispatcher.store.database import Database
from dispatcher.store.fence import guard_plan
from dispatcher.store.forms import TenantStatement
from dispatcher.store.partitions import Partition
from tests.support.backlog import SETTINGS

DAYS = 6
ENDPOINTS = 40
ROWS_PER_DAY = 50
LIMIT = 7
"""Rows that statistics may read of an endpoint."""
PARTITIONED = ("outbox_p", "event_p", "attempt_p", "decision", "dead_letter", "cursor", "endpoint", "parked", "halt")

FILL = """
WITH endpoints AS (
    INSERT INTO endpoint (tenant_id, endpoint_id, name, partition, description, labels, event_types, state,
                          state_reason, revision, settings, etag, create_time, update_time)
    SELECT $1, i, i::text, 7, '', '{}', '{*}', 'ACTIVE', '', 1, $2, i, $3, $3 FROM unnest($4::uuid[]) i
    RETURNING endpoint_id
), cursors AS (
    INSERT INTO cursor SELECT $1, endpoint_id, 0, $3 FROM endpoints
), revisions AS (
    INSERT INTO endpoint_revision SELECT $1, endpoint_id, 1, $2, $3 FROM endpoints
), rows AS (
    INSERT INTO outbox (tenant_id, endpoint_id, seq, time, event_id, event_time, type, revision, data_bytes)
    SELECT $1, e.endpoint_id, d * $6 + n, $3 + make_interval(days => d, mins => n), format('e-%s-%s', d, n),
           $3 + make_interval(days => d, mins => n), 't', 1, 2
    FROM endpoints e, generate_series(0, $5 - 1) d, generate_series(1, $6) n
    RETURNING *
), facts AS (
    INSERT INTO attempt (tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome)
    SELECT tenant_id, endpoint_id, seq, 1, 1, time, event_id, 1, 1 FROM rows
)
INSERT INTO event (tenant_id, event_id, time, type, content_type, data)
SELECT DISTINCT tenant_id, event_id, event_time, 't', 'x', '\\x00'::bytea FROM rows"""


@pytest.fixture
async def start(connection: asyncpg.Connection) -> datetime:
    """The first of `DAYS` days that end today, with their partitions."""
    now: datetime = await connection.fetchval("SELECT now()")
    first = now.astimezone(UTC).date() - timedelta(days=DAYS - 1)
    for table in partitions.DAILY_TABLES:
        for n in range(DAYS):
            await partitions._create_and_attach(connection, Partition(table, first + timedelta(days=n)))
    return partitions.day_start(first)


def statements(
    tenant_id: uuid.UUID, endpoint_ids: list[uuid.UUID], start: datetime
) -> Iterator[tuple[str, str, list[Any]]]:
    """Both forms of those that have two."""
    for name, statement, arguments in written(tenant_id, endpoint_ids, start):
        if isinstance(statement, TenantStatement):
            yield name, statement.many, arguments
            yield f"{name}, one tenant", statement.one, [tenant_id, *arguments[1:]]
        else:
            yield name, statement, arguments


def written(
    tenant_id: uuid.UUID, endpoint_ids: list[uuid.UUID], start: datetime
) -> Iterator[tuple[str, str | TenantStatement, list[Any]]]:
    tenants, last_day = [tenant_id] * 3, start + timedelta(days=DAYS - 1)
    three = endpoint_ids[:3]
    rows = [tenants, three, [200] * 3, [start + timedelta(days=4)] * 3, [50] * 3]
    facts = [tenants, three, [201] * 3, [250] * 3, [start + timedelta(days=4)] * 3]
    yield "rows", backlog.FETCH_ROWS, rows
    yield "facts", backlog.FETCH_FACTS, facts
    yield "payloads", backlog.FETCH_PAYLOADS, [tenants, ["e-1-1", "e-2-2", "e-3-3"], [last_day] * 3]
    yield "partition", backlog.LOAD_PARTITION, [7]
    yield "keys of a partition", backlog.KEYS_OF_PARTITION, [7]
    yield "positions", backlog.LOAD_POSITIONS, [tenants, three]
    yield "counts", backlog.BACKLOG_COUNTS, [tenants, three]
    yield "runtime", runtime.LOAD_RUNTIME, [tenants, three]
    yield "changed", runtime.CHANGED_ENDPOINTS, [list(range(256)), last_day]
    yield "changed, one tenant", runtime.CHANGED_HERE, [list(range(256)), last_day]
    yield "changed tenants", runtime.CHANGED_TENANTS, [last_day]
    day = [start, start + timedelta(days=1)]
    yield "unsettled", upkeep.FIND_UNSETTLED, [tenant_id, uuid.UUID(int=0), *day, 1000]
    yield "unsettled, page", upkeep.PAGE_OF_ENDPOINTS, [tenant_id, uuid.UUID(int=0), 1000]
    yield "unsettled of a page", upkeep.UNSETTLED_OF_PAGE, [tenants, three, *([time] * 3 for time in day)]
    yield "skip", decisions.SKIP_RANGE, [tenant_id, three[0], 1, 200, 100, 2, "r", "a"]
    letters = [tenants, three, [1, 1, 1], ["e-1-1"] * 3, [last_day] * 3, ["t"] * 3, [None] * 3, [1] * 3]
    yield "letters", decisions.INSERT_DEAD_LETTERS, [*letters, [None] * 3, [None] * 3, [None] * 3]
    yield "letter payloads", decisions.INSERT_PAYLOADS, [tenants, ["e-1-1"] * 3, [last_day] * 3]
    yield "own payloads", decisions.KEEP_OWN, [tenants, three, [1, 1, 1], ["e-1-1"] * 3, [last_day] * 3]
    yield from statements_of_failure(tenant_id, three[0], start)
    yield from statements_of_statistics(tenant_id, three, start)


def statements_of_statistics(
    tenant_id: uuid.UUID, endpoint_ids: list[uuid.UUID], start: datetime
) -> Iterator[tuple[str, str | TenantStatement, list[Any]]]:
    keys, count = [[tenant_id] * len(endpoint_ids), endpoint_ids], len(endpoint_ids)
    day = start + timedelta(days=DAYS - 1)
    yield "recent attempts", recent.READ_ATTEMPTS, [*keys, [day] * count, [LIMIT] * count]
    yield "recent payloads", recent.READ_PAYLOADS, [*keys, [251] * count, [300] * count, [LIMIT] * count]
    yield "committed", recent.COUNT_COMMITTED, [*keys, [day] * count, [day] * count, [LIMIT] * count]
    yield "tenant status", tenant_status.EXACT_PAGE, [tenant_id, uuid.UUID(int=0), 1000, 1000, day, 500, 10, None]
    large = [tenant_id, uuid.UUID(int=0), 1000, 1000, day, 500, 10, day, tenant_status.TRIED]
    yield "tenant status, large", tenant_status.LARGE_PAGE, large


def statements_of_failure(
    tenant_id: uuid.UUID, endpoint_id: uuid.UUID, start: datetime
) -> Iterator[tuple[str, str, list[Any]]]:
    one, last_day, end = [tenant_id, endpoint_id], start + timedelta(days=DAYS - 1), start + timedelta(days=DAYS)
    yield "halts", halts.LOAD_HALTS, one
    yield "halted", halts.SELECT_HALTED, [*one, 7]
    yield "parked", parked.LOAD_ALL, [*one, 1000]
    yield "parked heads", parked.LOAD_HEADS, one
    yield "parked of a key", parked.LOAD_COLD, [*one, "k", 7, 64]
    yield "parked before", parked.ENDPOINTS_BEFORE, [last_day, 100]
    yield "parked, old", parked.LOAD_OLDER, [*one, last_day, 100]
    yield "status: parked", endpoint_troubles.SELECT_PARKED, [*one, 1000]
    yield "status: halts", endpoint_troubles.SELECT_HALTS, one
    yield "status: waiting", endpoint_troubles.SELECT_WAITING, [*one, 7, True, None, 1000]
    yield "status: health", endpoint_troubles.SELECT_HEALTH, one
    yield "is settled", delivery_commands.IS_SETTLED, [*one, 7, "e-1-7"]
    yield "skip parked", decisions.SKIP_PARKED, [*one, 100, 2, "r", "a"]
    yield "replay", replay_sources.SCAN_OUTBOX, [*one, 0, 300, start, end, 1000]
    yield "replay events", replay_sources.FETCH_EVENTS, [tenant_id, ["e-1-1"], [last_day], [1]]
    yield "backfill: had", replay_sources.HAS_ALREADY, [*one, last_day, end, ["e-5-1"]]
    letters = [*one, 0, 300, None, None, None, start, end, 100]
    yield "redrive", replay_sources.SCAN_LETTERS, letters
    yield "append", appending.HIGHEST, one
    yield "closed letters", dead_letters.REMOVE_CLOSED, [86_400, 100]
    yield "payloads gone", dead_letters.DELETE_PAYLOADS, [[tenant_id], ["e-1-1"]]


async def explain(connection: asyncpg.Connection, sql: str, arguments: list[Any], *, analyze: bool) -> list[dict]:
    """All nodes of the plan that a prepared statement gets, as `guard_plan` has it."""
    option = "ANALYZE, TIMING OFF, " if analyze else ""
    async with connection.transaction():
        await guard_plan(connection)
        statement = await connection.prepare(sql)
        types = [f"{t.name.removesuffix('[]')}{'[]' if t.kind == 'array' else ''}" for t in statement.get_parameters()]
        name = f"p{uuid.uuid4().hex}"
        await connection.execute(f"PREPARE {name} ({', '.join(types)}) AS {sql}")
        values = await connection.fetchval(
            "SELECT string_agg(quote_nullable(v), ', ') FROM unnest($1::text[]) v",
            [None if a is None else literal(a) for a in arguments],
        )
        plan = await connection.fetchval(f"EXPLAIN ({option}FORMAT JSON) EXECUTE {name} ({values})")
        await connection.execute(f"DEALLOCATE {name}")
        return list(nodes(orjson.loads(plan)[0]["Plan"]))


def literal(value: Any) -> str:
    if isinstance(value, list):
        return "{" + ",".join("NULL" if v is None else f'"{literal(v)}"' for v in value) + "}"
    return str(value)


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def scanned_whole(plan: list[dict]) -> list[str]:
    """Tables that grow and are read otherwise than by probes of an index."""
    return [
        node["Relation Name"]
        for node in plan
        if node["Node Type"] in {"Seq Scan", "Bitmap Heap Scan"} and node["Relation Name"].startswith(PARTITIONED)
    ]


def executed(plan: list[dict], table: str) -> set[str]:
    return {
        node["Relation Name"]
        for node in plan
        if node.get("Relation Name", "").startswith(f"{table}_p") and node.get("Actual Loops", 0) > 0
    }


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
async def test_no_statement_scans_a_growing_table(
    db: Database, connection: asyncpg.Connection, start: datetime, filled: bool
) -> None:
    tenant_id, endpoint_ids = uuid.uuid4(), [uuid.uuid4() for _ in range(ENDPOINTS)]
    if filled:
        await fill(connection, tenant_id, endpoint_ids, start)
    assert await connection.fetchval("SHOW enable_seqscan") == "on"
    for name, sql, arguments in statements(tenant_id, endpoint_ids, start):
        assert scanned_whole(await explain(connection, sql, arguments, analyze=False)) == [], name


async def fill(
    connection: asyncpg.Connection, tenant_id: uuid.UUID, endpoint_ids: list[uuid.UUID], start: datetime
) -> None:
    await connection.execute("INSERT INTO tenant VALUES ($1, 't', 't', '{}', false, $1, $1, now(), now())", tenant_id)
    await connection.execute(FILL, tenant_id, SETTINGS, start, endpoint_ids, DAYS, ROWS_PER_DAY)
    await connection.execute("ANALYZE")


async def filled(connection: asyncpg.Connection, start: datetime) -> dict[str, Any]:
    """The statements about a tenant with all its days filled, by name."""
    tenant_id, endpoint_ids = uuid.uuid4(), [uuid.uuid4() for _ in range(ENDPOINTS)]
    await fill(connection, tenant_id, endpoint_ids, start)
    return {statement[0]: statement for statement in statements(tenant_id, endpoint_ids, start)}


@pytest.mark.parametrize("form", ["", ", one tenant"])
async def test_rows_are_probed_in_the_partitions_from_their_cursor_on_only(
    db: Database, connection: asyncpg.Connection, start: datetime, form: str
) -> None:
    known = await filled(connection, start)
    rows, facts, payloads = (known[name + form] for name in ("rows", "facts", "payloads"))
    plan = await explain(connection, rows[1], rows[2], analyze=True)
    too_old = {Partition("outbox", (start + timedelta(days=n)).date()).name for n in range(4)}
    assert executed(plan, "outbox")
    assert not executed(plan, "outbox") & too_old
    plan = await explain(connection, facts[1], facts[2], analyze=True)
    assert executed(plan, "attempt")
    assert not executed(plan, "attempt") & {name.replace("outbox", "attempt") for name in too_old - {max(too_old)}}
    plan = await explain(connection, payloads[1], payloads[2], analyze=True)
    assert executed(plan, "event") == {Partition("event", (start + timedelta(days=DAYS - 1)).date()).name}


async def test_a_sweep_reads_by_time_not_the_whole_day(
    db: Database, connection: asyncpg.Connection, start: datetime
) -> None:
    await fill(connection, uuid.uuid4(), [uuid.uuid4() for _ in range(ENDPOINTS)], start)
    async with connection.transaction():
        await connection.fetch(backlog.SWEEP_START)
        plan = await connection.fetch(f"EXPLAIN {backlog.SWEEP.replace('$1', 'now()').replace('$2', repr('{7}'))}")
    text = "\n".join(row[0] for row in plan)
    assert "Seq Scan" not in text
    assert "Bitmap Index Scan on outbox_p" in text


async def test_facts_are_looked_up_once_per_endpoint_and_partition(
    db: Database, connection: asyncpg.Connection, start: datetime
) -> None:
    facts = (await filled(connection, start))["facts"]
    probes = [n for n in await explain(connection, facts[1], facts[2], analyze=True) if is_probe(n, "attempt")]
    assert all("seq >= " in node["Index Cond"] for node in probes)
    assert {node["Actual Loops"] for node in probes} == {0, 3}


def is_probe(node: dict, table: str) -> bool:
    return node.get("Relation Name", "").startswith(table) and "Index Cond" in node


@pytest.mark.parametrize("form", ["", ", one tenant"])
@pytest.mark.parametrize(("name", "table"), [("recent attempts", "attempt"), ("committed", "outbox")])
async def test_statistics_read_no_more_than_their_limit_of_the_days_of_their_window(
    db: Database, connection: asyncpg.Connection, start: datetime, name: str, table: str, form: str
) -> None:
    known = await filled(connection, start)
    plan = await explain(connection, *known[name + form][1:], analyze=True)
    today, tomorrow = (Partition(table, (start + timedelta(days=n)).date()).name for n in (DAYS - 1, DAYS))
    assert executed(plan, table) - {tomorrow} == {today}
    (probe,) = [node for node in plan if is_probe(node, today)]
    assert (probe["Actual Loops"], probe["Actual Rows"]) == (3, LIMIT)
    assert "Rows Removed by Filter" not in probe


@pytest.mark.parametrize("form", ["", ", one tenant"])
async def test_payloads_of_statistics_are_looked_for_by_sequence_in_each_day(
    db: Database, connection: asyncpg.Connection, start: datetime, form: str
) -> None:
    known = await filled(connection, start)
    plan = await explain(connection, *known["recent payloads" + form][1:], analyze=True)
    probes = [node for node in plan if is_probe(node, "outbox_p")]
    assert all("seq >= " in node["Index Cond"] and "seq <= " in node["Index Cond"] for node in probes)
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in probes) == 3 * LIMIT


@pytest.mark.parametrize(("name", "cursor_day"), [("tenant status", DAYS - 1), ("tenant status, large", 0)])
async def test_a_tenants_status_probes_each_endpoint_in_the_days_that_matter(
    db: Database, connection: asyncpg.Connection, start: datetime, name: str, cursor_day: int
) -> None:
    tenant_id, endpoint_ids = uuid.uuid4(), [uuid.uuid4() for _ in range(ENDPOINTS)]
    await fill(connection, tenant_id, endpoint_ids, start)
    await connection.execute("UPDATE cursor SET seq = 300, time = $1", start + timedelta(days=cursor_day))
    known = {statement[0]: statement for statement in statements(tenant_id, endpoint_ids, start)}
    plan = await explain(connection, *known[name][1:], analyze=True)
    today, tomorrow = (Partition("outbox", (start + timedelta(days=n)).date()).name for n in (DAYS - 1, DAYS))
    assert executed(plan, "outbox") - {tomorrow} == {today}
    probes = [node for node in plan if is_probe(node, today) and node["Actual Loops"]]
    assert [(node["Actual Loops"], node["Actual Rows"]) for node in probes] == [(ENDPOINTS, 0)]
    pages = [node for node in plan if node.get("Relation Name") == "endpoint"]
    assert [node["Index Name"] for node in pages] == ["endpoint_pkey"]
    assert [node["Actual Loops"] for node in plan if node.get("Relation Name") == "cursor"] == [ENDPOINTS]


async def test_the_happy_path_pays_for_no_index_that_only_lists_need(connection: asyncpg.Connection) -> None:
    """Every index of the tables that each event writes, with who needs it: a new one has to answer for itself."""
    rows = await connection.fetch(
        "SELECT tablename, indexdef FROM pg_indexes WHERE tablename IN ('event', 'outbox', 'attempt')"
    )
    found = {(row["tablename"], row["indexdef"].partition(" USING ")[2]) for row in rows}
    assert found == {
        ("event", 'btree (tenant_id, event_id, "time")'),  # payloads
        ("event", "brin (\"time\") WITH (pages_per_range='32', autosummarize='on')"),  # backfills; a page per 32
        ("outbox", 'btree (tenant_id, endpoint_id, seq, "time")'),  # delivery
        ("outbox", "brin (\"time\") WITH (pages_per_range='32', autosummarize='on')"),  # the sweep
        ("attempt", 'btree (tenant_id, endpoint_id, seq, epoch, number, "time")'),  # takeovers
        # A success is not in it.
        ("attempt", 'btree (tenant_id, endpoint_id, seq, epoch, number, "time") WHERE (outcome <> 1)'),
    }
