"""Writes the pages under docs/ that are made from the code: `make docs`. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dispatcher.config import GROUPS, Settings, display, is_secret, variable_of

FOLDER = Path(__file__).parent


def render_configuration() -> str:
    """configuration.md: every setting with its default, bounds and meaning."""
    lines = [
        "# Configuration",
        "",
        "<!-- Made by `make docs` from src/dispatcher/config.py; a test compares. -->",
        "",
        "Every setting is an environment variable. An unknown `DISPATCHER_*` variable or a value out of bounds stops",
        "the service at start with an error that names it. An empty variable counts as not set; lists are",
        "comma-separated; names end in their unit. A setting marked *secret* may also be read from a file:",
        "append `_FILE` to its name and give the path. `dispatcher config` prints the settings in effect, secrets",
        "masked. `DISPATCHER_TEST_*` belongs to the test suite, and variables that Kubernetes makes for a Service",
        "called dispatcher (`DISPATCHER_SERVICE_HOST`, `DISPATCHER_PORT_…`) are ignored.",
    ]
    for group in GROUPS:
        title = group.__name__.removesuffix("Settings")
        lines += ["", f"## {title}", "", str(group.__doc__), "", "| variable | default | bounds | meaning |"]
        lines.append("|---|---|---|---|")
        lines += [_markdown_row(name) for name in group.model_fields]
    return "\n".join(lines) + "\n"


def _markdown_row(name: str) -> str:
    field = Settings.model_fields[name]
    default = display(field.default)
    meaning = f"{'*Secret.* ' if is_secret(name) else ''}{field.description}"
    return f"| `{variable_of(name)}` | {f'`{default}`' if default else 'unset'} | {_bounds(name)} | {meaning} |"


def _bounds(name: str) -> str:
    field = Settings.model_fields[name]
    limits = {key: getattr(item, key) for item in field.metadata for key in ("ge", "le") if hasattr(item, key)}
    if "ge" in limits:
        return f"{display(limits['ge'])} to {display(limits['le'])}"
    choices = re.findall(r"'(\w+)'", str(field.annotation)) if "Literal" in str(field.annotation) else []
    return ", ".join(choices)


PAGES: dict[str, Callable[[], str]] = {"configuration.md": render_configuration}


def main() -> None:
    """Write every generated page."""
    for name, render in PAGES.items():
        (FOLDER / name).write_text(render())


if __name__ == "__main__":
    main()
