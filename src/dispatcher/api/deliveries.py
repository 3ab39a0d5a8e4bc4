"""DeliveryService: what was published, and what became of it."""

from __future__ import annotations

from webhooks.v1 import delivery_pb2, delivery_pb2_grpc, event_pb2

from dispatcher.api.convert import deliveries as convert
from dispatcher.api.convert.events import event_message
from dispatcher.api.convert.names import ANY, parse_name
from dispatcher.api.interceptors import Context
from dispatcher.config import RetrySettings
from dispatcher.errors import FieldViolation, InvalidRequestError
from dispatcher.store import attempt_history, deliveries, endpoint_status, events
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest, page_size

_FULL_BY_DEFAULT = {
    event_pb2.EVENT_VIEW_UNSPECIFIED: True,
    event_pb2.EVENT_VIEW_FULL: True,
    event_pb2.EVENT_VIEW_BASIC: False,
}
_BASIC_BY_DEFAULT = {**_FULL_BY_DEFAULT, event_pb2.EVENT_VIEW_UNSPECIFIED: False}


class DeliveryServicer(delivery_pb2_grpc.DeliveryServiceServicer):
    """Read-only, straight from the store."""

    def __init__(self, database: Database, retry: RetrySettings, *, page_size_max: int) -> None:
        self._database = database
        self._retry = retry
        self._page_size_max = page_size_max

    async def GetEvent(self, request: delivery_pb2.GetEventRequest, context: Context) -> event_pb2.Event:
        tenant, event_id = parse_name(request.name, "tenants/{tenant}/events/{event}")
        with_data = _is_full(request.view, _FULL_BY_DEFAULT)
        return event_message(tenant, await events.get(self._database, tenant, event_id, with_data=with_data))

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
            attempts=[convert.attempt_message(tenant, item.endpoint_name, item.attempt) for item in page.items],
            next_page_token=page.next_token,
        )

    async def GetEndpointStatus(
        self, request: delivery_pb2.GetEndpointStatusRequest, context: Context
    ) -> delivery_pb2.EndpointStatus:
        tenant, endpoint = parse_name(request.name, "tenants/{tenant}/endpoints/{endpoint}/status")
        status = await endpoint_status.read(self._database, tenant, endpoint)
        return convert.status_message(tenant, status, self._retry)

    def _page(
        self,
        request: delivery_pb2.ListEventsRequest | delivery_pb2.ListDeliveriesRequest | delivery_pb2.ListAttemptsRequest,
    ) -> PageRequest:
        size = page_size(request.page_size, maximum=self._page_size_max)
        return PageRequest(size, request.page_token, request.filter)


def _unless_any(segment: str) -> str | None:
    return None if segment == ANY else segment


def _is_full(view: int, views: dict[event_pb2.EventView.ValueType, bool]) -> bool:
    for known, is_full in views.items():
        if known == view:
            return is_full
    raise InvalidRequestError([FieldViolation("view", "must be BASIC or FULL")])
