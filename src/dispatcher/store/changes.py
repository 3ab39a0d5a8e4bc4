"""Changes of configuration: one short transaction each, and what all of them check."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

from dispatcher.errors import CommitUnknownError, EtagMismatchError, NotFoundError, UnavailableError
from dispatcher.store.database import Connection, Database

IDLE_IN_CHANGE_TIMEOUT = "2s"
"""A frozen process may hold an endpoint's row, and so its publishers, no longer than this between two statements."""

SET_LOCAL_LIMITS = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"


class _ValidatedError(Exception):
    """Everything was checked; rolls the transaction back."""


@contextlib.asynccontextmanager
async def change(db: Database, *, validate_only: bool = False) -> AsyncIterator[Connection]:
    """A transaction for one change; with `validate_only` it runs to its end and is then rolled back (AIP-163).

    Errors: CommitUnknownError where the reply to the commit was lost.
    """
    is_committing = False
    try:
        async with db.transaction() as connection:
            await connection.execute(SET_LOCAL_LIMITS, IDLE_IN_CHANGE_TIMEOUT)
            yield connection
            if validate_only:
                raise _ValidatedError  # noqa: TRY301 - the way to have the transaction rolled back
            is_committing = True
    except _ValidatedError:
        return
    except UnavailableError as error:
        if is_committing:
            raise CommitUnknownError(
                "the database went away while the change was committed; read before a retry"
            ) from (error)
        raise


def check_etag(resource: str, present: UUID, wanted: str) -> None:
    """Refuse a change of something that changed since the caller read it; an empty `wanted` is not checked."""
    if wanted and wanted != str(present):
        raise EtagMismatchError(f"{resource} has changed since it was read", metadata={"resource": resource})


def tenant_name(tenant: str) -> str:
    """The full resource name of a tenant."""
    return f"tenants/{tenant}"


def event_type_name(tenant: str, event_type: str) -> str:
    return f"tenants/{tenant}/eventTypes/{event_type}"


def endpoint_name(tenant: str, endpoint: str) -> str:
    return f"tenants/{tenant}/endpoints/{endpoint}"


def tenant_not_found(tenant: str) -> NotFoundError:
    return NotFoundError("webhooks.dispatcher/Tenant", tenant_name(tenant))


def event_type_not_found(tenant: str, event_type: str) -> NotFoundError:
    return NotFoundError("webhooks.dispatcher/EventType", event_type_name(tenant, event_type))


def endpoint_not_found(tenant: str, endpoint: str) -> NotFoundError:
    return NotFoundError("webhooks.dispatcher/Endpoint", endpoint_name(tenant, endpoint))
