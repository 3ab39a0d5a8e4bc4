"""When an endpoint is disabled by itself, and what a success takes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dispatcher.delivery.health import DisablePolicy, DisableReason, EndpointHealth, StoredHealth, Trouble

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = DisablePolicy(failing_s=100, exhausted_heads=3)


def test_nothing_but_failures_for_too_long() -> None:
    health = EndpointHealth()
    health.failed(NOW)
    health.failed(NOW + timedelta(seconds=99))
    assert health.reason_to_disable(POLICY, NOW + timedelta(seconds=99)) is None
    assert health.reason_to_disable(POLICY, NOW + timedelta(seconds=100)) is DisableReason.FAILING
    health.succeeded()
    health.failed(NOW + timedelta(seconds=100))
    assert health.reason_to_disable(POLICY, NOW + timedelta(seconds=150)) is None


def test_three_exhausted_heads_in_a_row() -> None:
    health = EndpointHealth()
    for _ in range(2):
        health.exhausted()
    health.succeeded()
    for _ in range(2):
        health.exhausted()
    assert health.reason_to_disable(POLICY, NOW) is None
    health.exhausted()
    assert health.reason_to_disable(POLICY, NOW) is DisableReason.EXHAUSTED
    assert health.reason_to_disable(DisablePolicy(failing_s=100, exhausted_heads=3, off=True), NOW) is None


def test_the_record_of_a_former_owner_goes_on() -> None:
    health = EndpointHealth.of(StoredHealth(NOW, 2, Trouble.HALTED))
    assert health.reason_to_disable(POLICY, NOW + timedelta(seconds=100)) is DisableReason.FAILING


def test_enabling_forgets_the_failures_and_a_success_takes_back_what_was_told() -> None:
    health = EndpointHealth.of(StoredHealth(NOW, 3, Trouble.DISABLED))
    health.enabled()
    assert health.reason_to_disable(POLICY, NOW + timedelta(days=9)) is None
    assert not health.has_recovered
    health.succeeded()
    assert health.has_recovered
    assert health.trouble is None


def test_a_success_of_another_key_does_not_end_a_halt() -> None:
    health = EndpointHealth(trouble=Trouble.HALTED)
    health.succeeded(is_halted=True)
    assert not health.has_recovered
    health.succeeded()
    assert health.has_recovered


def test_a_success_of_one_that_is_well_is_nothing_to_tell() -> None:
    health = EndpointHealth()
    health.succeeded()
    assert health == EndpointHealth()
