"""What the database does for us is seen by telemetry, and a schema that is behind is said at start."""

from __future__ import annotations

import pytest

from dispatcher.store.database import Database, DatabaseOptions
from dispatcher.store.migrate import MigrationError, check_schema
from dispatcher.store.observation import Observation, operation_of
from dispatcher.telemetry import ExportPlan, start_telemetry
from tests.support.postgres import TestDatabase


async def test_each_statement_is_measured_under_its_operation_and_a_failure_under_its_error(
    database: TestDatabase,
) -> None:
    telemetry = start_telemetry(ExportPlan.load({}), version="test", instance_id="test")
    async with Database.open(database.options, Observation(telemetry.instruments, telemetry.tracing)) as db:
        await db.fetchval("SELECT 1")
        with pytest.raises(Exception, match="division by zero"):
            await db.fetchval("SELECT 1 / 0")
    samples = [s for metric in telemetry.registry.collect() for s in metric.samples]
    await telemetry.shutdown(1.0)
    counted = [s for s in samples if s.name == "db_client_operation_duration_seconds_count"]
    assert any(s.labels["db_operation_name"] == "SELECT" and not s.labels.get("error_type") for s in counted)
    assert any(s.labels.get("error_type") == "DivisionByZeroError" for s in counted)


@pytest.mark.parametrize(
    ("sql", "operation"),
    [("  SELECT 1", "SELECT"), ("WITH x AS (INSERT INTO t VALUES (1))", "INSERT"), ("VACUUM", "_OTHER")],
)
def test_the_operation_is_the_first_word_that_is_one(sql: str, operation: str) -> None:
    assert operation_of(sql) == operation


async def test_a_database_without_the_schema_is_refused_at_start_with_the_remedy(
    empty_database: TestDatabase, database: TestDatabase
) -> None:
    async with Database.open(DatabaseOptions(empty_database.dsn)) as db:
        with pytest.raises(MigrationError, match="dispatcher migrate"):
            await check_schema(db)
    async with Database.open(database.options) as db:
        await check_schema(db)
