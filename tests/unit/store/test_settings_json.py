"""Settings as JSON, between releases."""

from __future__ import annotations

from dispatcher.model import EndpointSettings, OrderingMode, TracePropagation
from dispatcher.store.settings_json import settings_from_json, settings_to_json

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
