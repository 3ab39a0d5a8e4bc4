"""Publish quotas: refused whole, with a true wait, and never for ever."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import QuotaExceededError
from dispatcher.model import NewEvent
from dispatcher.policy import PublishQuota
from dispatcher.routing import quotas
from dispatcher.routing.quotas import Quotas
from tests.support.publishing import new_event

TENANT = UUID(int=1)


class Clock:
    """What the quotas take for the time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def events(count: int, size: int = 2) -> list[NewEvent]:
    return [new_event(data=b"x" * size) for _ in range(count)]


def wait_s(granting: Quotas, quota: PublishQuota, wanted: list[NewEvent], tenant: UUID = TENANT) -> float:
    """0 where it is granted, else the wait that the refusal tells."""
    try:
        granting.charge(tenant, "acme", quota, wanted)
    except QuotaExceededError as error:
        return error.retry_after_s
    return 0.0


def test_a_refusal_tells_a_wait_that_is_long_enough_and_no_longer() -> None:
    clock = Clock()
    granting, quota = Quotas(lambda: 1, clock), PublishQuota(events_per_second=10)
    assert wait_s(granting, quota, events(10)) == 0
    assert wait_s(granting, quota, events(5)) == pytest.approx(0.5)
    clock.now = 0.4
    assert wait_s(granting, quota, events(5)) == pytest.approx(0.1)
    clock.now = 0.5
    assert wait_s(granting, quota, events(5)) == 0


def test_what_is_refused_costs_nothing_of_either_bound() -> None:
    clock = Clock()
    granting, quota = Quotas(lambda: 1, clock), PublishQuota(events_per_second=100, bytes_per_second=1000)
    assert wait_s(granting, quota, events(1, 1000)) == 0
    for _ in range(50):
        assert wait_s(granting, quota, events(99, 1)) > 0  # for its bytes
    clock.now = 0.1
    assert wait_s(granting, quota, events(99, 1)) == 0


@given(st.integers(1, 1000), st.integers(1, 5000))
def test_a_call_larger_than_the_quota_is_let_through_once_and_paid_for(per_second: int, count: int) -> None:
    clock = Clock()
    granting, quota = Quotas(lambda: 1, clock), PublishQuota(events_per_second=per_second)
    large = events(1) * count
    assert wait_s(granting, quota, large) == 0
    missing = min(count, per_second) - (per_second - count)
    told = wait_s(granting, quota, large)
    assert told == pytest.approx(max(0, missing) / per_second)
    clock.now = told
    assert told == 0 or wait_s(granting, quota, large) == 0


def test_instances_share_a_quota() -> None:
    instances = 2
    granting, quota = Quotas(lambda: instances, Clock()), PublishQuota(events_per_second=10)
    assert wait_s(granting, quota, events(5)) == 0
    assert wait_s(granting, quota, events(1)) > 0
    other = UUID(int=2)
    instances = 1
    assert wait_s(granting, quota, events(10), other) == 0


def test_tenants_pay_for_themselves_and_one_without_a_quota_for_nothing() -> None:
    granting, quota = Quotas(lambda: 1, Clock()), PublishQuota(events_per_second=1)
    assert wait_s(granting, quota, events(1)) == 0
    assert wait_s(granting, quota, events(1)) > 0
    assert wait_s(granting, quota, events(1), UUID(int=2)) == 0
    assert wait_s(granting, PublishQuota(), events(1000)) == 0


def test_the_tenants_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "TENANTS_MAX", 3)
    granting, quota = Quotas(lambda: 1, Clock()), PublishQuota(events_per_second=1)
    for n in range(10):
        assert wait_s(granting, quota, events(1), UUID(int=n)) == 0
    assert len(granting._uses) == 3
