"""Fixtures for every test. Those that need a database start a server on first use, so unit tests never pay for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import settings

from dispatcher.embedded.postgres import EmbeddedPostgres
from dispatcher.store.database import StoreConnection
from tests.support.memory import folder_in_memory
from tests.support.postgres import ONE_TENANT_VARIABLE, Cluster, TestDatabase, make_pristine, running_cluster
from tests.support.receiver import Receiver

settings.register_profile("tests", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def one_tenant_forms() -> None:
    """With DISPATCHER_TEST_ONE_TENANT every `Database` takes statements of one tenant only, however it is made."""
    if os.environ.get(ONE_TENANT_VARIABLE):

        async def forced(connection: StoreConnection, _asked: bool | None) -> None:
            connection.one_tenant = True

        StoreConnection.choose_form = forced  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The server of this pytest worker."""
    with folder_in_memory(tmp_path_factory.mktemp("pg")) as folder, running_cluster(folder) as running:
        yield running


@pytest.fixture
async def empty_database(cluster: Cluster) -> AsyncIterator[TestDatabase]:
    """A database without any table."""
    async with cluster.empty_database() as database:
        yield database


@pytest.fixture
async def database(cluster: Cluster) -> AsyncIterator[TestDatabase]:
    """A freshly migrated database."""
    async with cluster.migrated_database() as migrated:
        yield migrated


@pytest.fixture
async def connection(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    """A connection to `database`."""
    connected = await database.connect()
    try:
        yield connected
    finally:
        await connected.close()


@pytest.fixture(scope="session")
def pristine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stopped server whose database `postgres` is migrated, to be copied: initdb and the migrations
    wait for the disk hundreds of times, a copy does not."""
    folder = tmp_path_factory.mktemp("pristine")
    make_pristine(folder)
    return folder


@pytest.fixture
async def crashable_postgres(pristine_folder: Path, tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A durable server of the test's own, to kill and restart. The database of its `dsn` is migrated."""
    shutil.copytree(pristine_folder, tmp_path / "pg")
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        yield server


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that does what the test tells it to."""
    async with Receiver() as running:
        yield running
