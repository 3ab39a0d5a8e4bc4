"""Text that may hold anything (a driver's message, a receiver's words) made fit for a record."""

from __future__ import annotations

import re

_URL_TAIL = re.compile(r"(https?://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)
_USERINFO = re.compile(r"(https?://)[^\s/@'\"]*@", re.IGNORECASE)


def plain_text(text: str, chars_max: int) -> str:
    """`text` as printable ASCII of at most `chars_max` characters; PostgreSQL's text takes no NUL."""
    shown = text[: 4 * chars_max].encode("ascii", "backslashreplace").decode("ascii")
    return "".join(char if char.isprintable() else " " for char in shown)[:chars_max]


def error_text(text: str, chars_max: int) -> str:
    """`plain_text` without what may be secret in a URL: user, password, query and fragment."""
    return plain_text(_USERINFO.sub(r"\1", _URL_TAIL.sub(r"\1", text[: 4 * chars_max])), chars_max)
