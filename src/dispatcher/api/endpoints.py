"""EndpointService."""

from __future__ import annotations

import secrets
from dataclasses import replace

from google.protobuf.empty_pb2 import Empty
from webhooks.v1 import endpoint_pb2, endpoint_pb2_grpc

from dispatcher.api.convert import endpoints as convert
from dispatcher.api.convert.authentication import sealed as sealed_credentials
from dispatcher.api.convert.endpoints import PATTERN, EndpointRules
from dispatcher.api.convert.names import parse_name
from dispatcher.api.guard import actor
from dispatcher.api.interceptors import Context
from dispatcher.api.ports import EndpointListener, EndpointProber
from dispatcher.model import Endpoint, EndpointKey
from dispatcher.security.secrets import Keyring, SealContext
from dispatcher.security.signing import SigningSecret
from dispatcher.store import endpoint_deletion, endpoint_state, endpoints, key_rotation, signing_keys, tenants
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest, page_size
from dispatcher.store.signing_keys import NewSigningKey


class EndpointServicer(endpoint_pb2_grpc.EndpointServiceServicer):
    """Endpoints and their signing keys. A secret is plain only within the call that makes it."""

    def __init__(
        self,
        database: Database,
        rules: EndpointRules,
        keyring: Keyring,
        prober: EndpointProber,
        on_changed: EndpointListener,
        *,
        page_size_max: int,
    ) -> None:
        self._database = database
        self._rules = rules
        self._keyring = keyring
        self._prober = prober
        self._on_changed = on_changed
        self._page_size_max = page_size_max

    async def CreateEndpoint(
        self, request: endpoint_pb2.CreateEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        tenant, new, secret, given = convert.read_create(request, self._rules)
        if request.validate_only:
            sealed_credentials(given, None, EndpointKey(new.endpoint_id, new.endpoint_id), self._keyring)
            planned = await endpoints.create(self._database, tenant, new, (), validate_only=True)
            return convert.endpoint_message(tenant, planned, ())
        owner = await tenants.get(self._database, tenant)
        key = EndpointKey(owner.tenant_id, new.endpoint_id)
        sealed = self._seal(key, secret)
        new = replace(new, sealed_credentials=sealed_credentials(given, None, key, self._keyring))
        created = await endpoints.create(self._database, tenant, new, [sealed])
        self._on_changed(created.key)
        live = await signing_keys.list_live(self._database, created.key)
        return convert.endpoint_message(tenant, created, live, {sealed.key_id: secret.shown})

    async def GetEndpoint(self, request: endpoint_pb2.GetEndpointRequest, context: Context) -> endpoint_pb2.Endpoint:
        tenant, name = parse_name(request.name, PATTERN)
        found = await endpoints.get(self._database, tenant, name)
        return convert.endpoint_message(tenant, found, await signing_keys.list_live(self._database, found.key))

    async def ListEndpoints(
        self, request: endpoint_pb2.ListEndpointsRequest, context: Context
    ) -> endpoint_pb2.ListEndpointsResponse:
        (tenant,) = parse_name(request.parent, "tenants/{tenant}", field="parent")
        size = page_size(request.page_size, maximum=self._page_size_max)
        page = await endpoints.list_page(self._database, tenant, PageRequest(size, request.page_token, request.filter))
        keys = await signing_keys.list_live_of(self._database, [item.key for item in page.items])
        return endpoint_pb2.ListEndpointsResponse(
            endpoints=[convert.endpoint_message(tenant, item, keys[item.key]) for item in page.items],
            next_page_token=page.next_token,
        )

    async def UpdateEndpoint(
        self, request: endpoint_pb2.UpdateEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        tenant, name, change = convert.read_update(request, self._rules, self._keyring)
        updated = await endpoints.update(
            self._database, tenant, name, change, etag=request.endpoint.etag, validate_only=request.validate_only
        )
        if not request.validate_only:
            self._on_changed(updated.key)
        return convert.endpoint_message(tenant, updated, await signing_keys.list_live(self._database, updated.key))

    async def DeleteEndpoint(self, request: endpoint_pb2.DeleteEndpointRequest, context: Context) -> Empty:
        tenant, name = parse_name(request.name, PATTERN)
        deletion = await endpoint_deletion.delete(
            self._database,
            tenant,
            name,
            actor=actor(),
            force=request.force,
            etag=request.etag,
            validate_only=request.validate_only,
        )
        if not request.validate_only:
            self._on_changed(deletion.key)
        return Empty()

    async def PauseEndpoint(
        self, request: endpoint_pb2.PauseEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        tenant, name, reason = convert.read_pause(request)
        paused = await endpoint_state.pause(self._database, tenant, name, reason, etag=request.etag)
        return await self._changed(tenant, paused)

    async def ResumeEndpoint(
        self, request: endpoint_pb2.ResumeEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        tenant, name, rate = convert.read_resume(request)
        resumed = await endpoint_state.resume(self._database, tenant, name, rate, etag=request.etag)
        return await self._changed(tenant, resumed)

    async def EnableEndpoint(
        self, request: endpoint_pb2.EnableEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        tenant, name, rate = convert.read_resume(request)
        enabled = await endpoint_state.enable(self._database, tenant, name, rate, etag=request.etag)
        return await self._changed(tenant, enabled)

    async def _changed(self, tenant: str, endpoint: Endpoint) -> endpoint_pb2.Endpoint:
        self._on_changed(endpoint.key)
        return convert.endpoint_message(tenant, endpoint, await signing_keys.list_live(self._database, endpoint.key))

    async def RotateSigningKey(
        self, request: endpoint_pb2.RotateSigningKeyRequest, context: Context
    ) -> endpoint_pb2.RotateSigningKeyResponse:
        tenant, name, secret, overlap = convert.read_rotation(request, self._rules)
        present = await endpoints.get(self._database, tenant, name)
        sealed = self._seal(present.key, secret)
        rotation = await key_rotation.rotate(self._database, tenant, name, sealed, overlap=overlap, etag=request.etag)
        self._on_changed(rotation.endpoint.key)
        return endpoint_pb2.RotateSigningKeyResponse(
            signing_key=convert.signing_key_message(rotation.key, secret.shown),
            endpoint=convert.endpoint_message(tenant, rotation.endpoint, rotation.live),
        )

    async def TestEndpoint(
        self, request: endpoint_pb2.TestEndpointRequest, context: Context
    ) -> endpoint_pb2.TestEndpointResponse:
        tenant, name = parse_name(request.name, PATTERN)
        found = await endpoints.get(self._database, tenant, name)
        return convert.probe_message(await self._prober.ping(found.key))

    def _seal(self, key: EndpointKey, secret: SigningSecret) -> NewSigningKey:
        key_id = f"key-{secrets.token_hex(8)}"
        sealed = self._keyring.seal(secret.private, SealContext(key.tenant_id, key.endpoint_id, key_id))
        return NewSigningKey(key_id, sealed, secret.algorithm, secret.public)
