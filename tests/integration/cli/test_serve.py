"""`dispatcher serve` as a process: what it says where it cannot start."""

from __future__ import annotations

from pathlib import Path

from tests.support.postgres import TestDatabase
from tests.support.process import Served


async def test_a_database_without_the_schema_is_said_in_one_paragraph(
    empty_database: TestDatabase, tmp_path: Path
) -> None:
    process = Served(empty_database.dsn, tmp_path)
    process.start()
    try:
        assert await process.exit_code(30.0) == 1
    finally:
        process.kill()
    said = process.log_file.read_text()
    assert "run `dispatcher migrate` first" in said
    assert "Traceback" not in said
