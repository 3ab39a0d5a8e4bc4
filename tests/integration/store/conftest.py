"""A `Database` on the test's own database, and an endpoint in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dispatcher.model import EndpointKey
from dispatcher.store.database import Database
from tests.support.postgres import TestDatabase
from tests.support.publishing import make_endpoint, make_tenant


@pytest.fixture
async def db(database: TestDatabase) -> AsyncIterator[Database]:
    async with Database.open(database.options) as opened:
        yield opened


@pytest.fixture
async def key(db: Database) -> EndpointKey:
    """An endpoint `a` of a tenant `acme`."""
    await make_tenant(db)
    return (await make_endpoint(db, "a")).key
