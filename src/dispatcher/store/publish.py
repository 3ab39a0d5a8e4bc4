"""One call of publish(): a batch of requests as arrays in, a verdict per request and a sequence per row out."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from dispatcher.model import EndpointKey, NewEvent, OutboxRow, Payload, PublishedEvent
from dispatcher.store.database import Connection, is_one_tenant
from dispatcher.store.fence import TIMELINE


class Verdict(enum.IntEnum):
    """What publish() says of one request; the numbers are the function's."""

    ACCEPTED = 0
    STALE = 1
    ID_REUSED = 2
    CHAIN_BROKEN = 3


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """All or nothing: events of one tenant in the order given, and the endpoints each goes to.

    `fan_out[i]` are the endpoints of `events[i]`, computed under routing version `version`. `chain` joins the requests
    of one stream, 0 for none: where one is refused, those behind it in the batch are refused too.
    """

    tenant_id: UUID
    tenant_name: str
    version: UUID
    events: tuple[NewEvent, ...]
    fan_out: tuple[tuple[EndpointKey, ...], ...]
    chain: int = 0

    @property
    def row_count(self) -> int:
        return sum(map(len, self.fan_out))

    @property
    def byte_count(self) -> int:
        return sum(len(event.data) for event in self.events)


@dataclass(frozen=True, slots=True)
class RequestResult:
    """`events` is empty unless accepted."""

    verdict: Verdict
    events: tuple[PublishedEvent, ...] = ()


@dataclass(slots=True)
class PublishResult:
    """Results in the order of the requests; sequences start at `bases[endpoint] + 1` in row order."""

    requests: list[RequestResult]
    published_at: datetime
    duplicates: list[bool]
    targets: dict[EndpointKey, int]
    bases: list[int | None]
    revisions: list[int | None]
    timeline: int = 0
    """That of the database that committed it; 0 where that is not known."""


PUBLISH = """
SELECT verdicts, duplicates, endpoint_counts, bases, revisions, published_at
FROM publish($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
             $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)"""
PUBLISH_ONE = """
SELECT verdicts, duplicates, endpoint_counts, bases, revisions, published_at
FROM publish_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)"""


async def publish(
    connection: Connection,
    requests: Sequence[PublishRequest],
    *,
    lock_timeout_s: float,
    timeout_s: float,
    with_timeline: bool = False,
) -> PublishResult:
    """Publish a batch in one autocommitted round trip: no client can freeze while it holds the endpoints' locks.

    The batch must hold one routing version per tenant and no caller's id twice (`BatchKeys` sees to it), and where the
    connection takes statements of one tenant only, one tenant (`group_commit.by_tenant`, else ValueError). When it
    returns, what was accepted is durable; `with_timeline` asks where, too. Raises asyncpg's errors; a lost connection
    leaves the outcome unknown.
    """
    arrays, is_one = _Arrays.build(requests), is_one_tenant(connection)
    arguments = [int(lock_timeout_s * 1000), *(arrays.arguments_of_one() if is_one else arrays.arguments())]
    text = PUBLISH_ONE if is_one else PUBLISH
    if with_timeline:
        text = text.replace("published_at\n", f"published_at, ({TIMELINE}) AS timeline\n", 1)
    row = await connection.fetchrow(text, *arguments, timeout=timeout_s)
    assert row is not None  # noqa: S101 -- a function with OUT parameters always gives one row
    results = _read_results(requests, row["verdicts"], row["duplicates"], row["endpoint_counts"])
    return PublishResult(
        results,
        row["published_at"],
        row["duplicates"],
        arrays.targets,
        row["bases"] or [],
        row["revisions"] or [],
        row["timeline"] if with_timeline else 0,
    )


def _read_results(
    requests: Sequence[PublishRequest], verdicts: list[int], duplicates: list[bool], counts: list[int]
) -> list[RequestResult]:
    results, position = [], 0
    for request, number in zip(requests, verdicts, strict=True):
        verdict, end = Verdict(number), position + len(request.events)
        published = (
            tuple(
                PublishedEvent(event.event_id, duplicate, count)
                for event, duplicate, count in zip(
                    request.events, duplicates[position:end], counts[position:end], strict=True
                )
            )
            if verdict is Verdict.ACCEPTED
            else ()
        )
        results.append(RequestResult(verdict, published))
        position = end
    return results


@dataclass(slots=True)
class _Arrays:
    """The function's parameters; indices count from 1 as SQL arrays do."""

    chains: list[int]
    tenants: dict[UUID, int] = field(default_factory=dict)
    versions: list[UUID] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    targets: dict[EndpointKey, int] = field(default_factory=dict)
    row_events: list[int] = field(default_factory=list)
    row_targets: list[int] = field(default_factory=list)

    @classmethod
    def build(cls, requests: Sequence[PublishRequest]) -> _Arrays:
        arrays = cls([request.chain for request in requests])
        keys = {key for request in requests for endpoints in request.fan_out for key in endpoints}
        arrays.targets = {key: i for i, key in enumerate(sorted(keys, key=_lock_order), 1)}
        for number, request in enumerate(requests, 1):
            arrays._add(number, request)
        return arrays

    def _add(self, number: int, request: PublishRequest) -> None:
        tenant = self.tenants.get(request.tenant_id)
        if tenant is None:
            tenant = self.tenants[request.tenant_id] = len(self.tenants) + 1
            self.versions.append(request.version)
        for event, endpoints in zip(request.events, request.fan_out, strict=True):
            self.events.append(_event_row(number, tenant, event, len(endpoints)))
            self.row_events.extend([len(self.events)] * len(endpoints))
            self.row_targets.extend([self.targets[key] for key in endpoints])

    def arguments(self) -> list[Any]:
        tenant_of = self.tenants
        return [
            self.chains,
            list(self.tenants),
            self.versions,
            *(list(column) for column in zip(*self.events, strict=True)),
            [tenant_of[key.tenant_id] for key in self.targets],
            [key.endpoint_id for key in self.targets],
            self.row_events,
            self.row_targets,
        ]

    def arguments_of_one(self) -> list[Any]:
        """Those of publish_one()."""
        (tenant_id,), (version,) = self.tenants, self.versions
        requests, _, *rest = zip(*self.events, strict=True)
        return [
            self.chains,
            tenant_id,
            version,
            *(list(column) for column in (requests, *rest)),
            [key.endpoint_id for key in self.targets],
            self.row_events,
            self.row_targets,
        ]


def _lock_order(key: EndpointKey) -> tuple[bytes, bytes]:
    return key.tenant_id.bytes, key.endpoint_id.bytes


def _event_row(request: int, tenant: int, event: NewEvent, endpoint_count: int) -> tuple[Any, ...]:
    return (
        request,
        tenant,
        event.event_id,
        event.digest,
        endpoint_count,
        event.type,
        event.ordering_key,
        event.content_type,
        event.data,
        dict(event.attributes) or None,
        event.source,
        event.subject,
        event.time,
        event.traceparent,
    )


def committed_rows(
    requests: Sequence[PublishRequest], result: PublishResult, owns: Callable[[EndpointKey], bool]
) -> tuple[list[OutboxRow], dict[EndpointKey, int]]:
    """The rows as the database holds them for owned endpoints, and the highest sequence of all others."""
    next_seq = {key: (result.bases[i - 1] or 0) + 1 for key, i in result.targets.items()}
    owned = {key for key in result.targets if owns(key)}
    rows: list[OutboxRow] = []
    others: dict[EndpointKey, int] = {}
    for event, endpoints in _accepted_events(requests, result):
        payload = Payload(event.data, event.content_type, event.traceparent)
        for key in endpoints:
            seq = next_seq[key]
            next_seq[key] = seq + 1
            if key in owned:
                revision = result.revisions[result.targets[key] - 1] or 0
                rows.append(_row(key, seq, event, payload, revision, result.published_at))
            else:
                others[key] = seq
    return rows, others


def _accepted_events(
    requests: Sequence[PublishRequest], result: PublishResult
) -> Iterable[tuple[NewEvent, tuple[EndpointKey, ...]]]:
    position = 0
    for request, outcome in zip(requests, result.requests, strict=True):
        for event, endpoints in zip(request.events, request.fan_out, strict=True):
            if outcome.verdict is Verdict.ACCEPTED and not result.duplicates[position]:
                yield event, endpoints
            position += 1


def _row(
    key: EndpointKey, seq: int, event: NewEvent, payload: Payload, revision: int, published_at: datetime
) -> OutboxRow:
    return OutboxRow(
        key=key,
        seq=seq,
        time=published_at,
        event_id=event.event_id,
        event_time=published_at,
        type=event.type,
        ordering_key=event.ordering_key,
        revision=revision,
        data_bytes=len(event.data),
        payload=payload,
    )


SELECT_OWN_EVENTS = """
SELECT e.tenant_id, e.event_id FROM unnest($1::uuid[], $2::text[]) w(tenant_id, event_id)
JOIN event e ON e.tenant_id = w.tenant_id AND e.event_id = w.event_id AND e.time > clock_timestamp() - interval '1 day'
WHERE e.xmin = $3::text::xid"""
SELECT_FIRST_CLAIMS = """
SELECT DISTINCT ON (d.tenant_id, d.event_id) d.tenant_id, d.event_id, d.digest, d.endpoint_count
FROM unnest($1::uuid[], $2::text[]) w(tenant_id, event_id)
JOIN dedup d ON d.tenant_id = w.tenant_id AND d.event_id = w.event_id
ORDER BY d.tenant_id, d.event_id, d.generation"""


async def read_back(connection: Connection, requests: Sequence[PublishRequest], xid: int) -> list[RequestResult | None]:
    """What a batch whose reply was lost has committed under transaction id `xid`; None for a request without a trace.

    Such a request was refused and wrote nothing, so it may be sent again. One whose events are all known, with the same
    content, wrote nothing either, but it is done: what follows it on its stream may be written.
    """
    wanted = [(request.tenant_id, event.event_id) for request in requests for event in request.events]
    tenants, ids = [tenant for tenant, _ in wanted], [event_id for _, event_id in wanted]
    own_rows = await connection.fetch(SELECT_OWN_EVENTS, tenants, ids, str(xid & 0xFFFFFFFF))
    own = {(row["tenant_id"], row["event_id"]) for row in own_rows}
    claim_rows = await connection.fetch(SELECT_FIRST_CLAIMS, tenants, ids)
    claims = {(row["tenant_id"], row["event_id"]): (row["digest"], int(row["endpoint_count"])) for row in claim_rows}
    return [_read_back_one(request, own, claims) for request in requests]


def _read_back_one(
    request: PublishRequest, own: set[tuple[UUID, str]], claims: dict[tuple[UUID, str], tuple[bytes, int]]
) -> RequestResult | None:
    keys = [(request.tenant_id, event.event_id) for event in request.events]
    is_known = all(
        event.digest is not None and claims.get(key, (None, 0))[0] == event.digest
        for key, event in zip(keys, request.events, strict=True)
    )
    if not is_known and not any(key in own for key in keys):
        return None
    return RequestResult(
        Verdict.ACCEPTED,
        tuple(
            PublishedEvent(key[1], key not in own, claims.get(key, (b"", len(endpoints)))[1])
            for key, endpoints in zip(keys, request.fan_out, strict=True)
        ),
    )
