"""Endpoint settings as they stand in `endpoint.settings` and `endpoint_revision.settings`; pure.

Read tolerantly, since the previous release runs on the new schema: keys it does not know are ignored, and kept when it
writes; a missing key takes its default; a word it does not know is read as the strictest one it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dispatcher.model import EndpointSettings, OrderingMode, TracePropagation

DEFAULT_TIMEOUT_S = 15.0
DEFAULT_MAX_IN_FLIGHT = 32


def settings_to_json(settings: EndpointSettings, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object to store; keys of `stored`, the present object, that this release does not know are kept."""
    return {
        **(stored or {}),
        "url": settings.url,
        "timeout_s": settings.timeout_s,
        "headers": dict(settings.headers),
        "max_in_flight": settings.max_in_flight,
        "ordering_mode": settings.ordering_mode.value,
        "trace_propagation": settings.trace_propagation.value,
    }


def settings_from_json(stored: Mapping[str, Any]) -> EndpointSettings:
    """The settings in a stored JSON object."""
    return EndpointSettings(
        url=stored["url"],
        timeout_s=float(stored.get("timeout_s", DEFAULT_TIMEOUT_S)),
        headers=dict(stored.get("headers", {})),
        max_in_flight=int(stored.get("max_in_flight", DEFAULT_MAX_IN_FLIGHT)),
        ordering_mode=_ordering_mode(stored.get("ordering_mode")),
        trace_propagation=_trace_propagation(stored.get("trace_propagation")),
    )


def _ordering_mode(word: object) -> OrderingMode:
    try:
        return OrderingMode(str(word))
    except ValueError:
        return OrderingMode.ORDERED


def _trace_propagation(word: object) -> TracePropagation:
    try:
        return TracePropagation(str(word))
    except ValueError:
        return TracePropagation.NONE
