"""What all resources have in common: how to create, read, list, change and delete one, and print the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dispatcher.cli.access import Access
from dispatcher.cli.arguments import Fields, flag, given, update_request
from dispatcher.cli.output import Column, print_json, print_note, print_resource, print_table

PAGES_MAX = 10_000
"""Pages that --all follows at most."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource of the API. `noun` is as in `CreateTenant`, `field` and `plural` as in proto JSON."""

    noun: str
    field: str
    plural: str
    columns: tuple[Column, ...]
    service: str

    def method(self, verb: str) -> str:
        return f"{self.service}.{verb}{self.noun}"


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: the options of every `list`."""

    filter: str | None = None
    size: int | None = None
    token: str | None = None
    all: bool = False


def create(kind: Kind, access: Access, request: dict[str, Any], *, validate_only: bool) -> dict[str, Any]:
    """Create and print; returns the answer."""
    answer = access.call(kind.method("Create"), {**request, **flag("validateOnly", on=validate_only)})
    show(access, answer, f"{'Would create' if validate_only else 'Created'} {answer.get('name', '')}".strip())
    return answer


def get(kind: Kind, access: Access, name: str) -> None:
    """Read and print."""
    show(access, access.call(kind.method("Get"), {"name": name}), name)


def update(kind: Kind, access: Access, name: str, fields: Fields, *, etag: str | None, validate_only: bool) -> None:
    """Change `fields` only, and print."""
    request = update_request(kind.field, name, fields, etag=etag, validate_only=validate_only)
    answer = access.call(kind.method("Update"), request)
    show(access, answer, f"{'Would update' if validate_only else 'Updated'} {name}")


def delete(
    kind: Kind, access: Access, name: str, *, etag: str | None, validate_only: bool, force: bool = False
) -> None:
    """Delete and say so."""
    request = {"name": name, **given(etag=etag), **flag("validateOnly", on=validate_only), **flag("force", on=force)}
    answer = access.call(kind.method("Delete"), request)
    if access.as_json:
        print_json(answer)
    else:
        print_note(f"{'Would delete' if validate_only else 'Deleted'} {name}")


def act(kind: Kind, access: Access, verb: str, name: str, request: dict[str, Any]) -> None:
    """Call a method of one resource, such as PauseEndpoint, and print the answer."""
    answer = access.call(kind.method(verb), {"name": name, **request})
    show(access, answer, f"{verb}: {name}")


def list_resources(
    kind: Kind, access: Access, page: Page, *, parent: str | None = None, method: str | None = None
) -> None:
    """Print one page, or all of them as one list."""
    request = given(parent=parent, filter=page.filter, pageSize=page.size, pageToken=page.token)
    called = method or f"{kind.service}.List{kind.plural[0].upper()}{kind.plural[1:]}"
    with access.client() as client:
        answer = client.call(called, request)
        rows = list(answer.get(kind.plural, ()))
        for _ in range(PAGES_MAX if page.all else 0):
            if not (token := answer.get("nextPageToken")):
                break
            answer = client.call(called, {**request, "pageToken": token})
            rows.extend(answer.get(kind.plural, ()))
    token = answer.get("nextPageToken", "")
    if access.as_json:
        print_json({kind.plural: rows, **({"nextPageToken": token} if token else {})})
        return
    print_table(kind.columns, rows, empty=f"No {kind.plural} found.")
    if token:
        print_note(f"There are more: --page-token {token}, or --all.")


def show(access: Access, answer: dict[str, Any], title: str) -> None:
    """One answer: JSON for machines, else a panel."""
    if access.as_json:
        print_json(answer)
    else:
        print_resource(title, answer)


def cell(*path: str, default: str = "") -> Column:
    """A column that reads one field, by its path in proto JSON, under its last name."""

    def read(row: Any) -> str:
        for key in path:
            row = row.get(key) if isinstance(row, dict) else None
        return default if row is None else _shown(row)

    return Column(path[-1], read)


def headed(head: str, column: Column) -> Column:
    """The column under another head."""
    return Column(head, column.read)


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key}={item}" for key, item in value.items())
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)
