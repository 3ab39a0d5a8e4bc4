"""Timestamps and durations (AIP-142). Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# google/protobuf/timestamp.proto: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z
SECONDS_MIN = -62_135_596_800
SECONDS_MAX = 253_402_300_799
DURATION_SECONDS_MAX = 315_576_000_000


def timestamp(time: datetime) -> Timestamp:
    """An aware time as a Timestamp."""
    microseconds = (time - EPOCH) // _MICROSECOND
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def duration(seconds: float) -> Duration:
    """Non-negative seconds as a Duration."""
    result = Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result


def is_valid_timestamp(value: Timestamp) -> bool:
    return SECONDS_MIN <= value.seconds <= SECONDS_MAX and 0 <= value.nanos < 1_000_000_000


def to_datetime(value: Timestamp) -> datetime:
    """A valid Timestamp as a time in UTC; below the microsecond it is cut off, as PostgreSQL stores no more."""
    return EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def to_seconds(value: Duration) -> float | None:
    """A Duration in seconds, None where it is not valid by its own definition."""
    if abs(value.seconds) > DURATION_SECONDS_MAX or abs(value.nanos) >= 1_000_000_000:
        return None
    if value.seconds * value.nanos < 0:
        return None
    # One division of integers is rounded once: 1.852 s come back as 1.852.
    return (value.seconds * 1_000_000_000 + value.nanos) / 1_000_000_000
