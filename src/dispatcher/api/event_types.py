"""EventTypeService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from webhooks.v1 import event_type_pb2, event_type_pb2_grpc

from dispatcher.api.convert import event_types as convert
from dispatcher.api.convert.names import parse_name
from dispatcher.api.interceptors import Context
from dispatcher.store import event_types as store
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest, page_size


class EventTypeServicer(event_type_pb2_grpc.EventTypeServiceServicer):
    """The catalogue of event types, straight from the store."""

    def __init__(self, database: Database, *, page_size_max: int) -> None:
        self._database = database
        self._page_size_max = page_size_max

    async def CreateEventType(
        self, request: event_type_pb2.CreateEventTypeRequest, context: Context
    ) -> event_type_pb2.EventType:
        tenant, new = convert.read_create(request)
        created = await store.create(self._database, tenant, new, validate_only=request.validate_only)
        return convert.event_type_message(tenant, created)

    async def GetEventType(
        self, request: event_type_pb2.GetEventTypeRequest, context: Context
    ) -> event_type_pb2.EventType:
        tenant, name = parse_name(request.name, convert.PATTERN)
        return convert.event_type_message(tenant, await store.get(self._database, tenant, name))

    async def ListEventTypes(
        self, request: event_type_pb2.ListEventTypesRequest, context: Context
    ) -> event_type_pb2.ListEventTypesResponse:
        (tenant,) = parse_name(request.parent, "tenants/{tenant}", field="parent")
        size = page_size(request.page_size, maximum=self._page_size_max)
        page = await store.list_page(self._database, tenant, PageRequest(size, request.page_token, request.filter))
        return event_type_pb2.ListEventTypesResponse(
            event_types=[convert.event_type_message(tenant, item) for item in page.items],
            next_page_token=page.next_token,
        )

    async def UpdateEventType(
        self, request: event_type_pb2.UpdateEventTypeRequest, context: Context
    ) -> event_type_pb2.EventType:
        tenant, name, change = convert.read_update(request)
        updated = await store.update(
            self._database, tenant, name, change, etag=request.event_type.etag, validate_only=request.validate_only
        )
        return convert.event_type_message(tenant, updated)

    async def DeleteEventType(self, request: event_type_pb2.DeleteEventTypeRequest, context: Context) -> Empty:
        tenant, name = parse_name(request.name, convert.PATTERN)
        await store.delete(self._database, tenant, name, etag=request.etag, validate_only=request.validate_only)
        return Empty()
