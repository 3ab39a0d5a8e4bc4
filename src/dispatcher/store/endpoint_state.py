"""Pause, resume, enable: changes of an endpoint's state that say no more than that.

        pause                     (update, auto-disable, 410)
ACTIVE ──────▶ PAUSED     ACTIVE, PAUSED ──────▶ DISABLED
  ▲              │                                  │
  └── resume ────┘                                  │
  └── enable ───────────────────────────────────────┘
"""

from __future__ import annotations

from uuid import uuid4

from dispatcher.errors import PreconditionError
from dispatcher.model import Endpoint, EndpointState
from dispatcher.store import endpoints
from dispatcher.store.changes import change, check_etag, endpoint_name
from dispatcher.store.database import Connection, Database

SET_STATE = """
UPDATE endpoint SET state = $3, state_reason = $4, etag = $5, update_time = clock_timestamp(),
                    resume_rate = $6, resume_time = CASE WHEN $6::double precision IS NULL THEN NULL
                                                         ELSE clock_timestamp() END
WHERE tenant_id = $1 AND endpoint_id = $2
RETURNING tenant_id, endpoint_id, name, description, labels, event_types, state, state_reason, revision, settings, etag,
          create_time, update_time, delete_time, resume_rate, resume_time, authentication,
          sealed_credentials"""


async def pause(db: Database, tenant: str, name: str, reason: str, *, etag: str = "") -> Endpoint:
    """Hold an endpoint's deliveries. Errors: NotFoundError, EtagMismatchError, PreconditionError `ENDPOINT_DISABLED`.

    A catch-up under way is forgotten: the resume says anew at which rate.
    """
    async with change(db) as connection:
        before = await _locked(connection, tenant, name, etag)
        _refuse(before, tenant, EndpointState.DISABLED)
        return await _write(connection, before, EndpointState.PAUSED, reason, None)


async def resume(db: Database, tenant: str, name: str, rate_per_s: float | None, *, etag: str = "") -> Endpoint:
    """End a pause; what waits goes out at `rate_per_s` attempts per second, None for no such limit.

    Errors: NotFoundError, EtagMismatchError, PreconditionError `ENDPOINT_DISABLED`.
    """
    async with change(db) as connection:
        before = await _locked(connection, tenant, name, etag)
        _refuse(before, tenant, EndpointState.DISABLED)
        return await _write(connection, before, EndpointState.ACTIVE, "", rate_per_s)


# The record of failures starts anew; what subscribers were told (trouble) stays until a success takes it back.
RESET_HEALTH = """
UPDATE endpoint_health SET failing_since = NULL, exhausted_heads = 0, update_time = clock_timestamp()
WHERE tenant_id = $1 AND endpoint_id = $2"""


async def enable(db: Database, tenant: str, name: str, rate_per_s: float | None, *, etag: str = "") -> Endpoint:
    """End a disablement; `rate_per_s` as in `resume`.

    Errors: NotFoundError, EtagMismatchError, PreconditionError `ENDPOINT_PAUSED`.
    """
    async with change(db) as connection:
        before = await _locked(connection, tenant, name, etag)
        _refuse(before, tenant, EndpointState.PAUSED)
        await connection.execute(RESET_HEALTH, before.key.tenant_id, before.key.endpoint_id)
        return await _write(connection, before, EndpointState.ACTIVE, "", rate_per_s)


async def _locked(connection: Connection, tenant: str, name: str, etag: str) -> Endpoint:
    before = (await endpoints.lock(connection, tenant, name)).endpoint
    check_etag(endpoint_name(tenant, name), before.etag, etag)
    return before


def _refuse(endpoint: Endpoint, tenant: str, state: EndpointState) -> None:
    if endpoint.state is state:
        resource = endpoint_name(tenant, endpoint.name)
        remedy = "EnableEndpoint" if state is EndpointState.DISABLED else "ResumeEndpoint"
        raise PreconditionError(
            f"{resource} is {state.value}: {remedy} ends that", reason=f"ENDPOINT_{state.value}", subject=resource
        )


async def _write(
    connection: Connection, before: Endpoint, state: EndpointState, reason: str, rate_per_s: float | None
) -> Endpoint:
    """Idempotent: where nothing changes nothing is written, and the etag stays."""
    if before.state is state and before.state_reason == reason and before.catch_up is None and rate_per_s is None:
        return before
    (row,) = await connection.fetch(
        SET_STATE, before.key.tenant_id, before.key.endpoint_id, state, reason, uuid4(), rate_per_s
    )
    return endpoints.endpoint_of(row)
