"""A process with every kind of secret, all of it failing, at the most talkative: none of them in logs, spans, metrics,
answers or attempts."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

from webhooks.admin.v1 import admin_pb2
from webhooks.v1 import delivery_pb2, endpoint_pb2

from dispatcher.security.tokens import hash_of
from tests.support.callers import CALL_TIMEOUT_S, calling, event
from tests.support.certificates import Authority
from tests.support.otlp import OtlpSink
from tests.support.postgres import TestDatabase
from tests.support.process import processes
from tests.support.receiver import Answer, Receiver

TOKEN, PASSWORD, BEARER, CLIENT, HEADER = (
    f"{word}-S3cr3t-{word}" for word in ("token", "pw", "bearer", "oauth", "head")
)
SIGNING = "whsec_" + base64.b64encode(b"signing-S3cr3t-signing-S3cr3t-32").decode()
PAYLOAD, QUERY = "payload-pr1vate", "query-S3cr3t"
Auth = endpoint_pb2.EndpointAuthentication


def credentials(token_url: str) -> dict[str, Auth]:
    issued = Authority().issue(hosts=["dispatcher"])
    return {
        "basic": Auth(basic=endpoint_pb2.BasicAuthentication(username="u", password=PASSWORD)),
        "bearer": Auth(bearer=endpoint_pb2.BearerAuthentication(token=BEARER)),
        "oauth2": Auth(
            oauth2=endpoint_pb2.OAuth2ClientCredentials(token_url=token_url, client_id="c", client_secret=CLIENT)
        ),
        "header": Auth(secret_headers={"x-api-key": HEADER}),
        "mtls": Auth(
            client_certificate=endpoint_pb2.ClientCertificate(
                certificate_chain=issued.certificate.decode(), private_key=issued.key.decode()
            )
        ),
    }


async def test_no_secret_and_no_payload_is_told_anywhere(database: TestDatabase, tmp_path: Path) -> None:
    (tmp_path / "tokens.yaml").write_text(f"tokens: [{{principal: all, sha256: {hash_of(TOKEN)}}}]")
    (tmp_path / "policy.yaml").write_text(
        "bindings: [{principals: [all], roles: [publisher, manager, reader, operator], tenants: ['*']}]"
    )
    variables = {
        "DISPATCHER_AUTH_MODE": "tokens",
        "DISPATCHER_AUTH_TOKENS_FILE": str(tmp_path / "tokens.yaml"),
        "DISPATCHER_AUTH_POLICY_FILE": str(tmp_path / "policy.yaml"),
        "DISPATCHER_LOG_LEVEL": "debug",
    }
    metadata = [("authorization", f"Bearer {TOKEN}")]
    told: list[str] = []
    with OtlpSink() as sink, processes(database.dsn, tmp_path, 1, variables | sink.environ) as (served,):
        async with calling(served) as (caller,), Receiver() as receiver:
            receiver.default = Answer(500, b"no")
            made = credentials(receiver.url("token"))
            created = await _create(caller, made, receiver, metadata)
            told += [str(each.authentication) for each in created]
            request = endpoint_pb2.ListEndpointsRequest(parent="tenants/acme")
            told.append(str(await caller.endpoints.ListEndpoints(request, metadata=metadata)))
            await caller.publish(event("e-1", PAYLOAD.encode()), metadata=metadata)
            await receiver.wait_for(
                lambda: all(receiver.of(name) for name in (*(n for n in made if n != "oauth2"), "token"))
            )
            attempts = delivery_pb2.ListAttemptsRequest(parent="tenants/acme/endpoints/-/deliveries/-")
            attempts.filter = 'event = "tenants/acme/events/e-1"'

            async def listed() -> str:
                return str(await caller.deliveries.ListAttempts(attempts, metadata=metadata, timeout=CALL_TIMEOUT_S))

            async with asyncio.timeout(20):
                while "AUTHENTICATION_FAILED" not in (found := await listed()):
                    await asyncio.sleep(0.1)
            told.append(found)
            audit = admin_pb2.ListAuditRecordsRequest()
            told.append(str(await caller.admin.ListAuditRecords(audit, metadata=metadata)))
            await asyncio.to_thread(sink.wait_for, lambda s: any("POST" in span.name for span in s.spans))
    logged = "\n".join([served.log_file.read_text(), str(sink.spans), str(sink.metrics)])
    assert QUERY not in logged, "who may read an endpoint sees its URL; logs do not"
    everything = "\n".join([*told, logged])
    assert "e-1" in everything, "something is told"
    key = made["mtls"].client_certificate.private_key.splitlines()[1]
    for secret in (TOKEN, PASSWORD, BEARER, CLIENT, HEADER, SIGNING.removeprefix("whsec_"), PAYLOAD, key):
        for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("="), repr(secret)[1:-1]):
            assert form not in everything, secret[:8]


async def _create(caller, made, receiver, metadata) -> list[endpoint_pb2.Endpoint]:  # type: ignore[no-untyped-def] # of this test alone
    from webhooks.v1 import tenant_pb2

    tenant = tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant())
    await caller.tenants.CreateTenant(tenant, metadata=metadata)
    created = []
    for name, authentication in made.items():
        endpoint = endpoint_pb2.Endpoint(
            http=endpoint_pb2.HttpTarget(url=f"{receiver.url(name)}?key={QUERY}"),
            event_types=["*"],
            authentication=authentication,
        )
        request = endpoint_pb2.CreateEndpointRequest(
            parent="tenants/acme", endpoint_id=name, endpoint=endpoint, signing_secret=SIGNING
        )
        created.append(await caller.endpoints.CreateEndpoint(request, metadata=metadata, timeout=CALL_TIMEOUT_S))
    return created
