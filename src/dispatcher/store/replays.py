"""Replays on record: what is to be appended, how far it is, and each step in one transaction with its progress."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from dispatcher.errors import AlreadyExistsError, NotFoundError
from dispatcher.model import EndpointKey
from dispatcher.store import appending, filters, tenants
from dispatcher.store.appending import Copy
from dispatcher.store.changes import change
from dispatcher.store.database import Connection, Database, columns
from dispatcher.store.fence import RAISE_SYNCHRONOUS_COMMIT, hold
from dispatcher.store.operational import OperationalEvent, OperationalType, record
from dispatcher.store.paging import Page, PageRequest, decode_token, encode_token

RUNNING_MAX = 100
"""Replays looked at in one turn; the next turn goes on behind them, so that those that wait starve no others."""


class ReplayKind(enum.StrEnum):
    """Where the events come from: the endpoint's own deliveries, the tenant's events, its dead letters."""

    REPLAY_EVENTS = "REPLAY_EVENTS"
    BACKFILL_ENDPOINT = "BACKFILL_ENDPOINT"
    REDRIVE_DEAD_LETTERS = "REDRIVE_DEAD_LETTERS"


class ReplayState(enum.StrEnum):
    """RUNNING until it has ended one way or the other."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class NewReplay:
    """A replay to start. `arguments` and `position` are plain JSON that `replay_sources` understands."""

    replay_id: UUID
    name: str
    key: EndpointKey
    kind: ReplayKind
    arguments: Mapping[str, Any]
    position: Mapping[str, Any]
    rate_per_s: float
    matched_count: int
    actor: str


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay as it stands; `endpoint_name` is the target's."""

    replay_id: UUID
    name: str
    key: EndpointKey
    endpoint_name: str
    kind: ReplayKind
    arguments: Mapping[str, Any]
    position: Mapping[str, Any]
    rate_per_s: float
    state: ReplayState
    matched_count: int
    appended_count: int
    error: str
    actor: str
    create_time: datetime
    update_time: datetime
    complete_time: datetime | None


INSERT_REPLAY = """
INSERT INTO replay (tenant_id, replay_id, name, endpoint_id, partition, kind, arguments, rate_per_s, state, position,
                    matched_count, appended_count, error, actor, create_time, update_time)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, 'RUNNING', $9, $10, 0, '', $11, t, t FROM clock_timestamp() t
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING replay_id"""


async def create(db: Database, tenant: str, new: NewReplay) -> Replay:
    """Start a replay. Errors: AlreadyExistsError `REPLAY_EXISTS`."""
    async with change(db) as connection:
        made = await connection.fetchval(
            INSERT_REPLAY,
            new.key.tenant_id,
            new.replay_id,
            new.name,
            new.key.endpoint_id,
            new.key.partition,
            new.kind,
            dict(new.arguments),
            new.rate_per_s,
            dict(new.position),
            new.matched_count,
            new.actor,
        )
        if made is None:
            resource = replay_name(tenant, new.name)
            raise AlreadyExistsError(
                f"{resource} exists already", reason="REPLAY_EXISTS", metadata={"resource": resource}
            )
    return await get(db, tenant, new.name)


SELECT_REPLAY = """
SELECT r.tenant_id, r.replay_id, r.name, r.endpoint_id, e.name AS endpoint_name, r.kind, r.arguments, r.position,
       r.rate_per_s, r.state, r.matched_count, r.appended_count, r.error, r.actor, r.create_time, r.update_time,
       r.complete_time
FROM tenant t
JOIN replay r ON r.tenant_id = t.tenant_id
JOIN endpoint e ON e.tenant_id = r.tenant_id AND e.endpoint_id = r.endpoint_id
WHERE t.name = $1 AND t.delete_time IS NULL AND r.name = $2"""


async def get(db: Database, tenant: str, name: str) -> Replay:
    """A replay by name. Errors: NotFoundError."""
    row = await db.fetchrow(SELECT_REPLAY, tenant, name)
    if row is None:
        raise NotFoundError("webhooks.dispatcher/Replay", replay_name(tenant, name))
    return _replay(row)


FILTER_RULES = {
    "state": filters.Rule(filters.Kind.WORD, words=frozenset(state.value for state in ReplayState)),
    "endpoint": filters.TEXT,
}
LIST_REPLAYS = """
SELECT r.tenant_id, r.replay_id, r.name, r.endpoint_id, e.name AS endpoint_name, r.kind, r.arguments, r.position,
       r.rate_per_s, r.state, r.matched_count, r.appended_count, r.error, r.actor, r.create_time, r.update_time,
       r.complete_time
FROM replay r
JOIN endpoint e ON e.tenant_id = r.tenant_id AND e.endpoint_id = r.endpoint_id
WHERE r.tenant_id = $1 AND r.name > $2 AND ($3::text IS NULL OR r.state = $3) AND ($4::text IS NULL OR e.name = $4)
ORDER BY r.name LIMIT $5"""


async def list_page(db: Database, tenant: str, request: PageRequest) -> Page[Replay]:
    """A tenant's replays by name. Filter: `state`, `endpoint`. Errors: NotFoundError, InvalidRequestError."""
    query = ("replays", tenant, request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    endpoint = wanted.text("endpoint")
    prefix = f"tenants/{tenant}/endpoints/"
    if endpoint is not None and not endpoint.startswith(prefix):
        raise filters.bad_filter(f"endpoint must be the name of one: {prefix}…")
    after = decode_token(query, request.token, (str,)) or ("",)
    owner = await tenants.get(db, tenant)
    name = None if endpoint is None else endpoint.removeprefix(prefix)
    rows = await db.fetch(LIST_REPLAYS, owner.tenant_id, *after, wanted.text("state"), name, request.size + 1)
    items = [_replay(row) for row in rows[: request.size]]
    token = encode_token(query, (items[-1].name,)) if len(rows) > request.size else ""
    return Page(tuple(items), token)


END_REPLAY = """
UPDATE replay SET state = $3, error = $4, update_time = clock_timestamp(), complete_time = clock_timestamp()
WHERE tenant_id = $1 AND replay_id = $2 AND state = 'RUNNING'"""


async def cancel(db: Database, tenant: str, name: str) -> Replay:
    """Stop a replay; one that has ended stays as it is. Errors: NotFoundError."""
    found = await get(db, tenant, name)
    await db.execute(END_REPLAY, found.key.tenant_id, found.replay_id, ReplayState.CANCELLED, "")
    return await get(db, tenant, name)


async def fail(db: Database, replay: Replay, error: str) -> None:
    """End a replay that can't go on."""
    await db.execute(END_REPLAY, replay.key.tenant_id, replay.replay_id, ReplayState.FAILED, error)


SELECT_RUNNING = """
SELECT r.tenant_id, r.replay_id, r.name, r.endpoint_id, e.name AS endpoint_name, r.kind, r.arguments, r.position,
       r.rate_per_s, r.state, r.matched_count, r.appended_count, r.error, r.actor, r.create_time, r.update_time,
       r.complete_time
FROM replay r
JOIN endpoint e ON e.tenant_id = r.tenant_id AND e.endpoint_id = r.endpoint_id
WHERE r.state = 'RUNNING' AND r.partition = ANY ($1::smallint[]) AND r.replay_id > $2
ORDER BY r.replay_id LIMIT $3"""


async def running(db: Database, partitions: Sequence[int], after: UUID) -> list[Replay]:
    """The next `RUNNING_MAX` running replays of these partitions, by id; fewer: there are none behind them."""
    return [_replay(row) for row in await db.fetch(SELECT_RUNNING, list(partitions), after, RUNNING_MAX)]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step appends, where the replay stands then, and whether that is its end."""

    copies: Sequence[Copy]
    position: Mapping[str, Any]
    is_end: bool


@dataclass(frozen=True, slots=True)
class Advanced:
    """A step was done: the copies appended, and the highest sequence given out; 0 where there were none."""

    appended: int
    highest_seq: int


LOCK_REPLAY = """
SELECT position FROM replay WHERE tenant_id = $1 AND replay_id = $2 AND state = 'RUNNING' FOR UPDATE"""
MOVE_REPLAY = """
UPDATE replay SET position = $3, appended_count = appended_count + $4, update_time = clock_timestamp(),
                  state = $5, complete_time = CASE WHEN $5 = 'RUNNING' THEN NULL ELSE clock_timestamp() END
WHERE tenant_id = $1 AND replay_id = $2
RETURNING appended_count"""


async def advance(db: Database, epoch: int, replay: Replay, step: Step) -> Advanced | None:
    """Append and move on in one transaction, as the owner of the endpoint's partition: killed before or after, nothing
    is appended twice or left out.

    None: it is no longer running, has moved meanwhile, or the lease is gone. Raises EndpointGoneError,
    UnavailableError. Lock order: endpoint, lease, replay, dead letters.
    """
    key, timeline = replay.key, db.timeline
    async with db.transaction() as connection:
        await connection.execute(RAISE_SYNCHRONOUS_COMMIT)
        revision = await appending.lock(connection, key)
        if not await hold(connection, {key.partition: epoch}, timeline):
            return None
        position = await connection.fetchval(LOCK_REPLAY, key.tenant_id, replay.replay_id)
        if position != replay.position:
            return None
        copies, first = list(step.copies), 0
        if replay.kind is ReplayKind.REDRIVE_DEAD_LETTERS:
            copies = await still_open(connection, key, copies)
        if copies:
            first = await appending.append(connection, key, revision, copies)
        if replay.kind is ReplayKind.REDRIVE_DEAD_LETTERS and copies:
            await close_redriven(connection, key, copies, first, replay.actor)
        state = ReplayState.SUCCEEDED if step.is_end else ReplayState.RUNNING
        count = await connection.fetchval(
            MOVE_REPLAY, key.tenant_id, replay.replay_id, dict(step.position), len(copies), state
        )
        if step.is_end:
            facts = {"replay": replay.name, "kind": replay.kind.value, "appended_count": count}
            await record(connection, [OperationalEvent(key, OperationalType.REPLAY_COMPLETED, facts)])
    return Advanced(len(copies), first + len(copies) - 1 if copies else 0)


LOCK_LETTERS = """
SELECT seq FROM dead_letter
WHERE tenant_id = $1 AND endpoint_id = $2 AND seq = ANY ($3::bigint[]) AND state = 'OPEN' ORDER BY seq FOR UPDATE"""


async def still_open(connection: Connection, key: EndpointKey, copies: Sequence[Copy]) -> list[Copy]:
    """Those whose dead letter nobody has closed meanwhile; their letters stay locked."""
    rows = await connection.fetch(LOCK_LETTERS, key.tenant_id, key.endpoint_id, [copy.replay_of for copy in copies])
    open_seqs = {row["seq"] for row in rows}
    return [copy for copy in copies if copy.replay_of in open_seqs]


CLOSE_LETTERS = """
UPDATE dead_letter d SET state = 'REDRIVEN', close_time = clock_timestamp(), close_actor = $3, redrive_seq = r.new_seq
FROM unnest($4::bigint[], $5::bigint[]) r(seq, new_seq)
WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq = r.seq"""


async def close_redriven(
    connection: Connection, key: EndpointKey, copies: Sequence[Copy], first_seq: int, actor: str
) -> None:
    """Note on locked letters by which delivery each is sent again."""
    pairs = [(copy.replay_of, first_seq + i) for i, copy in enumerate(copies)]
    await connection.execute(CLOSE_LETTERS, key.tenant_id, key.endpoint_id, actor, *columns(pairs, 2))


REMOVE_ENDED = """
DELETE FROM replay WHERE (tenant_id, replay_id) IN (
    SELECT tenant_id, replay_id FROM replay
    WHERE state <> 'RUNNING' AND complete_time < clock_timestamp() - make_interval(secs => $1) LIMIT $2)"""


async def remove_ended(db: Database, kept_s: float, limit: int) -> None:
    """Forget replays that ended so long ago, up to `limit`."""
    await db.execute(REMOVE_ENDED, float(kept_s), limit)


def replay_name(tenant: str, name: str) -> str:
    """The full resource name of a replay."""
    return f"tenants/{tenant}/replays/{name}"


def _replay(row: asyncpg.Record) -> Replay:
    return Replay(
        replay_id=row["replay_id"],
        name=row["name"],
        key=EndpointKey(row["tenant_id"], row["endpoint_id"]),
        endpoint_name=row["endpoint_name"],
        kind=ReplayKind(row["kind"]),
        arguments=row["arguments"],
        position=row["position"],
        rate_per_s=row["rate_per_s"],
        state=ReplayState(row["state"]),
        matched_count=row["matched_count"],
        appended_count=row["appended_count"],
        error=row["error"],
        actor=row["actor"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        complete_time=row["complete_time"],
    )
