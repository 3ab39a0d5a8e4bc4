"""TenantService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from webhooks.v1 import tenant_pb2, tenant_pb2_grpc

from dispatcher.api.convert import tenants as convert
from dispatcher.api.convert.names import parse_name
from dispatcher.api.interceptors import Context
from dispatcher.model import TenantState
from dispatcher.store import tenants as store
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest, page_size


class TenantServicer(tenant_pb2_grpc.TenantServiceServicer):
    """Tenants, straight from the store."""

    def __init__(self, database: Database, *, page_size_max: int) -> None:
        self._database = database
        self._page_size_max = page_size_max

    async def CreateTenant(self, request: tenant_pb2.CreateTenantRequest, context: Context) -> tenant_pb2.Tenant:
        new = convert.read_create(request)
        return convert.tenant_message(await store.create(self._database, new, validate_only=request.validate_only))

    async def GetTenant(self, request: tenant_pb2.GetTenantRequest, context: Context) -> tenant_pb2.Tenant:
        (name,) = parse_name(request.name, convert.PATTERN)
        return convert.tenant_message(await store.get(self._database, name))

    async def ListTenants(
        self, request: tenant_pb2.ListTenantsRequest, context: Context
    ) -> tenant_pb2.ListTenantsResponse:
        size = page_size(request.page_size, maximum=self._page_size_max)
        page = await store.list_page(self._database, PageRequest(size, request.page_token, request.filter))
        return tenant_pb2.ListTenantsResponse(
            tenants=map(convert.tenant_message, page.items), next_page_token=page.next_token
        )

    async def UpdateTenant(self, request: tenant_pb2.UpdateTenantRequest, context: Context) -> tenant_pb2.Tenant:
        name, change = convert.read_update(request)
        updated = await store.update(
            self._database, name, change, etag=request.tenant.etag, validate_only=request.validate_only
        )
        return convert.tenant_message(updated)

    async def PauseTenant(self, request: tenant_pb2.PauseTenantRequest, context: Context) -> tenant_pb2.Tenant:
        name, reason = convert.read_pause(request)
        paused = await store.set_state(self._database, name, TenantState.PAUSED, reason, None, etag=request.etag)
        return convert.tenant_message(paused)

    async def ResumeTenant(self, request: tenant_pb2.ResumeTenantRequest, context: Context) -> tenant_pb2.Tenant:
        name, rate = convert.read_resume(request)
        resumed = await store.set_state(self._database, name, TenantState.ACTIVE, "", rate, etag=request.etag)
        return convert.tenant_message(resumed)

    async def DeleteTenant(self, request: tenant_pb2.DeleteTenantRequest, context: Context) -> Empty:
        (name,) = parse_name(request.name, convert.PATTERN)
        await store.delete(self._database, name, etag=request.etag, validate_only=request.validate_only)
        return Empty()
