"""`dispatcher migrate` against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from dispatcher.store.migrate import load_migrations
from tests.support.cli import CliResult, run_cli
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase


async def migrate(*arguments: str) -> CliResult:
    return await asyncio.to_thread(run_cli, "migrate", *arguments)


async def test_it_names_what_it_applies_and_repeats_without_harm(empty_database: TestDatabase):
    names = [migration.name for migration in load_migrations()]
    first = await migrate("--dsn", empty_database.dsn)
    second = await migrate("--dsn", empty_database.dsn, "--json")
    assert first.code == 0
    assert first.out.splitlines()[: len(names)] == [f"applied {name}" for name in names]
    assert second.code == 0
    assert second.json == {"applied": []}


async def test_a_database_that_is_away_is_said_and_ends_with_3():
    result = await migrate("--dsn", f"postgresql://me:hunter2@127.0.0.1:{closed_port()}/db")
    assert result.code == 3
    assert "cannot connect" in result.err
    assert "hunter2" not in result.err
    assert "Traceback" not in result.err


async def test_a_database_that_does_not_exist_is_an_error_to_mend(empty_database: TestDatabase):
    dsn = urlsplit(empty_database.dsn)._replace(path="/nowhere").geturl()
    result = await migrate("--dsn", dsn)
    assert result.code == 1
    assert 'database "nowhere" does not exist' in result.err


async def test_something_that_is_no_database_url_is_refused():
    result = await migrate("--dsn", "mysql://x")
    assert result.code == 2
    assert "must be a postgresql:// URL" in result.err


async def test_citus_is_asked_for_where_it_is_not_and_the_schema_is_migrated_all_the_same(empty_database: TestDatabase):
    result = await migrate("--dsn", empty_database.dsn, "--citus")
    assert result.code == 1
    assert "CREATE EXTENSION citus" in result.err
    assert (await migrate("--dsn", empty_database.dsn, "--json")).json == {"applied": []}
