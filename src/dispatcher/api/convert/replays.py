"""Replays: checks of requests, and messages of records. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import assert_never

from google.protobuf.timestamp_pb2 import Timestamp
from webhooks.v1 import replay_pb2

from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.names import new_id, read_name
from dispatcher.api.convert.times import is_valid_timestamp, timestamp, to_datetime
from dispatcher.routing.patterns import validate_pattern
from dispatcher.store.replay_counts import Wanted
from dispatcher.store.replays import Replay, ReplayKind

PATTERN = "tenants/{tenant}/replays/{replay}"
PATTERNS_MAX = 100
RATE_MIN_PER_S = 0.1
RATE_MAX_PER_S = 10_000.0
_SELECTIONS: dict[int, str] = {
    replay_pb2.ReplayEvents.SELECTION_UNSPECIFIED: "ALL",
    replay_pb2.ReplayEvents.SELECTION_ALL: "ALL",
    replay_pb2.ReplayEvents.SELECTION_DELIVERED: "DELIVERED",
    replay_pb2.ReplayEvents.SELECTION_DEAD_LETTERED: "DEAD_LETTERED",
}


@dataclass(frozen=True, slots=True)
class ReadReplay:
    """A checked CreateReplay: ids of tenant, replay and endpoint, what is wanted, and the rate (None: default)."""

    tenant: str
    name: str
    endpoint: str
    wanted: Wanted
    rate_per_s: float | None


def read_create(request: replay_pb2.CreateReplayRequest) -> ReadReplay:
    """Errors: InvalidRequestError."""
    violations = Violations()
    (tenant,) = read_name(request.parent, "tenants/{tenant}", violations, field="parent")
    name = new_id(request.replay_id, "replay_id", violations)
    owner, endpoint = read_name(
        request.replay.endpoint, "tenants/{tenant}/endpoints/{endpoint}", violations, field="replay.endpoint"
    )
    if owner != tenant:
        violations.add("replay.endpoint", "must be an endpoint of the parent")
    wanted = _read_source(request.replay, violations)
    rate = read_rate(request.replay.max_per_second, "replay.max_per_second", violations)
    violations.raise_if_any()
    return ReadReplay(tenant, name, endpoint, wanted, rate)


def read_rate(value: float, field: str, violations: Violations) -> float | None:
    """Deliveries per second; None for 0, the default."""
    if value and not RATE_MIN_PER_S <= value <= RATE_MAX_PER_S:
        violations.add(field, f"must be {RATE_MIN_PER_S:g} to {RATE_MAX_PER_S:g}, or 0 for the default")
    return value or None


def _read_source(replay: replay_pb2.Replay, violations: Violations) -> Wanted:
    match replay.WhichOneof("source"):
        case "replay_events":
            return _read_events(replay.replay_events, violations)
        case "backfill_endpoint":
            source = replay.backfill_endpoint
            start, end = _read_times(source, "replay.backfill_endpoint", violations)
            return Wanted(ReplayKind.BACKFILL_ENDPOINT, start, end)
        case _:
            violations.add("replay", "replay_events or backfill_endpoint must be set")
            return Wanted(ReplayKind.REPLAY_EVENTS, None, None)


def _read_events(source: replay_pb2.ReplayEvents, violations: Violations) -> Wanted:
    field = "replay.replay_events"
    start, end = _read_times(source, field, violations)
    if len(source.event_types) > PATTERNS_MAX:
        violations.add(f"{field}.event_types", f"must hold at most {PATTERNS_MAX} patterns")
    for i, pattern in enumerate(islice(source.event_types, PATTERNS_MAX)):
        problem = validate_pattern(pattern)
        if problem is not None:
            violations.add(f"{field}.event_types[{i}]", problem)
    selection = _SELECTIONS.get(source.selection)
    if selection is None:
        violations.add(f"{field}.selection", "must be ALL, DELIVERED or DEAD_LETTERED")
    return Wanted(ReplayKind.REPLAY_EVENTS, start, end, tuple(source.event_types), selection or "ALL")


def _read_times(
    source: replay_pb2.ReplayEvents | replay_pb2.BackfillEndpoint, field: str, violations: Violations
) -> tuple[datetime | None, datetime | None]:
    start = _read_time(source.start_time, f"{field}.start_time", violations) if source.HasField("start_time") else None
    end = _read_time(source.end_time, f"{field}.end_time", violations) if source.HasField("end_time") else None
    if not source.HasField("start_time"):
        violations.add(f"{field}.start_time", "must be set")
    elif start is not None and end is not None and start >= end:
        violations.add(f"{field}.end_time", "must be later than start_time")
    return start, end


def _read_time(value: Timestamp, field: str, violations: Violations) -> datetime | None:
    if not is_valid_timestamp(value):
        violations.add(field, "must be a time between the years 1 and 9999")
        return None
    return to_datetime(value)


def replay_message(tenant: str, replay: Replay) -> replay_pb2.Replay:
    """A replay as the API shows it."""
    message = replay_pb2.Replay(
        name=f"tenants/{tenant}/replays/{replay.name}",
        endpoint=f"tenants/{tenant}/endpoints/{replay.endpoint_name}",
        max_per_second=replay.rate_per_s,
        state=replay_pb2.Replay.State.Value(f"STATE_{replay.state.value}"),
        matched_count=replay.matched_count,
        appended_count=replay.appended_count,
        error=replay.error,
        actor=replay.actor,
        create_time=timestamp(replay.create_time),
        update_time=timestamp(replay.update_time),
    )
    if replay.complete_time is not None:
        message.complete_time.CopyFrom(timestamp(replay.complete_time))
    _add_source(message, replay)
    return message


def planned_message(tenant: str, read: ReadReplay, matched_count: int, rate_per_s: float) -> replay_pb2.Replay:
    """The answer of a dry run."""
    return replay_pb2.Replay(
        endpoint=f"tenants/{tenant}/endpoints/{read.endpoint}", max_per_second=rate_per_s, matched_count=matched_count
    )


def _add_source(message: replay_pb2.Replay, replay: Replay) -> None:
    said = replay.arguments
    start = timestamp(datetime.fromisoformat(said["start_time"]))
    end = timestamp(datetime.fromisoformat(said["end_time"]))
    match replay.kind:
        case ReplayKind.REPLAY_EVENTS:
            message.replay_events.CopyFrom(
                replay_pb2.ReplayEvents(
                    start_time=start,
                    end_time=end,
                    event_types=said["event_types"],
                    selection=replay_pb2.ReplayEvents.Selection.Value(f"SELECTION_{said['selection']}"),
                )
            )
        case ReplayKind.BACKFILL_ENDPOINT:
            message.backfill_endpoint.CopyFrom(replay_pb2.BackfillEndpoint(start_time=start, end_time=end))
        case ReplayKind.REDRIVE_DEAD_LETTERS:
            message.redrive_dead_letters.CopyFrom(replay_pb2.RedriveSource(filter=said.get("filter", "")))
        case _:
            assert_never(replay.kind)
