"""A `Database` on the test's own database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dispatcher.store.database import Database
from tests.support.postgres import TestDatabase


@pytest.fixture
async def db(database: TestDatabase) -> AsyncIterator[Database]:
    async with Database.open(database.options) as opened:
        yield opened
