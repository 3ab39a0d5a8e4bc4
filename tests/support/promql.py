"""Which series and labels a PromQL expression names; enough of the language for our own rules and dashboards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"})
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r'\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()")
_NUMBER = re.compile(r"\b\d[\w.]*")


@dataclass(frozen=True, slots=True)
class Expression:
    """`matchers` are (series, label, operator, value)."""

    names: frozenset[str]
    matchers: tuple[tuple[str, str, str, str], ...]
    grouped: frozenset[str]


@dataclass(slots=True)
class Exposition:
    """What a page of /metrics shows: labels of each series, and the values that each label was seen with."""

    labels: dict[str, set[str]] = field(default_factory=dict)
    values: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, page: str) -> Exposition:
        made = cls()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                made.labels.setdefault(sample.name, set()).update(sample.labels)
                for label, value in sample.labels.items():
                    made.values.setdefault((sample.name, label), set()).add(value)
        return made


def read(text: str) -> Expression:
    """The names in an expression. ValueError where a selector is not understood: better than to pass it over."""
    grouped = {label.strip() for found in _GROUPING.findall(text) for label in found.split(",") if label.strip()}
    rest = _RANGE.sub(" ", _GROUPING.sub(" ", text))
    matchers = tuple((name, *found) for name, inner in _SELECTOR.findall(rest) for found in _matchers(inner))
    rest = _NUMBER.sub(" ", _SELECTOR.sub(lambda found: f" {found[1]} ", rest))
    if "{" in rest or '"' in rest:
        raise ValueError(f"not understood: {text}")
    names = frozenset(name for name in _NAME.findall(rest) if name.lower() not in WORDS)
    return Expression(names, matchers, frozenset(grouped))


def _matchers(inner: str) -> Iterator[tuple[str, str, str]]:
    at = 0
    while at < len(inner.rstrip()):
        found = _MATCHER.match(inner, at)
        if found is None:
            raise ValueError(f"not a matcher: {inner[at:]}")
        yield found[1], found[2], found[3]
        at = found.end()
