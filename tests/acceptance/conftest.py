"""Processes to call. Tests that stop or kill them start their own; the others share a pair, each with its tenant."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.callers import Caller, calling
from tests.support.postgres import Cluster
from tests.support.process import Served, processes

PATIENT = {"DISPATCHER_ATTEMPTS_MAX": "1000"}
"""A receiver that fails while a test goes on must not become a dead letter meanwhile."""
_tenants = itertools.count(1)


@pytest.fixture(scope="session")
def pair(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    """Two processes on one database, for all tests of this pytest worker. Nothing may be logged as an error."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        database = cluster.migrated_database()
        opened = runner.run(database.__aenter__())
        stack.callback(lambda: runner.run(database.__aexit__(None, None, None)))
        first, second = stack.enter_context(processes(opened.dsn, tmp_path_factory.mktemp("pair"), 2, PATIENT))
        yield first, second
        assert first.troubles() + second.troubles() == []


@pytest.fixture
async def callers(pair: tuple[Served, Served]) -> AsyncIterator[tuple[Caller, Caller]]:
    """A caller of each of the pair."""
    async with calling(*pair) as (first, second):
        yield first, second


@pytest.fixture
async def tenant(callers: tuple[Caller, Caller]) -> str:
    """A tenant of the test's own."""
    name = f"tenant-{next(_tenants)}"
    await callers[0].tenant(name)
    return name
