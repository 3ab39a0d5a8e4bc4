"""Rotation of an endpoint's signing key: a new one beside those that retire."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from dispatcher.errors import PreconditionError
from dispatcher.model import Endpoint, SealedSigningKey
from dispatcher.store import endpoints, signing_keys
from dispatcher.store.changes import change, check_etag, endpoint_name
from dispatcher.store.database import Database
from dispatcher.store.signing_keys import NewSigningKey

LIVE_KEYS_MAX = 5
"""Every webhook bears one signature per live key, so their number is bounded."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation left: the endpoint, its new key, and all live keys (the new one among them), newest first."""

    endpoint: Endpoint
    key: SealedSigningKey
    live: tuple[SealedSigningKey, ...]


DELETE_EXPIRED = """
DELETE FROM signing_key WHERE tenant_id = $1 AND endpoint_id = $2 AND expire_time <= clock_timestamp()"""
RETIRE_ACTIVE = """
UPDATE signing_key SET expire_time = clock_timestamp() + $3::interval
WHERE tenant_id = $1 AND endpoint_id = $2 AND expire_time IS NULL"""


async def rotate(
    db: Database, tenant: str, endpoint: str, new: NewSigningKey, *, overlap: timedelta, etag: str = ""
) -> Rotation:
    """Give an endpoint a new key; those active now sign beside it for `overlap`. Expired ones are removed.

    The endpoint's etag changes, so that a rotation retried with the etag does not happen twice.
    Errors: NotFoundError, EtagMismatchError, PreconditionError `TOO_MANY_SIGNING_KEYS`.
    """
    async with change(db) as connection:
        locked = await endpoints.lock(connection, tenant, endpoint)
        check_etag(endpoint_name(tenant, endpoint), locked.endpoint.etag, etag)
        key = locked.endpoint.key
        await connection.execute(RETIRE_ACTIVE, key.tenant_id, key.endpoint_id, overlap)
        await connection.execute(DELETE_EXPIRED, key.tenant_id, key.endpoint_id)
        await signing_keys.insert(connection, key, [new])
        live = await signing_keys.list_live(connection, key)
        if len(live) > LIVE_KEYS_MAX:
            raise PreconditionError(
                f"{endpoint_name(tenant, endpoint)} has {LIVE_KEYS_MAX} live signing keys; wait until one expires",
                reason="TOO_MANY_SIGNING_KEYS",
                subject=endpoint_name(tenant, endpoint),
            )
        touched = await endpoints.touch(connection, key)
    return Rotation(touched, next(k for k in live if k.key_id == new.key_id), live)
