"""What is typed about failures, as proto JSON."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.cli.failure import UsageError
from dispatcher.cli.failure_options import EndpointFailureOptions, Exhaustion, RetryOptions


def test_a_policy_is_one_field_of_what_was_given() -> None:
    assert RetryOptions().fields("p") == {}
    given = RetryOptions(schedule="5s,5m", max_attempts=3, max_age="1d", final_statuses=[400, 422])
    policy: dict[str, Any] = {"schedule": {"waits": ["5s", "300s"]}, "maxAttempts": 3, "maxAge": "86400s"}
    assert given.fields("p") == {"p": {**policy, "finalStatusCodes": [400, 422]}}
    assert RetryOptions(min_backoff="500ms").fields("p") == {"p": {"exponential": {"minBackoff": "0.5s"}}}
    assert RetryOptions(clear=True).fields("p") == {"p": {}}


@pytest.mark.parametrize(
    "options",
    [
        RetryOptions(schedule="5s", max_backoff="1m"),
        RetryOptions(clear=True, max_attempts=3),
        RetryOptions(schedule="5s,,6s"),
        RetryOptions(max_age="soon"),
    ],
)
def test_what_makes_no_sense_together_is_refused(options: RetryOptions) -> None:
    with pytest.raises(UsageError):
        options.fields("p")


def test_an_endpoints_word_is_set_field_by_field() -> None:
    assert EndpointFailureOptions().fields() == {}
    said = EndpointFailureOptions(Exhaustion.HALT, ["https://b/"], 50, 100, circuit=False, auto_disable=True)
    assert said.fields() == {
        "http.fallbackUrls": ["https://b/"],
        "deliverySettings.exhaustionPolicy": "EXHAUSTION_POLICY_HALT",
        "deliverySettings.rateLimit": {"perSecond": 50, "burst": 100},
        "deliverySettings.circuitBreaker": {"off": True},
        "deliverySettings.autoDisable": {"off": False},
    }


def test_a_rate_of_nothing_takes_the_limit_away() -> None:
    assert EndpointFailureOptions(rate_limit=0).fields() == {"deliverySettings.rateLimit": None}
    with pytest.raises(UsageError):
        EndpointFailureOptions(burst=3).fields()
