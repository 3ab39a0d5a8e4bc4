"""Event types and the patterns that endpoints subscribe with; pure.

A type is `segment(.segment)*`. A pattern is a type (exact), `prefix.*` (one or more segments after the prefix) or `*`
(every type but the service's own, see `RESERVED_TYPE_PREFIX`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

from dispatcher.model import RESERVED_TYPE_PREFIX, EndpointKey

TYPE_CHARS_MAX = 128
ANY_TYPE = "*"
PREFIX_SUFFIX = ".*"
MERGED_TARGETS_MAX = 1_000_000
"""Endpoint references a matcher may keep in merged lists, over all combinations of patterns."""

_TYPE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def type_problem(event_type: str) -> str | None:
    """What is wrong with an event type's spelling, as a description for the caller; None where it is right."""
    if len(event_type) > TYPE_CHARS_MAX:
        return f"must have at most {TYPE_CHARS_MAX} characters"
    if _TYPE.fullmatch(event_type) is None:
        return "must be segments of A-Z a-z 0-9 _ - joined by single dots"
    return None


def is_reserved(event_type: str) -> bool:
    """True for the service's own types: refused on Publish, not matched by `*`."""
    return event_type.startswith(RESERVED_TYPE_PREFIX)


def validate_pattern(pattern: str) -> str | None:
    """What is wrong with a subscription pattern, as a description for the caller; None where it is right."""
    if pattern == ANY_TYPE:
        return None
    if len(pattern) > TYPE_CHARS_MAX:
        return f"must have at most {TYPE_CHARS_MAX} characters"
    if _TYPE.fullmatch(pattern.removesuffix(PREFIX_SUFFIX)) is None:
        return "must be an event type, a prefix followed by `.*`, or `*`"
    return None


def matches(pattern: str, event_type: str) -> bool:
    """Whether an endpoint that subscribes with `pattern` receives events of `event_type`; both must be valid."""
    return pattern in patterns_for(event_type)


def patterns_for(event_type: str) -> Iterator[str]:
    """Every pattern that matches a type: itself, each proper prefix with `.*`, and `*` unless the type is reserved."""
    yield event_type
    dot = event_type.find(".")
    while dot != -1:
        yield event_type[:dot] + PREFIX_SUFFIX
        dot = event_type.find(".", dot + 1)
    if not is_reserved(event_type):
        yield ANY_TYPE


class Matcher:
    """One tenant's subscriptions, inverted: pattern to endpoints in ascending order, the primary-key order.

    A look-up costs one dictionary probe per segment. Where several patterns match, the merged list is kept by the
    combination of patterns, not by the type: combinations are few, types are whatever publishers send.
    """

    __slots__ = ("_merged", "_merged_targets", "_merged_targets_max", "_subscriptions")

    def __init__(
        self, subscriptions: Mapping[str, Sequence[EndpointKey]], merged_targets_max: int = MERGED_TARGETS_MAX
    ) -> None:
        self._subscriptions = {pattern: tuple(keys) for pattern, keys in subscriptions.items()}
        self._merged: OrderedDict[tuple[str, ...], tuple[EndpointKey, ...]] = OrderedDict()
        self._merged_targets = 0
        self._merged_targets_max = merged_targets_max

    @property
    def subscription_count(self) -> int:
        """Pairs of pattern and endpoint: what this matcher weighs in memory."""
        return sum(len(keys) for keys in self._subscriptions.values())

    def endpoints_for(self, event_type: str) -> tuple[EndpointKey, ...]:
        """The endpoints that receive a type, each once, in ascending order."""
        found = tuple(pattern for pattern in patterns_for(event_type) if pattern in self._subscriptions)
        if not found:
            return ()
        if len(found) == 1:
            return self._subscriptions[found[0]]
        merged = self._merged.get(found)
        if merged is None:
            return self._merge(found)
        self._merged.move_to_end(found)
        return merged

    def _merge(self, found: tuple[str, ...]) -> tuple[EndpointKey, ...]:
        by_id = {key.endpoint_id.bytes: key for pattern in found for key in self._subscriptions[pattern]}
        # PostgreSQL compares uuids as bytes, too.
        merged = tuple(by_id[endpoint_id] for endpoint_id in sorted(by_id))
        self._merged[found] = merged
        self._merged_targets += len(merged)
        while self._merged_targets > self._merged_targets_max:
            _, dropped = self._merged.popitem(last=False)
            self._merged_targets -= len(dropped)
        return merged
