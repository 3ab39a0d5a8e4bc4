"""List filters, a subset of AIP-160: comparisons joined by `AND`; pure.

    filter     = comparison { "AND" comparison }
    comparison = field operator value          operator = "=" | "!=" | ">=" | "<"
    field      = name | name "." key           value    = word | string in double or single quotes

What a list lets be compared is said by its rules; everything else is refused with the position of the trouble.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dispatcher.errors import FieldViolation, InvalidRequestError

FILTER_CHARS_MAX = 2048
COMPARISONS_MAX = 32


class Operator(enum.StrEnum):
    """How a field is compared."""

    EQUALS = "="
    DIFFERS = "!="
    FROM = ">="
    BEFORE = "<"


class Kind(enum.Enum):
    """What a field holds. TEXT_MAP is compared by key: `labels.team = "billing"`."""

    TEXT = "text"
    TEXT_MAP = "text map"
    TIME = "time"
    FLAG = "flag"
    WORD = "word"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one field allows. `words` are the values of a WORD."""

    kind: Kind
    operators: frozenset[Operator] = frozenset({Operator.EQUALS})
    words: frozenset[str] = field(default_factory=frozenset)


TEXT = Rule(Kind.TEXT)
TEXT_MAP = Rule(Kind.TEXT_MAP)
FLAG = Rule(Kind.FLAG)
STATUS_CODE = Rule(Kind.WORD, words=frozenset(str(code) for code in range(100, 600)))
TIME_RANGE = Rule(Kind.TIME, frozenset({Operator.FROM, Operator.BEFORE}))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison, its value typed by the field's rule. `key` is the map key of a TEXT_MAP, else empty."""

    field: str
    key: str
    operator: Operator
    value: str | bool | datetime


@dataclass(frozen=True, slots=True)
class Filter:
    """All comparisons, joined by AND; no field, key and operator occurs twice. No comparisons: everything matches."""

    comparisons: tuple[Comparison, ...] = ()

    def text(self, name: str, operator: Operator = Operator.EQUALS) -> str | None:
        """The value a TEXT or WORD field is compared with, None where it is not."""
        value = self._value(name, operator)
        return None if value is None else str(value)

    def flag(self, name: str) -> bool | None:
        value = self._value(name, Operator.EQUALS)
        return value if isinstance(value, bool) else None

    def time(self, name: str, operator: Operator) -> datetime | None:
        value = self._value(name, operator)
        return value if isinstance(value, datetime) else None

    def entries(self, name: str) -> dict[str, str] | None:
        """The entries a TEXT_MAP must hold, None where it is not compared."""
        return {c.key: str(c.value) for c in self.comparisons if c.field == name} or None

    def _value(self, name: str, operator: Operator) -> str | bool | datetime | None:
        return next((c.value for c in self.comparisons if c.field == name and c.operator is operator), None)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


_TOKENS = re.compile(
    r"""\s*(?:(?P<operator>!=|>=|<=|=|<|>)
          |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
          |(?P<word>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*))""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse(text: str, rules: Mapping[str, Rule]) -> Filter:
    """The filter in `text`, which may compare the fields of `rules`. Errors: InvalidRequestError, field `filter`."""
    if len(text) > FILTER_CHARS_MAX:
        raise bad_filter(f"must have at most {FILTER_CHARS_MAX} characters")
    tokens = _tokenize(text)
    if not tokens:
        return Filter()
    comparisons: list[Comparison] = []
    seen: set[tuple[str, str, Operator]] = set()
    for start in range(0, len(tokens), 4):
        name, comparison = tokens[start], _comparison(tokens[start : start + 3], len(text), rules)
        identity = (comparison.field, comparison.key, comparison.operator)
        if identity in seen:
            raise bad_filter(f"compares {name.text!r} twice with {comparison.operator.value!r}", name.position)
        seen.add(identity)
        comparisons.append(comparison)
        _expect_and(tokens, start + 3, len(text))
    if len(comparisons) > COMPARISONS_MAX:
        raise bad_filter(f"must have at most {COMPARISONS_MAX} comparisons")
    return Filter(tuple(comparisons))


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKENS.match(text, position)
        if match is None or match.lastgroup is None:
            raise bad_filter("has an unexpected character", position)
        tokens.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        position = match.end()
    return tokens


def _expect_and(tokens: list[_Token], index: int, end: int) -> None:
    if index == len(tokens):
        return
    if (tokens[index].kind, tokens[index].text) != ("word", "AND"):
        raise bad_filter(f"expects AND, not {tokens[index].text!r}", tokens[index].position)
    if index + 1 == len(tokens):
        raise bad_filter("expects a comparison after AND", end)


def _comparison(tokens: list[_Token], end: int, rules: Mapping[str, Rule]) -> Comparison:
    if tokens[0].kind != "word":
        raise bad_filter(f"expects a field, not {tokens[0].text!r}", tokens[0].position)
    name, _, key = tokens[0].text.partition(".")
    rule = rules.get(name)
    if rule is None or (rule.kind is Kind.TEXT_MAP) != bool(key):
        known = ", ".join(f"{n}.KEY" if r.kind is Kind.TEXT_MAP else n for n, r in rules.items())
        raise bad_filter(f"has the unknown field {tokens[0].text!r}; known: {known}", tokens[0].position)
    if len(tokens) == 1 or tokens[1].kind != "operator":
        raise bad_filter("expects an operator", tokens[1].position if len(tokens) > 1 else end)
    if tokens[1].text not in rule.operators:
        known = " ".join(sorted(rule.operators))
        raise bad_filter(f"allows {known} for {name!r}, not {tokens[1].text!r}", tokens[1].position)
    if len(tokens) == 2 or tokens[2].kind == "operator":
        raise bad_filter("expects a value", tokens[2].position if len(tokens) > 2 else end)
    return Comparison(name, key, Operator(tokens[1].text), _value(tokens[2], rule))


def _value(token: _Token, rule: Rule) -> str | bool | datetime:
    text = _ESCAPE.sub(r"\1", token.text[1:-1]) if token.kind == "string" else token.text
    match rule.kind:
        case Kind.TEXT | Kind.TEXT_MAP:
            if "\0" in text:
                raise bad_filter("must not hold a NUL character", token.position)
            return text
        case Kind.TIME:
            return _time(text, token.position)
        case Kind.FLAG:
            if text not in {"true", "false"}:
                raise bad_filter("expects true or false", token.position)
            return text == "true"
        case Kind.WORD:
            if text not in rule.words:
                raise bad_filter(f"expects one of {', '.join(sorted(rule.words))}", token.position)
            return text


def _time(text: str, position: int) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise bad_filter('expects a time with its zone, such as "2030-01-31T12:00:00Z"', position)


def bad_filter(problem: str, position: int | None = None) -> InvalidRequestError:
    """The error of a filter that cannot be used; `position` is a character offset from 0."""
    where = "" if position is None else f" (at character {position})"
    return InvalidRequestError([FieldViolation("filter", problem + where)], reason="INVALID_FILTER")
