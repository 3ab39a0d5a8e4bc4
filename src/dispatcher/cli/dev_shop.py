"""The demo's tenant and endpoints: a shop's systems. They are registered as any caller would, by gRPC."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dispatcher.cli.failure import explain
from dispatcher.cli.status import Code, ServiceError
from dispatcher.model import OrderingMode

TENANT_ID = "demo"
TENANT = f"tenants/{TENANT_ID}"
TOMBSTONED = "ENDPOINT_ID_TOMBSTONED"
NAMES_TRIED_MAX = 1000
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class ShopEndpoint:
    """An endpoint of the demo: its id, what it is for, what it receives and in which order."""

    name: str
    description: str
    event_types: tuple[str, ...]
    mode: OrderingMode

    def receives(self, event_type: str) -> bool:
        """Whether an event of this type is owed to it. Spelled out here, so that the judge does not share the
        matching code of the service it judges."""
        return any(
            pattern in ("*", event_type) or (pattern.endswith(".*") and event_type.startswith(pattern[:-1]))
            for pattern in self.event_types
        )


ENDPOINTS = (
    ShopEndpoint("warehouse", "Packs and ships: all about orders, in order.", ("order.*",), OrderingMode.ORDERED),
    ShopEndpoint(
        "billing",
        "Books money, in order.",
        ("order.paid", "invoice.*", "payment.*", "refund.*"),
        OrderingMode.ORDERED,
    ),
    ShopEndpoint("audit", "Keeps everything, in order within each key.", ("*",), OrderingMode.ORDERED_BY_KEY),
    ShopEndpoint(
        "search",
        "Indexes whatever it hears of, in any order.",
        ("customer.*", "product.*", "inventory.*", "order.created"),
        OrderingMode.UNORDERED,
    ),
)


def owed_to(event_type: str, endpoints: Sequence[ShopEndpoint] = ENDPOINTS) -> tuple[str, ...]:
    """The endpoints, by their names in the demo, that have to receive an event of this type."""
    return tuple(endpoint.name for endpoint in endpoints if endpoint.receives(event_type))


class Caller(Protocol):
    """What registering needs of the gRPC client; see client.Client."""

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]: ...


def new_secret() -> str:
    """A signing secret as Standard Webhooks writes it."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"


def register(caller: Caller, url_of: Callable[[str], str], secret_of: Mapping[str, str]) -> None:
    """Bring the tenant and its endpoints into the state of this page, whatever earlier runs left; blocking.

    The secrets are new ones of this run, and only the service keeps them. Deliveries that an earlier run left are
    signed with them too, for a webhook is signed when it is sent. CliError where something is refused.
    """
    try:
        _create_tenant(caller)
        for endpoint in ENDPOINTS:
            _put(caller, endpoint, url_of(endpoint.name), secret_of[endpoint.name])
    except ServiceError as error:
        raise explain(error) from error


def _create_tenant(caller: Caller) -> None:
    try:
        caller.call("TenantService.CreateTenant", {"tenantId": TENANT_ID, "tenant": {"displayName": "Demo shop"}})
    except ServiceError as error:
        if error.status.code is not Code.ALREADY_EXISTS:
            raise


def _put(caller: Caller, endpoint: ShopEndpoint, url: str, secret: str) -> None:
    """Create the endpoint, or give the one of an earlier run the present address and a new secret."""
    fields = _fields(endpoint, url)
    for number in range(1, NAMES_TRIED_MAX):
        name = endpoint.name if number == 1 else f"{endpoint.name}-{number}"
        request = {"parent": TENANT, "endpointId": name, "endpoint": fields, "signingSecret": secret}
        try:
            caller.call("EndpointService.CreateEndpoint", request)
        except ServiceError as error:
            if error.status.code is not Code.ALREADY_EXISTS or number == NAMES_TRIED_MAX - 1:
                raise
            if error.status.reason == TOMBSTONED:  # someone deleted it: its name is never used again
                continue
            _renew(caller, f"{TENANT}/endpoints/{name}", fields, secret)
        return


def _fields(endpoint: ShopEndpoint, url: str) -> dict[str, Any]:
    return {
        "description": endpoint.description,
        "http": {"url": url},
        "eventTypes": list(endpoint.event_types),
        "state": "STATE_ACTIVE",
        "deliverySettings": {"orderingMode": f"ORDERING_MODE_{endpoint.mode.name}"},
    }


def _renew(caller: Caller, name: str, fields: dict[str, Any], secret: str) -> None:
    """The key comes first: nothing signed with an old one may reach the new address."""
    mask = "description,http.url,eventTypes,state,deliverySettings.orderingMode"
    caller.call("EndpointService.RotateSigningKey", {"name": name, "signingSecret": secret, "overlap": "0s"})
    caller.call("EndpointService.UpdateEndpoint", {"endpoint": {"name": name, **fields}, "updateMask": mask})
