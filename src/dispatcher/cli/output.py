"""What people and machines see: results on standard output, everything else on standard error.

Text that came from outside is shown with its control characters spelled out: a receiver's answer must not drive the
operator's terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dispatcher.cli.failure import CliError

PIPE_WIDTH = 240
"""Columns where there is no terminal: nothing is cut, whatever reads it."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its head, and how to read a cell from a resource in proto JSON."""

    head: str
    read: Callable[[Mapping[str, Any]], str]


def plain(text: object) -> Text:
    """Text without markup, control characters as \\xNN."""
    return Text(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(text)), overflow="fold")


def console(stream: TextIO | None = None) -> Console:
    """A console on standard output, or on `stream`."""
    file = stream or sys.stdout
    return Console(file=file, width=None if file.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=False)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_note(text: str) -> None:
    """A remark on standard error, out of the way of what is piped on."""
    console(sys.stderr).print(plain(text), style="dim")


def print_error(error: CliError) -> None:
    """The paragraph a failed command ends with."""
    shown = Text("error: ", style="bold red") + plain(error.message)
    for detail in error.details:
        shown += Text("\n  ") + plain(detail)
    console(sys.stderr).print(shown)


def print_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], *, empty: str) -> None:
    """Resources as a table; `empty` is said on standard error where there is none."""
    if not rows:
        print_note(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.head, overflow="fold")
    for row in rows:
        table.add_row(*(plain(column.read(row)) for column in columns))
    console().print(table)


def print_resource(title: str, resource: Mapping[str, Any]) -> None:
    """One resource as a panel of fields, nested ones with dotted names."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in flatten(resource):
        grid.add_row(plain(name), plain(value))
    console().print(Panel(grid, title=plain(title), title_align="left", expand=False))


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Fields with dotted snake_case names, as the protos spell them; lists of plain values in one line."""
    for key, item in value.items():
        name = f"{prefix}{key if prefix.endswith(('labels.', 'headers.', 'attributes.')) else snake_case(key)}"
        match item:
            case Mapping():
                yield from flatten(item, f"{name}.")
            case list() if any(isinstance(part, Mapping) for part in item):
                for number, part in enumerate(item):
                    yield from flatten(part, f"{name}[{number}].")
            case list():
                yield name, ", ".join(map(str, item))
            case bool():
                yield name, "yes" if item else "no"
            case _:
                yield name, str(item)


def snake_case(name: str) -> str:
    """`deliverySettings` as `delivery_settings`."""
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)
