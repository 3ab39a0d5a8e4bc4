"""A served API per test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.api import Api, serving
from tests.support.postgres import TestDatabase


@pytest.fixture
async def api(database: TestDatabase) -> AsyncIterator[Api]:
    async with serving(database.options) as served:
        yield served
