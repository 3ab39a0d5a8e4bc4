"""When the next attempt is due, and when a backlog will be gone, as an endpoint's status says it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from webhooks.v1 import delivery_pb2

from dispatcher.api.convert.deliveries import first_attempt_time, next_attempt_time, status_message
from dispatcher.model import Endpoint, EndpointState, Outcome, TenantState
from dispatcher.policy import NO_RETRY_OVERRIDES, ExponentialBackoff, RetryDefaults, RetrySchedule
from dispatcher.store.endpoint_status import EndpointStatus
from dispatcher.store.endpoint_troubles import EndpointTroubles
from dispatcher.store.statistics import DeliveryStatistics
from tests.support.deliveries import key_of
from tests.support.endpoints import SETTINGS

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SOON, LATER, MUCH_LATER = (NOW + timedelta(seconds=s) for s in (10, 60, 3600))
RETRY = RetryDefaults(RetrySchedule((5.0,)), ExponentialBackoff(1.0, 60.0, 2.0), attempts_max=9, age_max_s=60.0)
ENDPOINT = Endpoint(
    key=key_of(),
    name="billing",
    description="",
    labels={},
    event_types=("*",),
    state=EndpointState.ACTIVE,
    state_reason="",
    settings=SETTINGS,
    revision=1,
    etag=UUID(int=1),
    create_time=NOW,
    update_time=NOW,
)
TROUBLES = EndpointTroubles(
    halt=None,
    halt_count=0,
    parked_count=0,
    lowest_parked=None,
    lowest_parked_failed=None,
    oldest_parked_time=None,
    parked_due=None,
    circuits=(),
    throttle_per_s=None,
    failing_since=None,
    exhausted_heads=0,
    catch_up=None,
    tenant_state=TenantState.ACTIVE,
    tenant_retry=NO_RETRY_OVERRIDES,
)
STATUS = EndpointStatus(
    endpoint=ENDPOINT,
    last_sequence=90,
    settled_through=0,
    backlog_count=90,
    backlog_capped=False,
    oldest_pending_time=NOW,
    blocked_by=None,
    blocked_due=None,
    now=NOW,
    troubles=TROUBLES,
)
RECENT = DeliveryStatistics(
    window_s=300.0,
    truncated=False,
    endpoint_count=1,
    attempt_count=9,
    succeeded_count=9,
    success_ratio=1.0,
    attempts_per_s=9.0,
    delivered_per_s=9.0,
    committed_per_s=6.0,
    durations=None,
    payload_bytes_p50=1,
    payload_bytes_max=1,
)


def parked(due: datetime, *probes: datetime) -> EndpointStatus:
    circuits = [{"url_index": i, "probe_time": probe.isoformat()} for i, probe in enumerate(probes)]
    return replace(STATUS, troubles=replace(TROUBLES, parked_due=due, circuits=circuits))


def test_the_first_attempt_is_that_of_the_delivery_due_first() -> None:
    assert first_attempt_time(STATUS, None) is None
    assert first_attempt_time(STATUS, SOON) == SOON
    assert first_attempt_time(parked(LATER), None) == LATER
    assert first_attempt_time(parked(LATER), SOON) == SOON
    assert first_attempt_time(parked(SOON), LATER) == SOON


def test_nothing_is_attempted_before_the_probe_of_a_circuit_where_no_url_is_left() -> None:
    assert first_attempt_time(parked(SOON, LATER), None) == LATER
    assert first_attempt_time(parked(LATER, SOON), None) == LATER
    two_urls = replace(ENDPOINT, settings=replace(SETTINGS, fallback_urls=("https://other.example/",)))
    assert first_attempt_time(replace(parked(SOON, LATER), endpoint=two_urls), None) == SOON
    assert first_attempt_time(replace(parked(SOON, MUCH_LATER, LATER), endpoint=two_urls), None) == LATER


@pytest.mark.parametrize("ago_s", [0.5, 1000.0])
def test_what_the_egress_proxy_failed_is_tried_again_within_the_services_own_bound_whenever_that_was(
    ago_s: float,
) -> None:
    """Few of those attempts are on record: the last one that is may be old."""
    last = SimpleNamespace(
        start_time=NOW - timedelta(seconds=ago_s), duration_s=0.5, outcome=Outcome.EGRESS_PROXY_FAILED, number=0
    )
    blocked = replace(STATUS, blocked_by=cast("Any", SimpleNamespace(seq=1, last_attempt=last)))
    assert next_attempt_time(blocked, RETRY) == NOW + timedelta(seconds=RETRY.exponential.max_s)


HELD = {
    "paused": replace(STATUS, endpoint=replace(ENDPOINT, state=EndpointState.PAUSED)),
    "disabled": replace(STATUS, endpoint=replace(ENDPOINT, state=EndpointState.DISABLED)),
    "deleted": replace(STATUS, endpoint=replace(ENDPOINT, delete_time=NOW)),
    "its tenant paused": replace(STATUS, troubles=replace(TROUBLES, tenant_state=TenantState.PAUSED)),
}


@pytest.mark.parametrize("why", HELD)
def test_what_is_held_has_no_next_attempt_and_does_not_drain(why: str) -> None:
    held = HELD[why]
    held = replace(held, troubles=replace(held.troubles, parked_due=SOON))
    assert first_attempt_time(held, None) is None
    assert_says_nothing_of_its_end(status_message("acme", held, RETRY, RECENT))


def test_a_halted_endpoint_does_not_drain() -> None:
    halted = replace(STATUS, troubles=replace(TROUBLES, halt_count=1))
    assert_says_nothing_of_its_end(status_message("acme", halted, RETRY, RECENT))


def assert_says_nothing_of_its_end(message: delivery_pb2.EndpointStatus) -> None:
    assert message.HasField("recent")
    assert not message.HasField("time_to_drain")
    assert not message.HasField("expected_wait")


def test_a_backlog_drains_by_what_leaves_it_less_what_comes_in() -> None:
    message = status_message("acme", STATUS, RETRY, RECENT)
    assert (message.time_to_drain.seconds, message.expected_wait.seconds) == (30, 10)
    growing = status_message("acme", STATUS, RETRY, replace(RECENT, committed_per_s=9.0))
    assert not growing.HasField("time_to_drain")
    assert growing.expected_wait.seconds == 10


def test_without_a_backlog_nothing_is_waited_for() -> None:
    none_left = replace(HELD["paused"], backlog_count=0, oldest_pending_time=None)
    message = status_message("acme", none_left, RETRY, RECENT)
    assert message.HasField("time_to_drain")
    assert (message.time_to_drain.ToNanoseconds(), message.expected_wait.ToNanoseconds()) == (0, 0)


def test_where_statistics_could_not_be_had_nothing_is_made_up() -> None:
    message = status_message("acme", STATUS, RETRY, None)
    assert message.backlog_count == 90
    for name in ("recent", "time_to_drain", "expected_wait"):
        assert not message.HasField(name), name
