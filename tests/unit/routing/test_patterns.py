"""Subscription patterns: what they accept, and that the matcher agrees with a naive reading of the grammar."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import EndpointKey
from dispatcher.routing.patterns import Matcher, is_reserved, matches, type_problem, validate_pattern

TENANT = UUID(int=1)
segments = st.sampled_from(["a", "b", "order", "dispatcher", "A-1", "_"])
event_types = st.lists(segments, min_size=1, max_size=4).map(".".join)
patterns = st.one_of(st.just("*"), event_types, event_types.map(lambda prefix: prefix + ".*"))


def naive_matches(pattern: str, event_type: str) -> bool:
    """The grammar read literally, segment by segment."""
    if pattern == "*":
        return not event_type.startswith("dispatcher.")
    wanted, given_segments = pattern.split("."), event_type.split(".")
    if wanted[-1] == "*":
        return len(given_segments) >= len(wanted) and given_segments[: len(wanted) - 1] == wanted[:-1]
    return wanted == given_segments


def key(number: int) -> EndpointKey:
    return EndpointKey(TENANT, UUID(int=number))


@given(patterns, event_types)
def test_a_pattern_matches_as_its_grammar_says(pattern: str, event_type: str) -> None:
    assert validate_pattern(pattern) is None
    assert matches(pattern, event_type) == naive_matches(pattern, event_type)


@given(
    st.lists(st.lists(patterns, min_size=1, max_size=3), max_size=6),
    st.lists(event_types, min_size=1, max_size=6),
    st.integers(0, 8),
)
def test_the_matcher_finds_each_endpoint_once_in_primary_key_order(
    subscriptions: list[list[str]], types: list[str], merged_targets_max: int
) -> None:
    inverted: dict[str, list[EndpointKey]] = {}
    for number, wanted in enumerate(subscriptions):
        for pattern in set(wanted):
            inverted.setdefault(pattern, []).append(key(number))
    matcher = Matcher(inverted, merged_targets_max)
    for event_type in types + types:
        expected = tuple(
            key(n) for n, wanted in enumerate(subscriptions) if any(naive_matches(p, event_type) for p in wanted)
        )
        assert matcher.endpoints_for(event_type) == expected


@pytest.mark.parametrize("pattern", ["*", "order", "order.paid", "order.*", "a-b_C.9.*", "x" * 128, "dispatcher.ping"])
def test_good_patterns_are_accepted(pattern: str) -> None:
    assert validate_pattern(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    ["", ".", "*.order", "order.*.paid", "order*", "order.", ".order", "a..b", "**", ".*", "x" * 129, "ä", "a\n"],
)
def test_bad_patterns_are_refused(pattern: str) -> None:
    assert validate_pattern(pattern) is not None


@pytest.mark.parametrize("event_type", ["", "a.", ".a", "a..b", "*", "a b", "x" * 129, "order\n"])
def test_bad_types_are_refused(event_type: str) -> None:
    assert type_problem(event_type) is not None


def test_only_the_prefix_with_its_dot_is_reserved() -> None:
    assert is_reserved("dispatcher.ping")
    assert not is_reserved("dispatcher")
    assert not is_reserved("dispatchers.ping")
    assert not matches("*", "dispatcher.ping")
    assert matches("dispatcher.*", "dispatcher.ping")


def test_merged_lists_are_kept_within_their_bound() -> None:
    matcher = Matcher({"*": [key(n) for n in range(10)], "a": [key(1)], "b": [key(2)]}, merged_targets_max=15)
    first = matcher.endpoints_for("a")
    assert matcher.endpoints_for("a") is first, "a merge is remembered"
    matcher.endpoints_for("b")
    assert matcher.endpoints_for("a") is not first, "the least recently used one went when the bound was reached"
