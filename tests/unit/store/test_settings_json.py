"""Settings as JSON, between releases."""

from __future__ import annotations

import orjson
from hypothesis import given

from dispatcher.model import EndpointSettings, OrderingMode, TracePropagation
from dispatcher.policy import ExhaustionPolicy, PublishQuota, RetryOverrides
from dispatcher.store.settings_json import (
    settings_from_json,
    settings_to_json,
    tenant_settings_from_json,
    tenant_settings_to_json,
)
from tests.support import policies

SETTINGS = EndpointSettings(
    "https://a.example/", 2.5, {"x-a": "1"}, 8, OrderingMode.ORDERED_BY_KEY, TracePropagation.CONTINUE
)


def test_settings_come_back_as_they_went() -> None:
    assert settings_from_json(settings_to_json(SETTINGS)) == SETTINGS


def test_what_a_newer_release_stored_is_ignored_when_read_and_kept_when_written() -> None:
    newer = {**settings_to_json(SETTINGS), "transform": "x"}
    assert settings_from_json(newer) == SETTINGS
    assert settings_to_json(SETTINGS, newer)["transform"] == "x"


def test_missing_keys_take_defaults_and_unknown_words_the_strictest_meaning() -> None:
    read = settings_from_json({"url": "https://a.example/", "ordering_mode": "CHAOS", "trace_propagation": "ALL"})
    assert (read.ordering_mode, read.trace_propagation) == (OrderingMode.ORDERED, TracePropagation.NONE)
    assert (read.timeout_s, read.max_in_flight, read.headers) == (15.0, 32, {})


@given(policies.SETTINGS)
def test_whatever_is_said_of_failures_comes_back_as_it_went(said: EndpointSettings) -> None:
    stored = orjson.loads(orjson.dumps(settings_to_json(said)))
    assert settings_from_json(stored) == said


@given(policies.RETRY, policies.QUOTA)
def test_a_tenants_word_comes_back_as_it_went(retry: RetryOverrides, quota: PublishQuota) -> None:
    stored = orjson.loads(orjson.dumps(tenant_settings_to_json(retry, quota)))
    assert tenant_settings_from_json(stored) == (retry, quota)
    assert tenant_settings_from_json({}) == (RetryOverrides(), PublishQuota())


def test_a_policy_on_exhaustion_of_a_newer_release_is_read_as_the_one_that_keeps_all() -> None:
    newer = {**settings_to_json(SETTINGS), "exhaustion": "ASK_SOMEONE", "circuit": {"off": True, "shape": "round"}}
    read = settings_from_json(newer)
    assert read.exhaustion is ExhaustionPolicy.HALT
    assert read.circuit.off
