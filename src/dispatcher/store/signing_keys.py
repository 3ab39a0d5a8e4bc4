"""An endpoint's signing keys. This package sees sealed secrets only; `security.secrets` seals and opens them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from dispatcher.model import EndpointKey, SealedSigningKey, SigningAlgorithm
from dispatcher.store.database import Connection, Database


@dataclass(frozen=True, slots=True)
class NewSigningKey:
    """A key to store; `key_id` is unique within the endpoint, `sealed` the sealed secret. See SealedSigningKey."""

    key_id: str
    sealed: bytes = field(repr=False)
    algorithm: SigningAlgorithm = SigningAlgorithm.HMAC_SHA256
    public_key: bytes = b""


INSERT_KEYS = """
INSERT INTO signing_key (tenant_id, endpoint_id, key_id, sealed, create_time, algorithm, public_key)
SELECT $1, $2, k.key_id, k.sealed, clock_timestamp(), k.algorithm, k.public_key
FROM unnest($3::text[], $4::bytea[], $5::text[], $6::bytea[]) k(key_id, sealed, algorithm, public_key)"""


async def insert(connection: Connection, key: EndpointKey, new: Sequence[NewSigningKey]) -> None:
    """Store keys of an endpoint that the caller's transaction has locked or created."""
    await connection.execute(
        INSERT_KEYS,
        key.tenant_id,
        key.endpoint_id,
        [k.key_id for k in new],
        [k.sealed for k in new],
        [k.algorithm for k in new],
        [k.public_key or None for k in new],
    )


LIST_LIVE = """
SELECT key_id, sealed, create_time, expire_time, algorithm, public_key FROM signing_key
WHERE tenant_id = $1 AND endpoint_id = $2 AND (expire_time IS NULL OR expire_time > clock_timestamp())
ORDER BY create_time DESC, key_id"""


async def list_live(db: Database | Connection, key: EndpointKey) -> tuple[SealedSigningKey, ...]:
    """The keys that sign now, newest first."""
    return tuple(_signing_key(row) for row in await db.fetch(LIST_LIVE, key.tenant_id, key.endpoint_id))


LIST_LIVE_OF_MANY = """
SELECT endpoint_id, key_id, sealed, create_time, expire_time, algorithm, public_key FROM signing_key
WHERE tenant_id = $1 AND endpoint_id = ANY ($2::uuid[]) AND (expire_time IS NULL OR expire_time > clock_timestamp())
ORDER BY create_time DESC, key_id"""


async def list_live_of(db: Database, keys: Sequence[EndpointKey]) -> dict[EndpointKey, tuple[SealedSigningKey, ...]]:
    """The live keys of several endpoints of one tenant, such as a page of them; newest first."""
    if not keys:
        return {}
    tenant_id = keys[0].tenant_id
    found: dict[EndpointKey, tuple[SealedSigningKey, ...]] = dict.fromkeys(keys, ())
    for row in await db.fetch(LIST_LIVE_OF_MANY, tenant_id, [key.endpoint_id for key in keys]):
        found[EndpointKey(tenant_id, row["endpoint_id"])] += (_signing_key(row),)
    return found


LIST_PUBLIC = """
SELECT key_id, public_key FROM signing_key
WHERE tenant_id = $1 AND endpoint_id = $2 AND public_key IS NOT NULL
  AND (expire_time IS NULL OR expire_time > clock_timestamp())
ORDER BY create_time DESC, key_id"""


async def list_public(db: Database, key: EndpointKey) -> dict[str, bytes]:
    """The public halves of the live keys by id, newest first; empty for an endpoint that is not there."""
    rows = await db.fetch(LIST_PUBLIC, key.tenant_id, key.endpoint_id)
    return {row["key_id"]: row["public_key"] for row in rows}


def _signing_key(row: asyncpg.Record) -> SealedSigningKey:
    return SealedSigningKey(
        row["key_id"],
        row["sealed"],
        row["create_time"],
        row["expire_time"],
        SigningAlgorithm(row["algorithm"]),
        row["public_key"] or b"",
    )
