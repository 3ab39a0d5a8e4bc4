"""No statement of ours leaves anything behind in a session: PgBouncer would hand it to the next client."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = {path.name: path.read_text() for path in Path("src/dispatcher").rglob("*") if path.suffix in (".py", ".sql")}
LASTING = re.compile(r"""set_config\([^()]*,\s*false\s*\)|["';]\s*SET\s+(?!LOCAL\b)[a-z_]+\s*(?:=|\bTO\b)""")
"""A setting for the session. `SET name = value` of a CREATE FUNCTION ends with the call, and follows no quote."""


def lasting(source: str) -> list[str]:
    return [match[0] for match in LASTING.finditer(source)]


def test_synchronous_commit_and_all_else_is_only_set_for_a_transaction() -> None:
    assert any("set_config('synchronous_commit', 'on', true)" in source for source in SOURCES.values())
    assert {name: lasting(source) for name, source in SOURCES.items() if lasting(source)} == {}


def test_a_session_setting_would_be_seen() -> None:
    assert lasting("connection.execute('SET synchronous_commit = off')")
    assert lasting("SELECT set_config('synchronous_commit', 'off', false)")
    assert not lasting("connection.execute('SET LOCAL synchronous_commit = off')")
