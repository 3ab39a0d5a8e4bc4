"""`dispatcher config`: the settings in effect."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer


def config(
    *,
    changed: Annotated[bool, typer.Option("--changed", help="Only those set in the environment.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print the settings in effect with their origin, secrets masked. Exit code 2 where they are wrong."""
    from dispatcher.cli.output import Column, print_json, print_table
    from dispatcher.config import from_environment

    rows = [asdict(setting) for setting in from_environment().effective()]
    if changed:
        rows = [row for row in rows if row["origin"] == "environment"]
    if as_json:
        print_json(rows)
        return
    columns = [
        Column("variable", lambda row: str(row["variable"])),
        Column("value", lambda row: str(row["value"])),
        Column("origin", lambda row: str(row["origin"])),
    ]
    print_table(columns, rows, empty="Nothing is set in the environment: all settings have their defaults.")
