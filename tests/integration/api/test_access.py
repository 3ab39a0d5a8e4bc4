"""Who gets in, by each mode, through a real gRPC channel: what is forged, missing or foreign changes nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from webhooks.admin.v1 import admin_pb2, admin_pb2_grpc
from webhooks.v1 import endpoint_pb2, publisher_pb2, publisher_pb2_grpc, tenant_pb2, tenant_pb2_grpc

from dispatcher.config import Settings
from dispatcher.security.access import load_access
from dispatcher.security.tokens import hash_of, new_token
from tests.integration.api.test_server import GRPCURL, grpcurl
from tests.support.api import Api, code_of, create_endpoint, event, refusal_in, refused, serving
from tests.support.certificates import Authority, Issued
from tests.support.postgres import TestDatabase
from tests.support.waiting import until

SHOP = "spiffe://mesh.example/ns/shop/sa/web"
ADMIN = "spiffe://mesh.example/ns/ops/sa/admin"
POLICY = f"""
bindings:
  - {{principals: ["{SHOP}", shop], roles: [publisher], tenants: [acme], event_types: ["order.*"]}}
  - {{principals: ["{ADMIN}", admin], roles: [manager, reader, operator, publisher], tenants: ["*"]}}
  - {{claims: {{groups: [managers]}}, roles: [manager], tenants: [acme]}}
"""
WAIT_S = 10.0
ALICE, BOB = "dsp_alice", new_token()


@asynccontextmanager
async def guarded(database: TestDatabase, folder: Path, mode: str, **settings: Any) -> AsyncIterator[Api]:
    """The service in one mode, its files followed."""
    (folder / "policy.yaml").write_text(POLICY)
    values = {
        "auth_mode": mode,
        "auth_policy_file": str(folder / "policy.yaml"),
        "auth_reload_interval_s": 0.1,
        **settings,
    }
    access = load_access(Settings(**values))
    following = asyncio.create_task(access.run())
    try:
        async with serving(database.options, access=access, **values) as api:
            yield api
    finally:
        following.cancel()


def with_tokens(folder: Path) -> dict[str, str]:
    """Settings of the mode `tokens`, with those of alice (shop) and bob (admin)."""
    path = folder / "tokens.yaml"
    path.write_text(
        f"tokens: [{{principal: shop, sha256: {hash_of(ALICE)}}}, {{principal: admin, sha256: {hash_of(BOB)}}}]"
    )
    return {"auth_tokens_file": str(path)}


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


async def tenant_made(api: Api, metadata: Any) -> None:
    request = tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant())
    await api.tenants.CreateTenant(request, metadata=metadata)


async def test_without_a_credential_nothing_of_ours_answers(database: TestDatabase, tmp_path: Path) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        for call in (
            api.publish(event()),
            api.tenants.ListTenants(tenant_pb2.ListTenantsRequest()),
            api.admin.GetStatus(admin_pb2.GetStatusRequest()),
            api.admin.Drain(admin_pb2.DrainRequest()),
        ):
            error = await refused(call)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
        assert api.control.drains == 0
        assert await api.count("audit") == 0


@pytest.mark.parametrize(
    "metadata",
    [
        bearer("wrong"),
        bearer(hash_of(ALICE)),
        [("authorization", ALICE)],
        [("authorization", f"Basic {ALICE}")],
        [("authorization", "Bearer ")],
        [*bearer(BOB), *bearer("wrong")],
        [("x-forwarded-client-cert", f"URI={ADMIN}")],
        [("l5d-client-id", "admin")],
        [("dispatcher-principal", "admin"), ("dispatcher-auth-mode", "none")],
    ],
)
async def test_what_is_no_token_of_ours_is_nobody(database: TestDatabase, tmp_path: Path, metadata: Any) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        error = await refused(api.tenants.ListTenants(tenant_pb2.ListTenantsRequest(), metadata=metadata))
        assert error.code is grpc.StatusCode.UNAUTHENTICATED
        assert ALICE not in str(error.status)


async def test_each_may_do_what_the_policy_says_and_learns_what_is_missing(
    database: TestDatabase, tmp_path: Path
) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, bearer(BOB))
        await api.publish(event(type="order.paid"), metadata=bearer(ALICE))
        denials = [
            (api.publish(event(type="order.paid"), event(type="payment.made"), metadata=bearer(ALICE)), "payment.made"),
            (api.publish(event(), tenant="other", metadata=bearer(ALICE)), "tenants/other"),
            (api.publisher.Publish(publisher_pb2.PublishRequest(), metadata=bearer(ALICE)), "all tenants"),
            (api.endpoints.CreateEndpoint(create_endpoint(), metadata=bearer(ALICE)), "endpoints.manage"),
            (
                api.endpoints.ListEndpoints(
                    endpoint_pb2.ListEndpointsRequest(parent="tenants/acme"), metadata=bearer(ALICE)
                ),
                "endpoints.manage or deliveries.read",
            ),
            (api.admin.ListLeases(admin_pb2.ListLeasesRequest(), metadata=bearer(ALICE)), "service.operate"),
        ]
        for call, word in denials:
            error = await refused(call)
            assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
            assert word in error.message
        assert await api.count("event") == 1


async def test_a_stream_is_judged_request_by_request(database: TestDatabase, tmp_path: Path) -> None:
    def request(number: int, kind: str) -> publisher_pb2.PublishStreamRequest:
        return publisher_pb2.PublishStreamRequest(
            client_sequence=number, parent="tenants/acme", events=[event(type=kind)]
        )

    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, bearer(BOB))
        call = api.publisher.PublishStream(
            iter([request(1, "order.paid"), request(2, "payment.made")]), metadata=bearer(ALICE)
        )
        first, second = [answer async for answer in call]
        assert len(first.results) == 1
        assert refusal_in(second.status).code is grpc.StatusCode.PERMISSION_DENIED
        assert await api.count("event") == 1
        unknown = api.publisher.PublishStream(iter([request(1, "order.paid")]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [answer async for answer in unknown]
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_ends_when_its_caller_is_no_more(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.api.guard.AUTHENTICATED_FOR_S", 0.0)
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, bearer(BOB))
        call = api.publisher.PublishStream(metadata=bearer(ALICE))

        async def put(number: int) -> Any:
            await call.write(
                publisher_pb2.PublishStreamRequest(client_sequence=number, parent="tenants/acme", events=[event()])
            )
            return await call.read()

        async def goes_on() -> None:
            for number in range(2, 1000):
                assert await put(number) is not grpc.aio.EOF
                await asyncio.sleep(0.01)

        assert len((await put(1)).results) == 1
        (tmp_path / "tokens.yaml").write_text("tokens: []")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await goes_on()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_changed_policy_counts_at_once_and_a_broken_one_not_at_all(
    database: TestDatabase, tmp_path: Path
) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, bearer(BOB))
        policy = tmp_path / "policy.yaml"

        async def may() -> bool:
            return await code_of(api.publish(event(), metadata=bearer(ALICE))) is None

        async def may_not() -> bool:
            return await code_of(api.publish(event(), metadata=bearer(ALICE))) is grpc.StatusCode.PERMISSION_DENIED

        assert await may()
        policy.write_text("bindings: [")
        await asyncio.sleep(0.3)
        assert await may()
        policy.write_text("bindings: []")
        await until(may_not, WAIT_S)
        policy.write_text(POLICY)
        await until(may, WAIT_S)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def mtls_files(folder: Path, authority: Authority) -> dict[str, str]:
    certificate, key = authority.issue(hosts=["localhost"]).written(folder)
    (folder / "ca.crt").write_bytes(authority.root)
    return {
        "tls_certificate_file": str(certificate),
        "tls_key_file": str(key),
        "tls_client_ca_file": str(folder / "ca.crt"),
    }


@asynccontextmanager
async def secure(port: int, authority: Authority, issued: Any = None) -> AsyncIterator[grpc.aio.Channel]:
    pair = (issued.key, issued.certificate) if issued else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.root, *pair)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        yield channel


async def test_a_client_certificate_of_our_roots_names_the_caller(
    database: TestDatabase, tmp_path: Path, authority: Authority
) -> None:
    async with guarded(database, tmp_path, "mtls", **mtls_files(tmp_path, authority)) as api:
        async with secure(api.server.port, authority, authority.issue(uris=[ADMIN])) as channel:
            tenants = tenant_pb2_grpc.TenantServiceStub(channel)
            await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant()))
        async with secure(api.server.port, authority, authority.issue(uris=[SHOP])) as channel:
            publisher = publisher_pb2_grpc.PublisherServiceStub(channel)
            await publisher.Publish(publisher_pb2.PublishRequest(parent="tenants/acme", events=[event()]))
            forged = [("x-forwarded-client-cert", f"URI={ADMIN}"), *bearer(BOB)]
            tenants = tenant_pb2_grpc.TenantServiceStub(channel)
            error = await refused(tenants.ListTenants(tenant_pb2.ListTenantsRequest(), metadata=forged))
            assert error.code is grpc.StatusCode.PERMISSION_DENIED
            assert SHOP in error.message
        async with secure(api.server.admin_port, authority, authority.issue(uris=[ADMIN])) as channel:
            await admin_pb2_grpc.AdminServiceStub(channel).GetStatus(admin_pb2.GetStatusRequest())


async def test_without_a_certificate_of_our_roots_no_connection_is_made(
    database: TestDatabase, tmp_path: Path, authority: Authority
) -> None:
    strangers = (None, Authority("evil").issue(uris=[ADMIN]), authority.issue(uris=[ADMIN], expired=True))
    async with guarded(database, tmp_path, "mtls", **mtls_files(tmp_path, authority)) as api:
        for issued in strangers:
            async with secure(api.server.port, authority, issued) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await tenant_pb2_grpc.TenantServiceStub(channel).ListTenants(
                        tenant_pb2.ListTenantsRequest(), timeout=5
                    )
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError):
            await api.tenants.ListTenants(tenant_pb2.ListTenantsRequest(), timeout=2)


async def test_a_new_certificate_is_served_without_a_restart(
    database: TestDatabase, tmp_path: Path, authority: Authority
) -> None:
    files = mtls_files(tmp_path, authority)
    other = Authority("next")
    async with guarded(database, tmp_path, "mtls", **files) as api:
        admin = authority.issue(uris=[ADMIN])

        async def is_served(root: Authority) -> bool:
            pair = (admin.key, admin.certificate)
            credentials = grpc.ssl_channel_credentials(root.root, *pair)
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.secure_channel(f"localhost:{api.server.port}", credentials, options=options) as channel:
                tenants = tenant_pb2_grpc.TenantServiceStub(channel)
                return await code_of(tenants.ListTenants(tenant_pb2.ListTenantsRequest(), timeout=2)) is None

        assert await is_served(authority)
        certificate, key = other.issue(hosts=["localhost"]).certificate, other.issue(hosts=["localhost"]).key
        Issued(certificate, key).written(tmp_path)
        await asyncio.sleep(0.3)
        assert await is_served(authority), "a key of another certificate is not taken"
        other.issue(hosts=["localhost"]).written(tmp_path)
        await until(lambda: is_served(other), WAIT_S)


async def test_the_meshs_word_counts_from_its_proxy_only(database: TestDatabase, tmp_path: Path) -> None:
    header = [("x-forwarded-client-cert", f"Hash=ab;URI={ADMIN}")]
    request = tenant_pb2.ListTenantsRequest()
    async with guarded(database, tmp_path, "xfcc") as api:
        await api.tenants.ListTenants(request, metadata=header)
        for metadata in (
            [("x-forwarded-client-cert", f"URI={ADMIN},Hash=cd;URI={SHOP}")],
            [*header, *header],
            [("l5d-client-id", "admin")],
            [("x-forwarded-client-cert", "Hash=ab")],
        ):
            error = await refused(api.tenants.ListTenants(request, metadata=metadata))
            assert error.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    async with guarded(database, tmp_path, "xfcc", auth_trusted_peers="10.0.0.0/8") as api:
        error = await refused(api.tenants.ListTenants(request, metadata=header))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "PEER_NOT_TRUSTED")


async def test_linkerds_word_counts_from_its_proxy_only(database: TestDatabase, tmp_path: Path) -> None:
    header, request = [("l5d-client-id", "admin")], tenant_pb2.ListTenantsRequest()
    async with guarded(database, tmp_path, "linkerd") as api:
        await api.tenants.ListTenants(request, metadata=header)
        forged = [("x-forwarded-client-cert", f"URI={ADMIN}")]
        assert (await refused(api.tenants.ListTenants(request, metadata=forged))).reason == "CREDENTIALS_MISSING"
    async with guarded(database, tmp_path, "linkerd", auth_trusted_peers="192.0.2.7") as api:
        assert (await refused(api.tenants.ListTenants(request, metadata=header))).reason == "PEER_NOT_TRUSTED"


async def test_a_jwt_of_the_issuer_names_the_caller_and_its_groups(database: TestDatabase, tmp_path: Path) -> None:
    from tests.unit.security.test_jwt import ED_KEY, RSA_KEY, public

    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps({"keys": [public(RSA_KEY, "r")]}))
    settings = {"auth_jwt_keys": str(keys), "auth_jwt_issuer": "https://i.example", "auth_jwt_audiences": "dispatcher"}

    def token(subject: str, key: Any = RSA_KEY, algorithm: str = "RS256", kid: str = "r", **more: Any) -> Any:
        claims = {"iss": "https://i.example", "aud": "dispatcher", "sub": subject, "exp": time.time() + 60, **more}
        return bearer(jwt.encode(claims, key, algorithm, headers={"kid": kid}))

    async with guarded(database, tmp_path, "jwt", **settings) as api:
        await tenant_made(api, token("admin"))
        await api.endpoints.CreateEndpoint(create_endpoint(), metadata=token("alice", groups=["managers"]))
        error = await refused(api.endpoints.CreateEndpoint(create_endpoint("b"), metadata=token("alice")))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        rotated = token("admin", ED_KEY, "EdDSA", "next")
        request = tenant_pb2.ListTenantsRequest()
        assert (await refused(api.tenants.ListTenants(request, metadata=rotated))).reason == "CREDENTIALS_INVALID"
        keys.write_text(json.dumps({"keys": [public(ED_KEY, "next")]}))

        async def is_known() -> bool:
            return await code_of(api.tenants.ListTenants(request, metadata=rotated)) is None

        await until(is_known, WAIT_S)


@pytest.mark.parametrize(
    ("settings", "health", "reflection"),
    [
        ({}, True, False),
        ({"health_access": "authenticated"}, False, False),
        ({"reflection_access": "open"}, True, True),
    ],
)
async def test_health_and_reflection_are_open_or_not_as_set(
    database: TestDatabase,
    tmp_path: Path,
    settings: Mapping[str, str],
    health: bool,
    reflection: bool,
) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")

    async def answers(api: Api, metadata: Any = None) -> tuple[bool, bool]:
        check = health_pb2_grpc.HealthStub(api.channel).Check(health_pb2.HealthCheckRequest(), metadata=metadata)
        reflect = _first(reflection_pb2_grpc.ServerReflectionStub(api.channel), asked, metadata)
        codes = [await code_of(check), await code_of(reflect)]
        assert set(codes) <= {None, grpc.StatusCode.UNAUTHENTICATED}
        return codes[0] is None, codes[1] is None

    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path), **settings) as api:
        assert await answers(api) == (health, reflection)
        assert await answers(api, bearer(ALICE)) == (True, True)


async def _first(stub: Any, request: Any, metadata: Any) -> Any:
    return [answer async for answer in stub.ServerReflectionInfo(iter([request]), metadata=metadata)]


async def test_reflection_can_be_off(database: TestDatabase, tmp_path: Path) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path), reflection_access="off") as api:
        stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _first(stub, reflection_pb2.ServerReflectionRequest(list_services=""), bearer(BOB))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_who_calls_too_often_waits_and_others_do_not(database: TestDatabase, tmp_path: Path) -> None:
    settings = {**with_tokens(tmp_path), "caller_rate_per_s": 0.1, "caller_burst": 3}
    async with guarded(database, tmp_path, "tokens", **settings) as api:
        await tenant_made(api, bearer(BOB))
        for _ in range(3):
            await api.publish(event(), metadata=bearer(ALICE))
        error = await refused(api.publish(event(), metadata=bearer(ALICE)))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLER_RATE_EXCEEDED")
        await api.tenants.ListTenants(tenant_pb2.ListTenantsRequest(), metadata=bearer(BOB))


async def test_metadata_beyond_the_bound_is_refused(database: TestDatabase, tmp_path: Path) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path), grpc_metadata_bytes_max=4096) as api:
        large = [*bearer(BOB), ("x-large", "x" * 5000)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.tenants.ListTenants(tenant_pb2.ListTenantsRequest(), metadata=large)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await api.tenants.ListTenants(tenant_pb2.ListTenantsRequest(), metadata=bearer(BOB))


async def test_each_change_leaves_two_records_and_a_rehearsal_or_a_refusal_none(
    database: TestDatabase, tmp_path: Path
) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, [*bearer(BOB), ("x-request-id", "req-7")])
        await refused(
            api.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/none"), metadata=bearer(BOB))
        )
        await refused(api.endpoints.CreateEndpoint(create_endpoint(), metadata=bearer(ALICE)))
        rehearsal = create_endpoint()
        rehearsal.validate_only = True
        await api.endpoints.CreateEndpoint(rehearsal, metadata=bearer(BOB))
        listed = await api.admin.ListAuditRecords(admin_pb2.ListAuditRecordsRequest(), metadata=bearer(BOB))
        told = [(r.phase, r.method.rpartition("/")[2], r.status, r.resource) for r in listed.records]
        begun, ended = admin_pb2.AuditRecord.PHASE_BEGUN, admin_pb2.AuditRecord.PHASE_ENDED
        assert told == [
            (ended, "DeleteTenant", "NOT_FOUND", "tenants/none"),
            (begun, "DeleteTenant", "", "tenants/none"),
            (ended, "CreateTenant", "OK", "tenants/acme"),
            (begun, "CreateTenant", "", "tenants/acme"),
        ]
        made = listed.records[-1]
        assert (made.principal, made.auth_mode, made.request_id, made.tenant) == ("admin", "tokens", "req-7", "acme")
        assert made.peer.startswith("ipv4:127.0.0.1:")
        assert made.audit_id == listed.records[-2].audit_id


async def test_a_connection_that_pings_all_the_time_is_closed(database: TestDatabase, tmp_path: Path) -> None:
    """RFC 9113 section 6.7 by hand: grpc's own client would not do it."""

    def frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + payload

    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4))
        async with asyncio.timeout(20):
            received = b""
            while b"too_many_pings" not in received:
                writer.write(frame(6, b"12345678"))
                received += await reader.read(4096)
                assert not reader.at_eof() or b"too_many_pings" in received
        writer.close()


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed: `make tools`")
async def test_an_operator_with_grpcurl_says_who_they_are_by_token_or_certificate(
    database: TestDatabase, tmp_path: Path, authority: Authority
) -> None:
    call = "webhooks.admin.v1.AdminService/ListAuditRecords"
    wanted = {"filter": 'tenant = "acme"'}
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, bearer(BOB))
        port = api.server.admin_port
        code, told = await grpcurl(port, call, data=wanted)
        assert code != 0
        assert "authorization" in told
        known = ("-plaintext", "-H", f"authorization: Bearer {BOB}")
        code, told = await grpcurl(port, call, data=wanted, options=known)
        assert (code, told.count('"principal": "admin"')) == (0, 2)
        code, told = await grpcurl(port, call, options=("-plaintext", "-H", f"authorization: Bearer {ALICE}"))
        assert code != 0
        assert "shop has no permission service.operate for all tenants" in told
    issued = authority.issue(uris=[ADMIN])
    certificate, key = issued.written(tmp_path, "client")
    async with guarded(database, tmp_path, "mtls", **mtls_files(tmp_path, authority)) as api:
        secure = ("-cacert", str(tmp_path / "ca.crt"), "-cert", str(certificate), "-key", str(key))
        code, told = await grpcurl(api.server.admin_port, call, data=wanted, options=secure)
        assert (code, told.count('"authMode": "tokens"')) == (0, 2)
