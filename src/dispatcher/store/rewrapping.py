"""All sealed secrets in turn, to be wrapped by another key-encryption key. Nothing else of a row changes, and a secret
that is written anew meanwhile is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from dispatcher.model import EndpointKey
from dispatcher.store.database import Database

BATCH_ROWS = 500
_FIRST = UUID(int=0)

Rewrap = Callable[[bytes, EndpointKey, str], bytes | None]
"""The sealed form under the first key, None where it is already; `key_id` is the signing key's, empty for an endpoint's
credentials. Raises SecretSealError."""


@dataclass(slots=True)
class Rewrapped:
    """`changed`: wrapped anew. `unopened`: those that no configured key opens, by what they belong to."""

    seen: int = 0
    changed: int = 0
    unopened: tuple[str, ...] = ()


PAGE_OF_KEYS = """
SELECT tenant_id, endpoint_id, key_id, sealed FROM signing_key
WHERE (tenant_id, endpoint_id, key_id) > ($1, $2, $3) ORDER BY tenant_id, endpoint_id, key_id LIMIT $4"""
PAGE_OF_CREDENTIALS = """
SELECT tenant_id, endpoint_id, '' AS key_id, sealed_credentials AS sealed FROM endpoint
WHERE (tenant_id, endpoint_id) > ($1, $2) AND $3::text IS NOT NULL AND sealed_credentials IS NOT NULL
ORDER BY tenant_id, endpoint_id LIMIT $4"""
SET_KEY = """
UPDATE signing_key SET sealed = $5 WHERE tenant_id = $1 AND endpoint_id = $2 AND key_id = $3 AND sealed = $4"""
SET_CREDENTIALS = """
UPDATE endpoint SET sealed_credentials = $5
WHERE tenant_id = $1 AND endpoint_id = $2 AND $3::text = '' AND sealed_credentials = $4"""


async def rewrap_all(db: Database, rewrap: Rewrap, unopened: tuple[type[Exception], ...]) -> Rewrapped:
    """Go through signing keys and credentials. `unopened` are the errors of `rewrap` that a secret is passed over for.

    May be repeated and run beside anything. Errors: UnavailableError; what was done until then stays done.
    """
    report, failed = Rewrapped(), list[str]()
    for page, change in ((PAGE_OF_KEYS, SET_KEY), (PAGE_OF_CREDENTIALS, SET_CREDENTIALS)):
        after: tuple[UUID, UUID, str] = (_FIRST, _FIRST, "")
        while rows := await db.fetch(page, *after, BATCH_ROWS):
            for row in rows:
                after = (row["tenant_id"], row["endpoint_id"], row["key_id"])
                report.seen += 1
                try:
                    new = rewrap(row["sealed"], EndpointKey(after[0], after[1]), after[2])
                except unopened:
                    failed.append(f"endpoint {after[1]} {after[2]}".strip())
                    continue
                if new is not None:
                    done = await db.execute(change, *after, row["sealed"], new)
                    report.changed += done == "UPDATE 1"
    report.unopened = tuple(failed)
    return report
