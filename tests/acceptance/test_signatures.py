"""Real webhooks of a served process, verified by libraries of third parties."""

from __future__ import annotations

import asyncio
import base64
from types import SimpleNamespace
from typing import Any

import standardwebhooks
import svix.webhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.duration_pb2 import Duration
from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from webhooks.v1 import endpoint_pb2

from tests.support.callers import Caller, event
from tests.support.receiver import WAIT_S, Receiver, Request

BODY = '{"total": "12,50 €"}'.encode()


async def test_both_verifiers_accept_a_webhook_and_neither_a_forged_one(
    callers: tuple[Caller, Caller], tenant: str, receiver: Receiver
) -> None:
    secret = await _endpoint(callers[0], tenant, receiver)
    request = await _next_webhook(callers[0], tenant, receiver, "evt-1")
    assert _accepting([secret], request) == [secret]
    assert request.body == BODY
    request.body = BODY.replace(b"12", b"99")
    assert _accepting([secret], request) == []


async def test_the_ping_of_test_endpoint_verifies_too(
    callers: tuple[Caller, Caller], tenant: str, receiver: Receiver
) -> None:
    secret = await _endpoint(callers[0], tenant, receiver)
    name = f"tenants/{tenant}/endpoints/e"
    answer = await callers[1].endpoints.TestEndpoint(endpoint_pb2.TestEndpointRequest(name=name))
    assert answer.status_code == 204
    (request,) = receiver.requests
    assert _accepting([secret], request) == [secret]
    assert "webhook-sequence" not in request.headers


async def test_during_a_rotation_the_old_and_the_new_secret_verify(
    callers: tuple[Caller, Caller], tenant: str, receiver: Receiver
) -> None:
    old = await _endpoint(callers[0], tenant, receiver)
    before = await _next_webhook(callers[0], tenant, receiver, "before")
    new = await _rotate(callers[1], tenant, overlap_s=60)
    async with asyncio.timeout(WAIT_S):  # the owner learns of it within its poll; the old secret verifies throughout
        while len(_accepting([old, new], await _next_webhook(callers[0], tenant, receiver))) < 2:
            pass
    assert _accepting([old, new], before) == [old]
    assert all(old in _accepting([old, new], request) for request in receiver.requests)


async def test_without_overlap_the_old_secret_soon_verifies_no_more(
    callers: tuple[Caller, Caller], tenant: str, receiver: Receiver
) -> None:
    old = await _endpoint(callers[0], tenant, receiver)
    new = await _rotate(callers[1], tenant, overlap_s=0)
    async with asyncio.timeout(WAIT_S):
        while _accepting([old, new], await _next_webhook(callers[0], tenant, receiver)) != [new]:
            pass


async def _endpoint(caller: Caller, tenant: str, receiver: Receiver) -> str:
    """Its secret, made by the service."""
    endpoint = await caller.endpoint("e", receiver.url("e"), tenant=tenant, signing_secret="")
    return endpoint.signing_keys[0].secret


async def _rotate(caller: Caller, tenant: str, overlap_s: int) -> str:
    """The new secret."""
    request = endpoint_pb2.RotateSigningKeyRequest(
        name=f"tenants/{tenant}/endpoints/e", overlap=Duration(seconds=overlap_s)
    )
    return (await caller.endpoints.RotateSigningKey(request)).signing_key.secret


async def _next_webhook(caller: Caller, tenant: str, receiver: Receiver, event_id: str = "") -> Request:
    before = len(receiver.requests)
    await caller.publish(event(event_id, BODY), tenant=tenant)
    await receiver.wait_for(lambda: len(receiver.requests) > before)
    return receiver.requests[before]


def _accepting(secrets: list[str], request: Request) -> list[str]:
    """Those of the secrets with which the webhook verifies; the two libraries must agree."""
    by_standard = [s for s in secrets if _verifies(standardwebhooks.Webhook(s), standardwebhooks, request)]
    by_svix = [s for s in secrets if _verifies(svix.webhooks.Webhook(s), svix.webhooks, request)]
    assert by_standard == by_svix
    return by_svix


def _verifies(webhook: Any, library: Any, request: Request) -> bool:
    try:
        webhook.verify(request.body, request.headers)
    except library.WebhookVerificationError:
        return False
    return True


async def test_ed25519_and_http_message_signatures_verify_with_the_public_key_that_the_api_shows(
    callers: tuple[Caller, Caller], tenant: str, receiver: Receiver
) -> None:
    made = await callers[0].endpoint(
        "e",
        receiver.url("e"),
        tenant=tenant,
        signing_secret="",
        signing_algorithm=endpoint_pb2.SIGNING_ALGORITHM_ED25519,
        http_message_signatures=True,
    )
    (key,) = made.signing_keys
    assert (key.secret, key.algorithm) == ("", endpoint_pb2.SIGNING_ALGORITHM_ED25519)
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.public_key.removeprefix("whpk_")))
    request = await _next_webhook(callers[0], tenant, receiver, "evt-1")
    headers = {name.lower(): value for name, value in request.headers.items()}
    version, _, signature = headers["webhook-signature"].partition(",")
    signed = f"evt-1.{headers['webhook-timestamp']}.".encode() + request.body
    public.verify(base64.b64decode(signature), signed)
    assert version == "v1a"

    class Keys(HTTPSignatureKeyResolver):
        def resolve_public_key(self, key_id: str) -> object:
            assert key_id == key.id
            return public

        resolve_private_key = resolve_public_key

    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Keys())
    message = SimpleNamespace(method="POST", url=receiver.url("e"), headers=headers)
    verifier.verify(message, body=request.body)
