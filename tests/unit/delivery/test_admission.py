"""An endpoint's gate: limits, holds, circuits and fallbacks together; it asks for nothing it would not keep to."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.delivery.admission import TRIAL_MAX_S, Admission, AdmissionPolicy, CircuitChange
from dispatcher.delivery.circuit import CircuitPolicy, Transition
from dispatcher.model import CatchUp
from dispatcher.policy import ExponentialBackoff, RateLimit

TIME = datetime(2026, 1, 1, tzinfo=UTC)
CIRCUIT = CircuitPolicy(attempts_min=2, open_s=10)
POLICY = AdmissionPolicy(("http://a/", "http://b/", "http://c/"), circuit=CIRCUIT)


def admission(policy: AdmissionPolicy = POLICY) -> Admission:
    made = Admission(policy)
    made.configure(policy, 0)
    return made


def attempt(gate: Admission, now: float, status_code: int | None, hold_s: float | None = None) -> int:
    assert gate.opens_at(now, TIME) <= now
    index = gate.begin(now, TIME)
    failed = status_code != 204
    gate.ended(now, gate.policy.urls[index], failed=failed, status_code=status_code, hold_s=hold_s)
    return index


def test_fallbacks_are_used_in_turn_and_the_first_again_when_it_is_back() -> None:
    gate = admission()
    used = [attempt(gate, 0, 500) for _ in range(4)]
    assert used == [0, 0, 1, 1]
    assert attempt(gate, 1, 204) == 2
    assert attempt(gate, 10, 500) == 0  # the probe of the first
    assert attempt(gate, 10, 204) == 1  # and of the second
    assert attempt(gate, 20, 204) == 0
    assert attempt(gate, 20, 204) == 0


def test_with_all_circuits_open_nothing_begins_until_the_first_probe() -> None:
    gate = admission()
    for now in range(6):
        attempt(gate, now, None)
    assert gate.opens_at(6, TIME) == 11
    assert [index for index, _ in gate.open_circuits] == [0, 1, 2]


def test_changes_of_circuits_are_told_with_their_url() -> None:
    gate = admission()
    gate.begin(0, TIME)
    gate.begin(0, TIME)
    assert gate.ended(0, "http://a/", failed=True, status_code=500, hold_s=None) == ()
    opened = gate.ended(0, "http://a/", failed=True, status_code=500, hold_s=None)
    assert opened == (CircuitChange(0, Transition.OPENED),)
    assert gate.has_another_url(0, "http://a/")
    assert not gate.has_another_url(0, "http://b/")


def test_a_retry_after_of_429_or_503_holds_the_whole_endpoint() -> None:
    for status_code, opens_at in ((429, 7), (503, 7), (500, 0)):
        gate = admission(replace(POLICY, circuit=CircuitPolicy(off=True)))
        attempt(gate, 0, status_code, hold_s=7)
        assert gate.opens_at(0, TIME) >= opens_at
        assert (gate.throttled_per_s is None) is (status_code == 500)


def test_a_catch_up_binds_what_has_waited_and_nothing_else() -> None:
    gate = admission(replace(POLICY, catch_ups=(CatchUp(0.5, TIME),)))
    attempt(gate, 0, 204)
    assert gate.opens_at(0, TIME) == pytest.approx(2)
    assert gate.opens_at(0, TIME + timedelta(seconds=1)) == 0


def test_a_changed_endpoint_keeps_its_tokens_spent_and_its_circuits_open() -> None:
    policy = replace(POLICY, rate_limit=RateLimit(1, 1))
    gate = admission(policy)
    attempt(gate, 0, 500)
    attempt(gate, 1, 500)
    gate.configure(replace(policy, urls=("http://a/", "http://d/")), 1)
    assert gate.opens_at(1, TIME) == pytest.approx(2)
    assert [index for index, _ in gate.open_circuits] == [0]
    assert not gate.is_at_rest(1)


def test_shut_it_stays_so_whatever_the_endpoint_says_meanwhile() -> None:
    gate = admission()
    gate.is_shut = True
    gate.configure(POLICY, 0)
    assert gate.opens_at(0, TIME) == math.inf


def test_an_operator_who_asks_for_an_attempt_waits_for_no_circuit_and_no_retry_after() -> None:
    gate = admission(replace(POLICY, urls=POLICY.urls[:1]))
    attempt(gate, 0, 500)
    attempt(gate, 0, 429, hold_s=60)
    assert gate.opens_at(1, TIME) == 60
    gate.try_now(1)
    assert gate.opens_at(1, TIME) == 1
    gate.begin(1, TIME)
    assert gate.opens_at(1, TIME) == 11  # one probe, no more


def test_what_a_receiver_asked_for_ends_with_its_url() -> None:
    gate = admission()
    attempt(gate, 0, 503, hold_s=60)
    assert gate.throttled_per_s is not None
    assert gate.opens_at(1, TIME) > 1
    gate.configure(replace(POLICY, urls=("https://other.example/", *POLICY.urls[1:])), 1)
    assert gate.throttled_per_s is None
    assert gate.opens_at(1, TIME) <= 1


def test_a_proxy_that_fails_only_puts_off_and_for_no_longer_than_it_has_been_failing_again() -> None:
    gate = admission()
    waits_s = [gate.proxy_failed(now, 0.5) for now in (100.0, 100.5, 104.0, 140.0, 600.0)]
    assert waits_s == [0.5, 0.5, 2.0, 20.0, 30.0]
    assert gate.opens_at(600, TIME) == 630
    assert gate.open_circuits == []
    assert gate.throttled_per_s is None
    assert not gate.is_at_rest(630)


def test_an_endpoint_never_waits_so_long_for_the_proxy_that_it_forgets_about_it() -> None:
    gate = Admission(AdmissionPolicy(("https://a",), proxy_waits=ExponentialBackoff(1.0, 7 * 86400.0, 2.0)))
    gate.configure(gate.policy, 0)
    now = 0.0
    for _ in range(100):
        wait_s = gate.proxy_failed(now, 0.999)
        assert gate.opens_at(now, TIME) - now == pytest.approx(wait_s)
        now = gate.opens_at(now, TIME)
        gate.begin(now, TIME)
        now += TRIAL_MAX_S - 1
        assert gate.is_ours(now), "until the trial has ended"
    assert 299 < wait_s < 300


def test_while_the_proxy_fails_one_attempt_begins_at_a_time() -> None:
    gate = admission()
    gate.proxy_failed(0, 0.5)
    gate.begin(1, TIME)
    assert gate.opens_at(10, TIME) > 10
    assert gate.is_ours(10)
    gate.proxy_failed(16, 0.1)
    assert gate.opens_at(16, TIME) == pytest.approx(17.6)
    attempt(gate, 18, 204)
    for _ in range(3):
        assert gate.opens_at(19, TIME) <= 19
        gate.begin(19, TIME)


def test_a_receivers_wish_holds_beyond_the_end_of_the_attempt_that_others_waited_for() -> None:
    gate = admission()
    gate.proxy_failed(0, 0.5)
    attempt(gate, 1, 503, hold_s=30)
    assert gate.opens_at(2, TIME) == 31


def test_an_attempt_that_was_lost_does_not_shut_the_gate_for_good() -> None:
    gate = admission()
    gate.proxy_failed(0, 0.5)
    gate.begin(1, TIME)
    assert gate.opens_at(61, TIME) <= 61


def test_a_proxy_that_failed_long_ago_is_forgotten() -> None:
    gate = admission()
    for now in (0, 300, 600):
        gate.proxy_failed(now, 0.5)
    assert not gate.is_at_rest(1200)
    assert gate.is_at_rest(1201)
    gate.begin(1201, TIME)
    assert gate.opens_at(1201, TIME) <= 1201
    assert gate.proxy_failed(1210, 0.5) == 0.5


def test_whatever_a_receiver_does_ends_the_waiting_for_the_proxy() -> None:
    for status_code in (204, 500):
        gate = admission()
        gate.proxy_failed(0, 0.5)
        attempt(gate, 60, status_code)
        assert gate.proxy_failed(61, 0.5) == 0.5


def test_an_operator_who_wants_an_attempt_does_not_wait_for_the_proxy() -> None:
    gate = admission()
    gate.proxy_failed(0, 0.9)
    gate.try_now(0)
    assert gate.opens_at(0, TIME) == 0
