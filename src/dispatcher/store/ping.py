"""How quickly the database answers, for operators."""

from __future__ import annotations

import time

from dispatcher.store.database import Database

PING = "SELECT 1"


async def measure_latency_s(db: Database) -> float:
    """The time of a trivial query, the wait for a connection included. Errors: UnavailableError."""
    start = time.perf_counter()
    await db.fetchval(PING)
    return time.perf_counter() - start
