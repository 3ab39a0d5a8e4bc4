"""The nouns of the service as frozen records and closed enums; nothing here does I/O.

Times are aware datetimes in UTC, durations are seconds as float, sizes are bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from dispatcher.credentials import Authentication
from dispatcher.policy import (
    NO_AUTO_DISABLE_OVERRIDES,
    NO_CIRCUIT_OVERRIDES,
    NO_PUBLISH_QUOTA,
    NO_RETRY_OVERRIDES,
    AutoDisableOverrides,
    CircuitOverrides,
    ExhaustionPolicy,
    PublishQuota,
    RateLimit,
    RetryOverrides,
)

PARTITION_COUNT = 256
"""Lease partitions. Fixed for the life of a database: an endpoint's partition is stored with it."""

RESERVED_TYPE_PREFIX = "dispatcher."
"""Event types that begin so are the service's own: refused on Publish, not matched by `*`."""


def partition_of(endpoint_id: UUID) -> int:
    """The lease partition of an endpoint: the last (random) byte of its UUIDv7."""
    return endpoint_id.int & 0xFF  # asked for everywhere, and a quarter of what `bytes` costs


class EndpointState(enum.StrEnum):
    """What the operator asked for; halts and circuits are delivery status, not state."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    DISABLED = "DISABLED"


class TenantState(enum.StrEnum):
    """PAUSED holds the deliveries to all endpoints of a tenant; publishing goes on."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"


class OrderingMode(enum.StrEnum):
    """How many deliveries of one endpoint may be in flight, and which wait for which."""

    ORDERED = "ORDERED"
    ORDERED_BY_KEY = "ORDERED_BY_KEY"
    UNORDERED = "UNORDERED"


class TracePropagation(enum.StrEnum):
    """What the webhook's `traceparent` says: nothing, the attempt's own new trace, or the publisher's trace."""

    NONE = "NONE"
    NEW_ROOT = "NEW_ROOT"
    CONTINUE = "CONTINUE"


class Outcome(enum.IntEnum):
    """How one attempt ended; the numbers are stored in `attempt.outcome`."""

    SUCCEEDED = 1
    HTTP_ERROR = 2
    TIMEOUT = 3
    CONNECTION_FAILED = 4
    TLS_FAILED = 5
    NAME_NOT_RESOLVED = 6
    ADDRESS_REFUSED = 7
    INVALID_RESPONSE = 8
    RESPONSE_TOO_LARGE = 9
    AUTHENTICATION_FAILED = 10
    EGRESS_PROXY_FAILED = 11
    """Our own way out is to blame, not the endpoint: recorded, and counted against nobody."""


class DecisionKind(enum.IntEnum):
    """Why a delivery ended without success; the numbers are stored in `decision.kind`."""

    DEAD_LETTER = 1
    SKIP = 2
    EXPIRY = 3


class DeliveryState(enum.StrEnum):
    """Computed, never stored: a success wins over a skip, a skip over a dead letter."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    DEAD_LETTERED = "DEAD_LETTERED"
    SKIPPED = "SKIPPED"


class SigningKeyState(enum.StrEnum):
    """ACTIVE signs for good, RETIRING signs until its expiry."""

    ACTIVE = "ACTIVE"
    RETIRING = "RETIRING"


class CommandKind(enum.StrEnum):
    """What an operator asks of the owner of an endpoint's partition."""

    SKIP_BACKLOG = "SKIP_BACKLOG"
    SKIP_DELIVERY = "SKIP_DELIVERY"
    RETRY_DELIVERY = "RETRY_DELIVERY"
    EXPIRE_BACKLOG = "EXPIRE_BACKLOG"


class EndpointKey(NamedTuple):
    """The primary key of an endpoint; names are only aliases. Ordered as the global lock order wants it.

    A tuple, since it is looked up a dozen times a delivery: no Python code runs to hash or compare it.
    """

    tenant_id: UUID
    endpoint_id: UUID

    @property
    def partition(self) -> int:
        return partition_of(self.endpoint_id)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; `routing_version` is a fresh random UUID at every change of its endpoints.

    `retry` holds for endpoints that say nothing else. `catch_up` as in `Endpoint`, for all of its endpoints.
    """

    tenant_id: UUID
    name: str
    display_name: str
    labels: Mapping[str, str]
    require_registered_event_types: bool
    routing_version: UUID
    etag: UUID
    create_time: datetime
    update_time: datetime
    retry: RetryOverrides = NO_RETRY_OVERRIDES
    publish_quota: PublishQuota = NO_PUBLISH_QUOTA
    state: TenantState = TenantState.ACTIVE
    state_reason: str = ""
    catch_up: CatchUp | None = None


@dataclass(frozen=True, slots=True)
class CatchUp:
    """After a resume: deliveries of rows not younger than `until` go out at `per_second` at most (per endpoint)."""

    per_second: float
    until: datetime


@dataclass(frozen=True, slots=True)
class EventType:
    """A registered event type of one tenant. An archived type is refused on Publish where registration is required."""

    tenant_id: UUID
    name: str
    description: str
    labels: Mapping[str, str]
    archived: bool
    etag: UUID
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """What delivery needs to know of an endpoint; each change makes a new revision.

    `timeout_s` is the deadline of one attempt including the response body. `max_in_flight` binds the keyed and
    unordered modes. `fallback_urls` are used in turn while the circuits of those before them are open.
    `allowed_networks` (CIDR) narrows where it may be; `ca_certificates` (PEM) stands for the system's roots.
    """

    url: str
    timeout_s: float
    headers: Mapping[str, str]
    max_in_flight: int
    ordering_mode: OrderingMode
    trace_propagation: TracePropagation
    fallback_urls: tuple[str, ...] = ()
    retry: RetryOverrides = NO_RETRY_OVERRIDES
    exhaustion: ExhaustionPolicy = ExhaustionPolicy.DEAD_LETTER
    rate_limit: RateLimit | None = None
    circuit: CircuitOverrides = NO_CIRCUIT_OVERRIDES
    auto_disable: AutoDisableOverrides = NO_AUTO_DISABLE_OVERRIDES
    allowed_networks: tuple[str, ...] = ()
    ca_certificates: str = field(default="", repr=False)
    http_signatures: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as the API shows it, keys aside."""

    key: EndpointKey
    name: str
    description: str
    labels: Mapping[str, str]
    event_types: tuple[str, ...]
    state: EndpointState
    state_reason: str
    settings: EndpointSettings
    revision: int
    etag: UUID
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None = None
    catch_up: CatchUp | None = None
    authentication: Authentication | None = None
    sealed_credentials: bytes | None = field(default=None, repr=False)


class SigningAlgorithm(enum.StrEnum):
    """How a key signs, as stored."""

    HMAC_SHA256 = "HMAC_SHA256"
    ED25519 = "ED25519"


@dataclass(frozen=True, slots=True)
class SealedSigningKey:
    """A signing key as stored: the secret sealed by `security.secrets`. `expire_time` None means for good.
    `public_key` is the 32 bytes of an Ed25519 key, else empty."""

    key_id: str
    sealed: bytes = field(repr=False)
    create_time: datetime
    expire_time: datetime | None
    algorithm: SigningAlgorithm = SigningAlgorithm.HMAC_SHA256
    public_key: bytes = b""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One event to publish. `event_id` is the caller's or generated; `digest` is set only for a caller's id.

    `data` are the bytes that receivers get, exactly. `traceparent` is the W3C header of the publish call, or None.
    """

    event_id: str
    digest: bytes | None
    type: str
    data: bytes
    content_type: str
    ordering_key: str | None
    attributes: Mapping[str, str]
    source: str | None
    subject: str | None
    time: datetime | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """What became of one event of an accepted request."""

    event_id: str
    duplicate: bool
    endpoint_count: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event read back; `publish_time` is the partition time."""

    tenant_id: UUID
    event_id: str
    publish_time: datetime
    type: str
    data: bytes | None
    content_type: str
    ordering_key: str | None
    attributes: Mapping[str, str]
    source: str | None
    subject: str | None
    time: datetime | None
    expunge_time: datetime | None = None


@dataclass(slots=True, eq=False, weakref_slot=True)
class Payload:
    """What every delivery of one event shares; held weakly by the cache, so it lives as long as a lane wants it."""

    data: bytes
    content_type: str
    traceparent: str | None


@dataclass(slots=True, eq=False)
class OutboxRow:
    """One delivery to make: row `seq` of an endpoint. `payload` is None until it has been read.

    `attempts`, `first_attempt_time` (when the first began) and `last_attempt_time` (when the last ended) tell what
    former owners tried; they are 0 and None for a fresh row. `settled` marks a row that needs no sending: a success or
    a decision is on record. `replay_of` is the sequence that a replay or redrive repeats (0: the endpoint never had
    it), None for a row of a publish. `parked`: read in its place, though it waits aside as a parked delivery.
    """

    key: EndpointKey
    seq: int
    time: datetime
    event_id: str
    event_time: datetime
    type: str
    ordering_key: str | None
    revision: int
    data_bytes: int
    payload: Payload | None = None
    attempts: int = 0
    first_attempt_time: datetime | None = None
    last_attempt_time: datetime | None = None
    settled: bool = False
    replay_of: int | None = None
    parked: bool = False


@dataclass(slots=True)  # not frozen: that would triple what making one costs
class Attempt:
    """One attempt as a fact: appended by whoever made it, owner or not. A success is the acknowledgement.

    `url_index` is 0 for the endpoint's URL, n for its n-th fallback URL. `number` is that of the last attempt that
    counted, this one included where it counts: so the highest one on record is how many have been used up.
    """

    key: EndpointKey
    seq: int
    event_id: str
    epoch: int
    number: int
    start_time: datetime
    duration_s: float
    outcome: Outcome
    status_code: int | None
    error: str | None
    response_excerpt: bytes | None
    url_index: int = 0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How a ping to an endpoint went. `error` is None where a whole answer came, whatever its status.

    `response_excerpt` is the beginning of the answer's body, bounded by the settings; nothing of a ping is stored.
    """

    event_id: str
    outcome: Outcome
    status_code: int | None
    latency_s: float
    response_excerpt: bytes
    error: str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The end of a delivery without success, taken under the lease (`epoch`) by `actor` for `reason`."""

    key: EndpointKey
    seq: int
    event_id: str
    event_time: datetime
    kind: DecisionKind
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class Halt:
    """A delivery without a further attempt, at which its endpoint (or its ordering key) waits for an operator.

    The `last_*` fields tell how the last attempt ended, for those who are told of it.
    """

    key: EndpointKey
    seq: int
    event_id: str
    event_time: datetime
    type: str
    ordering_key: str | None
    ordering_mode: OrderingMode
    reason: str
    attempts: int
    last_outcome: Outcome | None
    last_status_code: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a dead letter keeps beside its `Decision`; the payload and its content type are copied from the event.

    `attempts` counts those made; the `last_*` fields tell how the last one ended, None where none was made.
    """

    key: EndpointKey
    seq: int
    event_id: str
    event_time: datetime
    type: str
    ordering_key: str | None
    attempts: int
    last_outcome: Outcome | None
    last_status_code: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """An operator's request, executed by the owner of the endpoint's partition. `arguments` is plain JSON."""

    command_id: UUID
    key: EndpointKey
    kind: CommandKind
    arguments: Mapping[str, int | str]
    actor: str
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """One partition as the database sees it. `owner` is an instance id, None when released."""

    partition: int
    epoch: int
    owner: UUID | None
    expire_time: datetime
    renewals: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One running dispatcher process as its last heartbeat told."""

    instance_id: UUID
    address: str
    version: str
    start_time: datetime
    heartbeat_time: datetime
    draining: bool
    partitions: int
    in_flight: int
    delivered_total: int
    due_backlog: int = 0
    due_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetLoad:
    """What the running instances keep waiting: on how many hosts (pods) they run that do not drain, the deliveries that
    are due, and for how long the one that waits longest has been."""

    host_count: int
    due_backlog: int
    due_age_s: float


@dataclass(frozen=True, slots=True)
class Cursor:
    """The low watermark: everything up to and including `seq` is settled. `time` is that row's partition time."""

    key: EndpointKey
    seq: int
    time: datetime
