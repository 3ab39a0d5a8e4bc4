"""`dispatcher tenants status`: how a tenant's endpoints fare, and which of them lag behind most."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import tenant_name
from dispatcher.cli.output import print_json, print_resource, print_table
from dispatcher.cli.resource import cell, headed

COLUMNS = (
    cell("endpoint"),
    headed("backlog", cell("backlogCount")),
    headed("oldest", cell("oldestPendingAge")),
    cell("state"),
    cell("halted", default="no"),
)
WORST = {"oldest": "by age", "largest": "by backlog"}


def status(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="acme or tenants/acme.")],
    *,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell how a tenant's endpoints fare, and which lag behind most."""
    access = Access(target, timeout_s, as_json)
    full_name = f"{tenant_name(name)}/status"
    answer = access.call("DeliveryService.GetTenantStatus", {"name": full_name})
    if as_json:
        print_json(answer)
        return
    print_resource(full_name, {key: value for key, value in answer.items() if key not in WORST})
    for key, order in WORST.items():
        columns = (headed(f"worst endpoints {order}", COLUMNS[0]), *COLUMNS[1:])
        if key in answer:
            print_table(columns, answer[key], empty="")
