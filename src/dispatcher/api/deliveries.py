"""DeliveryService: what was published, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from uuid_utils.compat import uuid7
from webhooks.v1 import delivery_pb2, delivery_pb2_grpc, event_pb2, tenant_status_pb2

from dispatcher.api.convert import deliveries as convert
from dispatcher.api.convert.attempts import attempt_message
from dispatcher.api.convert.checks import Violations, text
from dispatcher.api.convert.events import event_message
from dispatcher.api.convert.names import ANY, parse_name, read_name
from dispatcher.api.convert.statistics import tenant_status_message
from dispatcher.api.guard import actor
from dispatcher.api.interceptors import Context, wait_s
from dispatcher.api.ports import CommandListener
from dispatcher.api.turns import Turns
from dispatcher.errors import (
    CommandPendingError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
)
from dispatcher.model import Command, CommandKind, EndpointKey
from dispatcher.policy import RetryDefaults
from dispatcher.store import (
    attempt_history,
    commands,
    deliveries,
    endpoint_status,
    endpoints,
    events,
    expunge,
    halts,
    recent,
    tenant_status,
)
from dispatcher.store.database import Database
from dispatcher.store.delivery_commands import CommandOutcome
from dispatcher.store.paging import PageRequest, page_size
from dispatcher.store.recent import StatisticsLimits
from dispatcher.store.statistics import DeliveryStatistics

DELIVERY = "tenants/{tenant}/endpoints/{endpoint}/deliveries/{delivery}"
REASON_CHARS_MAX = 256
STATISTICS_MAX = 2
"""Statuses of tenants worked out at a time, and statistics of endpoints: they share the pool and the core with
delivery."""
STATISTICS_WAITING_MAX = 16
"""Calls of either that wait for one of these to end."""
STATISTICS_EACH_MAX = 4
"""Of these calls one tenant's, at work or waiting."""

_FULL_BY_DEFAULT = {
    event_pb2.EVENT_VIEW_UNSPECIFIED: True,
    event_pb2.EVENT_VIEW_FULL: True,
    event_pb2.EVENT_VIEW_BASIC: False,
}
_BASIC_BY_DEFAULT = {**_FULL_BY_DEFAULT, event_pb2.EVENT_VIEW_UNSPECIFIED: False}


class DeliveryServicer(delivery_pb2_grpc.DeliveryServiceServicer):
    """Reads straight from the store; commands are appended for the endpoint's owner, whose answer is waited for."""

    def __init__(
        self,
        database: Database,
        retry: RetryDefaults,
        on_command: CommandListener,
        *,
        page_size_max: int,
        command_wait_s: float,
        statistics: StatisticsLimits,
    ) -> None:
        self._database = database
        self._retry = retry
        self._on_command = on_command
        self._page_size_max = page_size_max
        self._command_wait_s = command_wait_s
        self._statistics = statistics
        self._tenant_turns, self._endpoint_turns = (
            Turns(STATISTICS_MAX, STATISTICS_WAITING_MAX, STATISTICS_EACH_MAX, reason="TENANT_STATUSES_MAX")
            for _ in range(2)
        )

    async def GetEvent(self, request: delivery_pb2.GetEventRequest, context: Context) -> event_pb2.Event:
        tenant, event_id = parse_name(request.name, "tenants/{tenant}/events/{event}")
        with_data = _is_full(request.view, _FULL_BY_DEFAULT)
        return event_message(tenant, await events.get(self._database, tenant, event_id, with_data=with_data))

    async def ExpungeEvent(self, request: delivery_pb2.ExpungeEventRequest, context: Context) -> event_pb2.Event:
        violations = Violations()
        tenant, event_id = read_name(request.name, "tenants/{tenant}/events/{event}", violations)
        reason = _reason(request.reason, violations)
        violations.raise_if_any()
        await expunge.expunge(self._database, tenant, event_id, reason=reason, actor=actor())
        try:
            return event_message(tenant, await events.get(self._database, tenant, event_id))
        except NotFoundError:  # older than the retention: only its dead letters were left
            return event_pb2.Event(name=request.name, id=event_id)

    async def ListEvents(
        self, request: delivery_pb2.ListEventsRequest, context: Context
    ) -> delivery_pb2.ListEventsResponse:
        (tenant,) = parse_name(request.parent, "tenants/{tenant}", field="parent")
        with_data = _is_full(request.view, _BASIC_BY_DEFAULT)
        page = await events.list_page(self._database, tenant, self._page(request), with_data=with_data)
        return delivery_pb2.ListEventsResponse(
            events=[event_message(tenant, event) for event in page.items], next_page_token=page.next_token
        )

    async def GetDelivery(self, request: delivery_pb2.GetDeliveryRequest, context: Context) -> delivery_pb2.Delivery:
        tenant, endpoint, seq = parse_name(request.name, "tenants/{tenant}/endpoints/{endpoint}/deliveries/{delivery}")
        return convert.delivery_message(tenant, await deliveries.get(self._database, tenant, endpoint, int(seq)))

    async def ListDeliveries(
        self, request: delivery_pb2.ListDeliveriesRequest, context: Context
    ) -> delivery_pb2.ListDeliveriesResponse:
        tenant, endpoint = parse_name(
            request.parent, "tenants/{tenant}/endpoints/{endpoint}", field="parent", wild=True
        )
        page = await deliveries.list_page(self._database, tenant, _unless_any(endpoint), self._page(request))
        return delivery_pb2.ListDeliveriesResponse(
            deliveries=[convert.delivery_message(tenant, item) for item in page.items],
            next_page_token=page.next_token,
        )

    async def ListAttempts(
        self, request: delivery_pb2.ListAttemptsRequest, context: Context
    ) -> delivery_pb2.ListAttemptsResponse:
        tenant, endpoint, seq = parse_name(
            request.parent,
            "tenants/{tenant}/endpoints/{endpoint}/deliveries/{delivery}",
            field="parent",
            wild=True,
        )
        if endpoint == ANY != seq:
            raise InvalidRequestError([FieldViolation("parent", "a delivery belongs to one endpoint: name it")])
        page = await attempt_history.list_page(
            self._database, tenant, _unless_any(endpoint), None if seq == ANY else int(seq), self._page(request)
        )
        return delivery_pb2.ListAttemptsResponse(
            attempts=[attempt_message(tenant, item.endpoint_name, item.attempt) for item in page.items],
            next_page_token=page.next_token,
        )

    async def SkipDelivery(self, request: delivery_pb2.SkipDeliveryRequest, context: Context) -> delivery_pb2.Delivery:
        violations = Violations()
        names = read_name(request.name, DELIVERY, violations)
        reason = _reason(request.reason, violations)
        violations.raise_if_any()
        return await self._command(CommandKind.SKIP_DELIVERY, names, {"reason": reason}, context)

    async def RetryDelivery(
        self, request: delivery_pb2.RetryDeliveryRequest, context: Context
    ) -> delivery_pb2.Delivery:
        return await self._command(CommandKind.RETRY_DELIVERY, parse_name(request.name, DELIVERY), {}, context)

    async def _command(
        self, kind: CommandKind, names: Sequence[str], arguments: Mapping[str, str], context: Context
    ) -> delivery_pb2.Delivery:
        """Ask the owner, wait for its answer, and tell what the delivery is now."""
        tenant, endpoint, seq = names[0], names[1], int(names[2])
        found = await self._find(tenant, endpoint, seq)
        facts: dict[str, int | str] = {"seq": seq, "event_id": found.event_id, **arguments}
        command = Command(uuid7(), found.key, kind, facts, actor())
        await commands.append(self._database, command)
        self._on_command(command.key)
        waited_s = wait_s(context, self._command_wait_s)
        result = await commands.wait_result(self._database, command.key.tenant_id, command.command_id, waited_s)
        if result is None:
            raise CommandPendingError(
                f"{request_name(names)}: its owner has not answered within {max(waited_s, 0):.1f} s; the command "
                "stays, and GetDelivery tells what became of it"
            )
        if result["outcome"] == CommandOutcome.SETTLED.value:
            raise PreconditionError(
                f"{request_name(names)} has ended already, as {found.state.value}",
                reason="DELIVERY_SETTLED",
                subject=request_name(names),
            )
        return convert.delivery_message(tenant, await deliveries.find(self._database, found.key, seq) or found)

    async def _find(self, tenant: str, endpoint: str, seq: int) -> deliveries.Delivery:
        """A delivery whose row the retention has taken may still be what its endpoint is halted at."""
        try:
            return await deliveries.get(self._database, tenant, endpoint, seq)
        except NotFoundError:
            key = (await endpoints.get(self._database, tenant, endpoint)).key
            halted = await halts.find_delivery(self._database, key, seq)
            if halted is None:
                raise
            return halted

    async def GetEndpointStatus(
        self, request: delivery_pb2.GetEndpointStatusRequest, context: Context
    ) -> delivery_pb2.EndpointStatus:
        tenant, endpoint = parse_name(request.name, "tenants/{tenant}/endpoints/{endpoint}/status")
        status = await endpoint_status.read(self._database, tenant, endpoint)
        lately = await self._lately(tenant, status.endpoint.key, context)
        return convert.status_message(tenant, status, self._retry, lately)

    async def _lately(self, tenant: str, key: EndpointKey, context: Context) -> DeliveryStatistics | None:
        """How an endpoint's deliveries have gone; None where it takes too long, or so many ask that others would be
        kept from their work."""
        # Half of the time for the turn: an answer without statistics is better than none.
        deadline = asyncio.get_running_loop().time() + wait_s(context, self._statistics.timeout_s) / 2
        try:
            async with self._endpoint_turns.turn(tenant, deadline):
                return await recent.of_endpoint(self._database, key, self._statistics)
        except OverloadedError:
            return None

    async def GetTenantStatus(
        self, request: tenant_status_pb2.GetTenantStatusRequest, context: Context
    ) -> tenant_status_pb2.TenantStatus:
        (tenant,) = parse_name(request.name, "tenants/{tenant}/status")
        deadline = asyncio.get_running_loop().time() + wait_s(context, self._statistics.call_s)
        async with self._tenant_turns.turn(tenant, deadline):
            return tenant_status_message(await tenant_status.read(self._database, tenant, self._statistics, deadline))

    def _page(
        self,
        request: delivery_pb2.ListEventsRequest | delivery_pb2.ListDeliveriesRequest | delivery_pb2.ListAttemptsRequest,
    ) -> PageRequest:
        size = page_size(request.page_size, maximum=self._page_size_max)
        return PageRequest(size, request.page_token, request.filter)


def _reason(given: str, violations: Violations) -> str:
    reason = text(given, "reason", violations, chars_max=REASON_CHARS_MAX)
    if not reason:
        violations.add("reason", "must be given: it stays on record")
    return reason


def request_name(names: Sequence[str]) -> str:
    """The delivery that a request names."""
    return DELIVERY.format(tenant=names[0], endpoint=names[1], delivery=names[2])


def _unless_any(segment: str) -> str | None:
    return None if segment == ANY else segment


def _is_full(view: int, views: dict[event_pb2.EventView.ValueType, bool]) -> bool:
    for known, is_full in views.items():
        if known == view:
            return is_full
    raise InvalidRequestError([FieldViolation("view", "must be BASIC or FULL")])
