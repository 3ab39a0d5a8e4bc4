"""What the walk over a tenant's endpoints comes to once the samples are in."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from dispatcher.model import EndpointKey, EndpointState, Tenant, TenantState
from dispatcher.policy import NO_PUBLISH_QUOTA, NO_RETRY_OVERRIDES
from dispatcher.store import tenant_status
from dispatcher.store.recent import StatisticsLimits
from dispatcher.store.statistics import AttemptRead, Sample
from dispatcher.store.tenant_status import Standing, TenantStatus, Walk

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TENANT_ID = uuid.UUID(int=1)
LIMITS = StatisticsLimits(window_s=10.0, worst_max=2)


def tenant(state: TenantState = TenantState.ACTIVE) -> Tenant:
    return Tenant(
        TENANT_ID,
        "acme",
        "",
        {},
        require_registered_event_types=False,
        routing_version=TENANT_ID,
        etag=TENANT_ID,
        create_time=NOW,
        update_time=NOW,
        state=state,
        state_reason="",
        retry=NO_RETRY_OVERRIDES,
        publish_quota=NO_PUBLISH_QUOTA,
    )


def standing(
    number: int,
    backlog: int,
    *,
    age_s: float = 1.0,
    state: EndpointState = EndpointState.ACTIVE,
    is_halted: bool = False,
) -> Standing:
    return Standing(
        EndpointKey(TENANT_ID, uuid.UUID(int=number)),
        f"e{number}",
        state,
        is_halted,
        backlog,
        NOW - timedelta(seconds=age_s) if backlog else None,
        100,
        NOW,
        100 + backlog,
    )


def sampled(*delivered: int, committed: int = 0) -> Sample:
    """Of the last ten seconds."""
    return Sample(10.0, False, [AttemptRead(seq, 0.1, True) for seq in delivered], [], committed, 10.0)


def status_of(
    pairs: list[tuple[Standing, Sample]], state: TenantState = TenantState.ACTIVE, **walked: int
) -> TenantStatus:
    standings = [standing for standing, _ in pairs]
    walk = Walk(
        total=len(pairs),
        backlog=sum(s.backlog for s in standings),
        held=sum(s.backlog for s in standings if s.is_held),
        at_work=walked.get("at_work", len(pairs)),
        is_partial=bool(walked.get("is_partial")),
        standings=standings,
    )
    return tenant_status._status(tenant(state), NOW, tenant_status.corrected(walk, pairs), LIMITS, pairs)


def test_what_was_delivered_since_the_checkpoint_is_no_backlog() -> None:
    found = status_of([(standing(1, 3), sampled(99, 100, 101, 103)), (standing(2, 2), sampled(101, 102, 103))])
    assert found.walk.backlog == 1
    assert [s.name for s in found.largest] == ["e1"], "nothing of the other one waits"
    assert found.oldest_time == NOW - timedelta(seconds=1)


def test_the_worst_are_named_by_age_and_by_backlog_and_no_more_of_them_than_wanted() -> None:
    pairs = [(standing(n, n, age_s=10.0 - n), sampled()) for n in range(1, 6)]
    found = status_of(pairs)
    assert [s.name for s in found.largest] == ["e5", "e4"]
    assert [s.name for s in found.oldest] == ["e1", "e2"]
    assert found.walk.backlog == 15


def test_a_tenant_drains_by_the_rates_of_what_is_not_held() -> None:
    """Two a second leave and one comes in; what is paused or halted neither counts nor drains."""
    flowing = (standing(1, 40), sampled(*range(1, 21), committed=10))
    paused = (standing(2, 500, state=EndpointState.PAUSED), sampled(committed=900))
    halted = (standing(3, 60, is_halted=True), sampled())
    found = status_of([flowing, paused, halted])
    assert (found.walk.backlog, found.walk.held) == (600, 560)
    assert found.time_to_drain_s == 40.0


def test_a_tenant_of_which_all_is_held_does_not_drain() -> None:
    backlog = [(standing(1, 40), sampled(*range(1, 21)))]
    held = status_of(backlog, TenantState.PAUSED)
    assert (held.walk.held, held.time_to_drain_s) == (40, None)
    assert status_of([(standing(1, 40, is_halted=True), sampled())]).time_to_drain_s is None
    assert status_of([(standing(1, 0), sampled())], TenantState.PAUSED).time_to_drain_s == 0.0


def test_a_growing_backlog_does_not_drain() -> None:
    assert status_of([(standing(1, 40), sampled(1, 2, committed=3))]).time_to_drain_s is None


def test_rates_of_some_endpoints_say_nothing_of_when_all_are_done() -> None:
    pair = [(standing(1, 40), sampled(*range(1, 21)))]
    whole = status_of(pair)
    assert (whole.time_to_drain_s, whole.statistics is not None and whole.statistics.truncated) == (20.0, False)
    for more in ({"at_work": 2}, {"is_partial": 1}):
        found = status_of(pair, **more)
        assert found.time_to_drain_s is None
        assert found.statistics is not None
        assert found.statistics.truncated


def test_without_samples_the_backlog_is_told_all_the_same() -> None:
    walk = Walk(total=1, backlog=7, at_work=1, standings=[standing(1, 7)])
    found = tenant_status._status(tenant(), NOW, walk, LIMITS, None)
    assert (found.statistics, found.time_to_drain_s, found.walk.backlog, len(found.largest)) == (None, None, 7, 1)
