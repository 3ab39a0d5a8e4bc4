"""The filter grammar: what it accepts, and that every refusal names the field `filter` and the position."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import InvalidRequestError
from dispatcher.store.filters import FLAG, TEXT, TEXT_MAP, TIME_RANGE, Filter, Kind, Operator, Rule, parse

RULES = {
    "type": TEXT,
    "labels": TEXT_MAP,
    "archived": FLAG,
    "publish_time": TIME_RANGE,
    "state": Rule(Kind.WORD, frozenset({Operator.EQUALS, Operator.DIFFERS}), frozenset({"ACTIVE", "PAUSED"})),
}


def test_comparisons_are_typed_by_their_fields() -> None:
    text = (
        'type = "order.paid" AND labels.team = billing AND labels.stage=\'p"\' AND archived = false '
        'AND publish_time >= "2030-01-31T12:00:00Z" AND publish_time < "2030-01-31T14:00:00+01:00" AND state != PAUSED'
    )
    parsed = parse(text, RULES)
    assert parsed.text("type") == "order.paid"
    assert parsed.entries("labels") == {"team": "billing", "stage": 'p"'}
    assert parsed.flag("archived") is False
    assert parsed.time("publish_time", Operator.FROM) == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert parsed.time("publish_time", Operator.BEFORE) == datetime(2030, 1, 31, 13, tzinfo=UTC)
    assert parsed.text("state", Operator.DIFFERS) == "PAUSED"
    assert parsed.text("state") is None


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_filter_matches_everything(text: str) -> None:
    assert parse(text, RULES) == Filter()


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100))
def test_any_text_survives_quoting(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'type = "{quoted}"', RULES).text("type") == value


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("nope = 1", 0),
        ("type", 4),
        ("type =", 6),
        ("type = =", 7),
        ("type > a", 5),
        ("= a", 0),
        ("type = a OR type = b", 9),
        ("type = a AND", 12),
        ("type = a AND AND", 13),
        ("type = a AND type = b", 13),
        ("labels = a", 0),
        ("type.x = a", 0),
        ("archived = yes", 11),
        ("state = GONE", 8),
        ("publish_time = 2030", 13),
        ('publish_time >= "soon"', 16),
        ('publish_time >= "2030-01-31T12:00:00"', 16),
        ('type = "open', 6),
        ("type = (a)", 6),
        ('type = "a\0b"', 7),
    ],
)
def test_a_malformed_filter_is_refused_with_its_position(text: str, position: int) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse(text, RULES)
    (violation,) = refused.value.violations
    assert violation.field == "filter"
    assert violation.description.endswith(f"(at character {position})")


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        parse(text, RULES)


def test_a_filter_is_bounded() -> None:
    with pytest.raises(InvalidRequestError):
        parse('type = "' + "x" * 3000 + '"', RULES)
