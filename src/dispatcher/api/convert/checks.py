"""Collecting what is wrong with a request, and the rules that several resources share. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice

from dispatcher.errors import FieldViolation, InvalidRequestError

LABELS_MAX = 64
LABEL_VALUE_CHARS_MAX = 63
DISPLAY_NAME_CHARS_MAX = 128
DESCRIPTION_CHARS_MAX = 1024
ETAG_CHARS_MAX = 128
SHOWN_CHARS_MAX = 64

_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
# Unicode's category Cc: C0, DEL and C1.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Violations:
    """Everything that is wrong with one request, found before anything is done about it."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, field: str, description: str) -> None:
        """One bad field: its path in the request, and what to send instead."""
        self._found.append(FieldViolation(field, description))

    def extend(self, found: Iterable[FieldViolation]) -> None:
        self._found.extend(found)

    def merge(self, error: InvalidRequestError) -> None:
        """Take over what another check has raised."""
        self._found.extend(error.violations)

    def raise_if_any(self) -> None:
        """Errors: InvalidRequestError with all that was found."""
        if self._found:
            raise InvalidRequestError(self._found)


def has_control(text: str) -> bool:
    """Whether a text of one line holds a control character."""
    return _CONTROL.search(text) is not None


def text(value: str, field: str, violations: Violations, *, chars_max: int, lines: bool = False) -> str:
    """A text for people: bounded, no control characters; with `lines` tabs and line breaks pass."""
    if len(value) > chars_max:
        violations.add(field, f"must have at most {chars_max} characters, has {len(value)}")
    elif (_CONTROL_BUT_LINES if lines else _CONTROL).search(value):
        violations.add(field, "must not hold control characters")
    return value


def labels(value: Mapping[str, str], field: str, violations: Violations) -> dict[str, str]:
    """Labels of a resource."""
    if len(value) > LABELS_MAX:
        violations.add(field, f"must have at most {LABELS_MAX} entries, has {len(value)}")
    for key, entry in islice(value.items(), LABELS_MAX):
        where = f"{field}[{shown(key)}]"
        if not _LABEL_KEY.fullmatch(key):
            violations.add(where, "the key must match [a-z][a-z0-9_-]{0,62}")
        if len(entry) > LABEL_VALUE_CHARS_MAX:
            violations.add(where, f"the value must have at most {LABEL_VALUE_CHARS_MAX} characters")
        elif has_control(entry):
            violations.add(where, "the value must not hold control characters")
    return dict(value)


def etag(value: str, field: str, violations: Violations) -> str:
    """An etag as sent back; what it says is compared by the store."""
    if len(value) > ETAG_CHARS_MAX:
        violations.add(field, f"must have at most {ETAG_CHARS_MAX} characters")
    return value


def shown(name: str) -> str:
    """A caller's map key as it may be repeated in an error."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name[:SHOWN_CHARS_MAX])
