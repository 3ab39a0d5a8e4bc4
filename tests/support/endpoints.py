"""Endpoints ready to send, with keys whose secrets the test knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from dispatcher.credentials import Authentication, CredentialSecrets
from dispatcher.delivery.endpoint import EndpointRuntime, prepare_endpoint
from dispatcher.model import EndpointSettings, EndpointState, OrderingMode, SealedSigningKey, TracePropagation
from dispatcher.security.credentials import seal
from dispatcher.security.secrets import Keyring, SealContext
from dispatcher.security.signing import format_secret
from dispatcher.store.runtime import EndpointRuntimeRow
from tests.support.deliveries import NOW, key_of

KEYRING = Keyring([("test", b"k" * 32)])
SECRET = b"a signing secret of 32 bytes ..."
SECRET_TEXT = format_secret(SECRET)
USER_AGENT = "dispatcher/0.1.0"

SETTINGS = EndpointSettings(
    url="https://receiver.example/hook",
    timeout_s=5.0,
    headers={},
    max_in_flight=1,
    ordering_mode=OrderingMode.ORDERED,
    trace_propagation=TracePropagation.NONE,
)


def sealed_key(
    key_id: str = "k1", secret: bytes = SECRET, created: datetime = NOW, expires: datetime | None = None
) -> SealedSigningKey:
    """A signing key of `key_of()`'s endpoint as the store gives it."""
    key = key_of()
    sealed = KEYRING.seal(secret, SealContext(key.tenant_id, key.endpoint_id, key_id))
    return SealedSigningKey(key_id, sealed, created, expires)


def runtime_of(
    *,
    keys: Sequence[SealedSigningKey] | None = None,
    revisions: Mapping[int, EndpointSettings] | None = None,
    authentication: Authentication | None = None,
    secrets: CredentialSecrets | None = None,
    keyring: Keyring = KEYRING,
    **settings: Any,
) -> EndpointRuntime:
    """An endpoint of tenant `acme` named `billing`; keyword arguments change its settings."""
    known = revisions or {1: replace(SETTINGS, **settings)}
    row = EndpointRuntimeRow(
        key=key_of(),
        tenant_name="acme",
        name="billing",
        state=EndpointState.ACTIVE,
        revision=max(known),
        revisions=known,
        signing_keys=tuple([sealed_key()] if keys is None else keys),
        update_time=NOW,
        delete_time=None,
        authentication=authentication,
        sealed_credentials=None if secrets is None else seal(secrets, key_of(), keyring),
    )
    return prepare_endpoint(row, KEYRING, USER_AGENT)
