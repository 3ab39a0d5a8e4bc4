"""Group commit: which of the two writers takes a request, and what a stream loses with one of its requests."""

from __future__ import annotations

import asyncio

from dispatcher.model import EndpointKey
from dispatcher.store.database import Database
from dispatcher.store.group_commit import Chain, GroupCommitLimits
from dispatcher.store.publish import Verdict
from tests.integration.store.test_group_commit import HandOffLog, committing, locked, stored_ids
from tests.support.postgres import TestDatabase
from tests.support.publishing import make_endpoint, new_event, request_of
from tests.support.waiting import until_blocked


async def test_a_large_payload_delays_no_single_event(db: Database, database: TestDatabase, key: EndpointKey) -> None:
    other = (await make_endpoint(db, "other")).key
    large = await request_of(db, [new_event("large", b"x" * 2000)], [other])
    small = await request_of(db, [new_event("small")], [key])
    limits = GroupCommitLimits(large_bytes_min=2000, lock_timeout_s=60.0)
    async with committing(db, HandOffLog(), limits) as commits:
        async with locked(database, other):
            waiting = commits.enqueue(large)
            await until_blocked(db)
            async with asyncio.timeout(10):
                await commits.submit(small)
            assert not waiting.done()
        await waiting
    assert sorted(await stored_ids(db)) == ["large", "small"]


async def test_of_a_stream_nothing_is_written_behind_a_request_whose_caller_is_gone(
    db: Database, database: TestDatabase, key: EndpointKey
) -> None:
    chain = Chain()
    stream = [await request_of(db, [new_event(f"s-{i}")], [key], chain=chain.number) for i in range(2)]
    async with committing(db, HandOffLog()) as commits:
        async with locked(database, key):
            first = commits.enqueue(await request_of(db, [new_event("first")], [key]))
            await until_blocked(db)
            gone, behind = (commits.enqueue(request, chain=chain) for request in stream)
            gone.cancel()
        await first
        assert (await behind).verdict is Verdict.CHAIN_BROKEN
    assert await stored_ids(db) == ["first"]
