"""ReplayService."""

from __future__ import annotations

from collections.abc import Sequence

from uuid_utils.compat import uuid7
from webhooks.v1 import replay_pb2, replay_pb2_grpc

from dispatcher.api.convert import replays as convert
from dispatcher.api.convert.names import parse_name
from dispatcher.api.guard import actor
from dispatcher.api.interceptors import Context
from dispatcher.model import Endpoint
from dispatcher.routing.patterns import matches
from dispatcher.store import endpoints, replay_counts, replays
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest, page_size
from dispatcher.store.replay_counts import Planned, Wanted
from dispatcher.store.replays import NewReplay, Replay


class Replays:
    """Starts replays; shared by ReplayService and DeadLetterService."""

    def __init__(self, database: Database, *, rate_default_per_s: float, look_back_s: float) -> None:
        self._database = database
        self._rate_default_per_s = rate_default_per_s
        self._look_back_s = look_back_s

    def rate(self, asked: float | None) -> float:
        """The rate to use."""
        return self._rate_default_per_s if asked is None else asked

    async def plan(self, endpoint: Endpoint, wanted: Wanted) -> Planned:
        """Fix and count what would be sent."""
        return await replay_counts.plan(self._database, endpoint, wanted, _matches_any, self._look_back_s)

    async def start(
        self, tenant: str, name: str, endpoint: Endpoint, wanted: Wanted, planned: Planned, rate: float | None
    ) -> Replay:
        """Put it on record; the endpoint's owner finds it there. Errors: AlreadyExistsError."""
        new = NewReplay(
            replay_id=uuid7(),
            name=name,
            key=endpoint.key,
            kind=wanted.kind,
            arguments=planned.arguments,
            position=planned.position,
            rate_per_s=self.rate(rate),
            matched_count=planned.matched_count,
            actor=actor(),
        )
        return await replays.create(self._database, tenant, new)


class ReplayServicer(replay_pb2_grpc.ReplayServiceServicer):
    """Replays on record; whoever owns their endpoints runs them."""

    def __init__(self, database: Database, starting: Replays, *, page_size_max: int) -> None:
        self._database = database
        self._starting = starting
        self._page_size_max = page_size_max

    async def CreateReplay(self, request: replay_pb2.CreateReplayRequest, context: Context) -> replay_pb2.Replay:
        read = convert.read_create(request)
        endpoint = await endpoints.get(self._database, read.tenant, read.endpoint)
        planned = await self._starting.plan(endpoint, read.wanted)
        if request.dry_run:
            rate = self._starting.rate(read.rate_per_s)
            return convert.planned_message(read.tenant, read, planned.matched_count, rate)
        started = await self._starting.start(read.tenant, read.name, endpoint, read.wanted, planned, read.rate_per_s)
        return convert.replay_message(read.tenant, started)

    async def GetReplay(self, request: replay_pb2.GetReplayRequest, context: Context) -> replay_pb2.Replay:
        tenant, name = parse_name(request.name, convert.PATTERN)
        return convert.replay_message(tenant, await replays.get(self._database, tenant, name))

    async def ListReplays(
        self, request: replay_pb2.ListReplaysRequest, context: Context
    ) -> replay_pb2.ListReplaysResponse:
        (tenant,) = parse_name(request.parent, "tenants/{tenant}", field="parent")
        size = page_size(request.page_size, maximum=self._page_size_max)
        page = await replays.list_page(self._database, tenant, PageRequest(size, request.page_token, request.filter))
        return replay_pb2.ListReplaysResponse(
            replays=[convert.replay_message(tenant, item) for item in page.items], next_page_token=page.next_token
        )

    async def CancelReplay(self, request: replay_pb2.CancelReplayRequest, context: Context) -> replay_pb2.Replay:
        tenant, name = parse_name(request.name, convert.PATTERN)
        return convert.replay_message(tenant, await replays.cancel(self._database, tenant, name))


def _matches_any(patterns: Sequence[str], event_type: str) -> bool:
    return any(matches(pattern, event_type) for pattern in patterns)
