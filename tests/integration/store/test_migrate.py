"""Migrations: once each, whoever starts, however often."""

from __future__ import annotations

import asyncio

from dispatcher.store.migrate import load_migrations, migrate
from tests.support.postgres import TestDatabase


async def test_several_that_start_at_once_apply_each_migration_once(empty_database: TestDatabase) -> None:
    applied = await asyncio.gather(*(migrate(empty_database.options) for _ in range(4)))
    assert sorted(name for names in applied for name in names) == [m.name for m in load_migrations()]


async def test_a_second_run_applies_nothing(database: TestDatabase) -> None:
    assert await migrate(database.options) == []
