"""A scene: three dispatchers, a PostgreSQL, a receiver and publishers; faults come while all of them are at work.

async with Scene.open(...) as scene:
    async with scene.publishing():
        async with scene.fault("what"):
            …
    await scene.judge()
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import asyncpg
from google.protobuf.duration_pb2 import Duration
from webhooks.v1 import endpoint_pb2, policy_pb2

from tests.support.callers import AGAIN_IN_ANY_TROUBLE, Caller, SteadyPublisher, calling
from tests.support.chaos.doubter import Doubter
from tests.support.chaos.figures import Figures
from tests.support.chaos.history import PLACES, is_settled, passed_over, read_record, receipts_of, unsettled
from tests.support.chaos.launch import FENCED
from tests.support.checker import Receipt, Row, copies_of_accepted, violations
from tests.support.process import Served
from tests.support.receiver import Answer, Behaviour, Receiver, Request
from tests.support.waiting import until

REPLICAS = 3
LEASE_TTL_S = 3.0
SETTINGS = {
    "DISPATCHER_LEASE_TTL_S": f"{LEASE_TTL_S}",
    "DISPATCHER_LEASE_SEND_MARGIN_S": "1",
    "DISPATCHER_DATABASE_AWAY_S": "2",
    "DISPATCHER_DATABASE_CONNECT_TIMEOUT_S": "2",
    "DISPATCHER_STATEMENT_TIMEOUT_S": "5",
    "DISPATCHER_LOCK_TIMEOUT_S": "2",
}
ENDPOINTS = ("ordered", "second", "keyed", "free", "failing")
ATTEMPTS = 60
"""Enough for any fault of a scene: nothing but what is hopeless becomes a dead letter."""
ATTEMPTS_OF_FAILING = 3
UNFLUSHED_S = 1.0
"""Bound of promise 3: what is acknowledged longer than this before a crash does not come again."""
SETTLES_S = 60.0
"""After the last fault is healed everything is delivered within this, on a machine that does other things, too."""
WATCH_INTERVAL_S = 0.05
AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the watch meets while the database is away."""
FAILING_SHARE = 0.02


@dataclass(slots=True)
class Fault:
    """A fault, from its beginning to when it was healed, in monotonic seconds. A crash is over when it begins."""

    began_at: float
    ended_at: float = float("inf")
    in_flight: int = 0
    """Requests that receivers were working on as it began."""


@dataclass(slots=True)
class Scene:
    """`dsn` is that of the judge, which no fault touches; dispatchers may have another."""

    name: str
    dsn: str
    served: tuple[Served, ...]
    callers: tuple[Caller, ...]
    receiver: Receiver
    publishers: list[SteadyPublisher]
    doubter: Doubter
    figures: Figures
    faults: list[Fault] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    """What the watch over the low watermarks has found."""
    behave: Callable[[Request], Behaviour | None] = lambda _: None
    """Asked first how to answer; None for the usual."""
    requests_before: int = 0
    """So many requests came before the last failover was over: of them, those count whose rows are there in the end."""
    has_lost: bool = False
    finished: list[SteadyPublisher] = field(default_factory=list)
    """Publishers beside the usual ones."""
    kept_rows: list[Row] = field(default_factory=list)
    """What the test drops, as it was."""
    last_rows: Sequence[Row] = ()
    """What was judged."""
    never: asyncio.Event = field(default_factory=asyncio.Event)
    """For a receiver that hangs until the scene is over."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        name: str,
        dsn: str,
        folder: Path,
        *,
        through: str = "",
        through_of: Mapping[int, str] | None = None,
        variables: Mapping[str, str] | None = None,
        variables_of: Mapping[int, Mapping[str, str]] | None = None,
    ) -> AsyncIterator[Self]:
        """All of it, running and ready; dispatchers reach the database `through` another DSN where one is given. What
        ends in `_of` is for one of them, by its number."""
        served = tuple(
            Served(
                (through_of or {}).get(number) or through or dsn,
                folder,
                SETTINGS | dict(variables or {}) | dict((variables_of or {}).get(number) or {}),
                module=LAUNCH,
            )
            for number in range(REPLICAS)
        )
        try:
            await asyncio.gather(*(each.started() for each in served))
            async with calling(*served) as callers, Receiver() as receiver:
                publishers = [_publisher(number, callers) for number in range(REPLICAS)]
                doubter = Doubter("doubter", callers)
                scene = cls(name, dsn, served, callers, receiver, publishers, doubter, Figures(name))
                receiver.default = scene._usual(random.Random(name))
                await scene._make_endpoints()
                yield scene
        finally:
            for each in served:
                each.kill()
                print(f"--- {each.log_file.name}", *each.remarks(), sep="\n")

    @contextlib.asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """All publishers at work, watched; ends with everything that they began acknowledged."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._watching())
            await stack.enter_async_context(self.doubter.streaming())
            for publisher in self.publishers:
                await stack.enter_async_context(publisher.streaming())
            await self.flows()
            yield

    @contextlib.contextmanager
    def fault(self) -> Iterator[Fault]:
        """Within it is a fault; leave it once it is healed."""
        made = Fault(time.monotonic(), in_flight=self._in_flight())
        self.faults.append(made)
        self.figures.runs += 1
        yield made
        made.ended_at = time.monotonic()

    @contextlib.contextmanager
    def pauses(self) -> Iterator[None]:
        """Measure for each endpoint the longest time without a first receipt within the block: a planned change must
        not stop it for long."""
        began_at, first = time.monotonic(), len(self.receiver.requests)
        yield
        over_at = time.monotonic()
        for name in ENDPOINTS:
            times = [r.at_s for r in self.receiver.requests[first:] if r.endpoint == name]
            marks = [began_at, *times, over_at]
            self.figures.pauses_s.append(max(after - before for before, after in itertools.pairwise(marks)))

    def crash(self, at: float | None = None) -> None:
        """A crash happened, now or then."""
        at = time.monotonic() if at is None else at
        self.faults.append(Fault(at, at, self._in_flight()))
        self.figures.runs += 1

    async def flows(self, count: int = 30, timeout_s: float = 60.0) -> None:
        """Until every endpoint has accepted so many more deliveries."""
        before = Counter(self.receiver.accepted_counts)

        def has_more() -> bool:
            now = self.receiver.accepted_counts
            return all(now[name] >= before[name] + count for name in ENDPOINTS)

        try:
            await self.receiver.wait_for(has_more, timeout_s=timeout_s)
        except AssertionError as error:
            async with self.judge_connection() as connection:
                left = "\n".join(await unsettled(connection))
            raise AssertionError(f"{error}\n{left}") from None

    async def instance_of(self, served: Served) -> str:
        """The id of the process that last started on the port of `served`."""
        async with self.judge_connection() as connection:
            found = await connection.fetchval(
                "SELECT instance_id::text FROM instance WHERE address LIKE $1 ORDER BY start_time DESC LIMIT 1",
                f"%:{served.grpc_port}",
            )
        assert found is not None, "it has not come up"
        return str(found)

    async def owner_of(self, endpoint: str) -> Served:
        """The process that holds the lease of an endpoint."""
        async with self.judge_connection() as connection:
            address = await connection.fetchval(
                "SELECT i.address FROM endpoint e JOIN lease l USING (partition)"
                " JOIN instance i ON i.instance_id = l.owner WHERE e.name = $1",
                endpoint,
            )
        port = int(str(address).rpartition(":")[2])
        return next(each for each in self.served if each.grpc_port == port)

    async def taken_over(self, instance: str, since: float) -> float:
        """Wait until nothing is leased to `instance`, nor to nobody; seconds since then. Counted as a takeover."""
        async with self.judge_connection() as connection:

            async def is_taken() -> bool:
                return not await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM lease WHERE owner IS NULL OR owner = $1::text::uuid)", instance
                )

            await until(is_taken, 30.0)
        took_s = time.monotonic() - since
        self.figures.takeovers_s.append(took_s)
        return took_s

    async def shared(self) -> None:
        """Until all partitions are leased to all replicas, about evenly."""
        async with self.judge_connection() as connection:

            async def is_even() -> bool:
                counts = await connection.fetch(
                    "SELECT count(*) FROM lease WHERE owner IS NOT NULL AND expire_time > now() GROUP BY owner"
                )
                shares = [row[0] for row in counts]
                return len(shares) == len(self.served) and sum(shares) == 256 and max(shares) - min(shares) <= 1

            await until(is_even, 30.0)

    @contextlib.asynccontextmanager
    async def judge_connection(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            yield connection
        finally:
            connection.terminate()

    def acknowledged(self) -> dict[str, int]:
        """How many events each publisher has been told are accepted."""
        return {publisher.name: len(publisher.ids) for publisher in (*self.publishers, self.doubter)}

    async def forget_acknowledged(self, synced: Mapping[str, int]) -> int:
        """After a failover, and before anybody writes: forget the acknowledgements of events that the new primary does
        not have. How many; AssertionError where one of the first `synced` is among them."""
        async with self.judge_connection() as connection:
            events = {event_id for _, _, event_id, _ in await connection.fetch(PLACES)}
        lost = 0
        for publisher in (*self.publishers, self.doubter):
            kept = [event_id in events for event_id in publisher.ids]
            assert all(kept[: synced[publisher.name]]), f"{self.name}: {publisher.name} lost what was synchronised"
            lost += publisher.keep(kept)
        return lost

    async def forget_receipts(self, resets: int) -> None:
        """Once every process has started afresh so many times: what was received until now may be of rows that a
        failover has undone. From now on nothing of them may come. Whether a row is undone shows in the end only: a
        publisher that got no answer asks again, and the row comes back to its place."""
        await until(lambda: self._have_reset(resets), 30.0)
        self.has_lost = True
        self.requests_before = len(self.receiver.requests)

    async def _have_reset(self, count: int) -> bool:
        told = [[record["message"] for record in each.records()] for each in self.served]
        return all(sum(message.startswith(RESET) for message in messages) >= count for messages in told)

    async def receipts(self, connection: asyncpg.Connection) -> list[Receipt]:
        """What receivers got, without what a failover has undone."""
        receipts = receipts_of(self.receiver.requests)
        before, since = receipts[: self.requests_before], receipts[self.requests_before :]
        if not before:
            return since
        to_monotonic = time.monotonic() - time.time()
        times = {tuple(place): at + to_monotonic for *place, at in await connection.fetch(PLACES)}
        kept = []
        for receipt in before:
            written_at = times.get((receipt.endpoint, receipt.sequence, receipt.event_id))
            if written_at is not None:
                receipt.is_ghost = receipt.at < written_at
                kept.append(receipt)
        return [*kept, *since]

    async def judge(self) -> None:
        """After the last fault and the last publish: wait for rest, and fail with every promise not kept."""
        began = time.monotonic()
        async with self.judge_connection() as connection:
            try:
                await until(lambda: is_settled(connection), SETTLES_S)
            except TimeoutError:
                raise AssertionError(f"not at rest in {SETTLES_S} s: {await unsettled(connection)}") from None
            self.figures.drained_s = time.monotonic() - began
            receipts = await self.receipts(connection)
            record = await read_record(
                connection,
                [*self.publishers, *self.finished, self.doubter],
                receipts,
                ENDPOINTS,
                has_lost=self.has_lost,
                kept_rows=self.kept_rows,
            )
            self.last_rows = record.rows
            record.refused = self.doubter.refused
            dead_letters = await connection.fetchval("SELECT count(*) FROM dead_letter")
        found = [*violations(record), *self.watched, *self._duplicates(receipts)]
        self._tell(dead_letters)
        assert not found, f"{self.name}: {len(found)} promises broken, the first:\n" + "\n".join(found[:20])

    def _duplicates(self, receipts: Sequence[Receipt]) -> list[str]:
        """Each copy must be owed to a fault: accepted in its last second or while it lasted; counted by fault."""
        accepted: dict[tuple[str, int], float] = {}
        for receipt in receipts:
            if receipt.is_accepted and receipt.answered_at is not None:
                accepted.setdefault((receipt.endpoint, receipt.sequence), receipt.answered_at)
        counts, found = [0] * len(self.faults), []
        for copy in copies_of_accepted(receipts):
            first = accepted[copy.endpoint, copy.sequence]
            number = self._owed_to(first)
            if number is None:
                found.append(f"{copy.endpoint}/{copy.sequence} came again without a fault, {self._distance(first)}")
            else:
                counts[number] += 1
        allowed = [self._allowed(fault, accepted.values()) for fault in self.faults]
        self.figures.duplicates += counts
        self.figures.duplicates_allowed += allowed
        for fault, count, most in zip(self.faults, counts, allowed, strict=True):
            if count > most:
                found.append(f"{count} duplicates of the fault at {fault.began_at:.3f}, at most {most} are allowed")
        return found

    def _owed_to(self, accepted_at: float) -> int | None:
        owed = [
            number
            for number, fault in enumerate(self.faults)
            if fault.began_at - UNFLUSHED_S <= accepted_at <= fault.ended_at + UNFLUSHED_S
        ]
        return owed[-1] if owed else None

    def _distance(self, at: float) -> str:
        return ", ".join(f"{at - fault.began_at:+.2f} s" for fault in self.faults)

    def _allowed(self, fault: Fault, accepted: Iterable[float]) -> int:
        """In flight, and what was accepted in the last second before it or while it lasted."""
        return fault.in_flight + sum(
            fault.began_at - UNFLUSHED_S <= at <= fault.ended_at + UNFLUSHED_S for at in accepted
        )

    def _tell(self, dead_letters: int) -> None:
        figures = self.figures
        figures.acknowledged = sum(len(publisher.ids) for publisher in self.publishers) + len(self.doubter.ids)
        figures.receipts = len(self.receiver.requests)
        logged = {record["message"] for each in self.served for record in each.records()}
        happened = {
            "steal": "a lease was lost" in logged,
            "fenced flush": FENCED in logged,
            "duplicate": any(figures.duplicates),
            "dead letter": dead_letters > 0,
            "takeover": bool(figures.takeovers_s),
        }
        figures.happened = [word for word, has in happened.items() if has]
        figures.save()

    def _in_flight(self) -> int:
        return sum(self.receiver.in_flight.values())

    def _usual(self, chance: random.Random) -> Callable[[Request], Behaviour]:
        def answer(request: Request) -> Behaviour:
            told = self.behave(request)
            if told is not None:
                return told
            if request.endpoint == "failing" and _is_hopeless(request):
                return Answer(500)
            return Answer(500 if chance.random() < FAILING_SHARE else 204, delay_s=0.002)

        return answer

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """Beside the block, look again and again whether a low watermark has passed what it must not."""

        async def watch() -> None:
            while True:
                with contextlib.suppress(*AWAY):
                    async with self.judge_connection() as connection:
                        while True:
                            self.watched += await passed_over(connection)
                            await asyncio.sleep(WATCH_INTERVAL_S)
                await asyncio.sleep(WATCH_INTERVAL_S)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch())
            try:
                yield
            finally:
                task.cancel()

    async def _make_endpoints(self) -> None:
        caller, url = self.callers[0], self.receiver.url
        await caller.tenant()
        keyed, free = endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY, endpoint_pb2.ORDERING_MODE_UNORDERED
        circuit = policy_pb2.CircuitBreaker(open_duration=Duration(nanos=500_000_000))
        usual = {"timeout": Duration(seconds=4), "retry_policy": _retried(ATTEMPTS), "circuit_breaker": circuit}
        never_disabled = policy_pb2.AutoDisable(off=True)
        failing = usual | {"retry_policy": _retried(ATTEMPTS_OF_FAILING), "auto_disable": never_disabled}
        await caller.endpoint("ordered", url("ordered"), **usual)
        await caller.endpoint("second", url("second"), **usual)
        await caller.endpoint("keyed", url("keyed"), ordering_mode=keyed, max_in_flight=4, **usual)
        await caller.endpoint("free", url("free"), ordering_mode=free, max_in_flight=8, **usual)
        await caller.endpoint("failing", url("failing"), **failing)


RESET = "the database lost commits"
LAUNCH = "tests.support.chaos.launch"


def _publisher(number: int, callers: Sequence[Caller]) -> SteadyPublisher:
    """Each begins with another replica, and goes to the next when that one is out of order."""
    turned = [*callers[number:], *callers[:number]]
    return SteadyPublisher(f"p{number}", turned, keys=4, batch=2, pause_s=0.08, again=AGAIN_IN_ANY_TROUBLE)


def _retried(attempts: int) -> policy_pb2.RetryPolicy:
    backoff = policy_pb2.ExponentialBackoff(
        min_backoff=Duration(nanos=100_000_000), max_backoff=Duration(seconds=1), factor=2.0
    )
    return policy_pb2.RetryPolicy(exponential=backoff, max_attempts=attempts)


def _is_hopeless(request: Request) -> bool:
    return int(request.event_id.rpartition("-")[2]) % 50 == 7
