"""README's code blocks: those that show a file, and those that a test runs as a new user would type them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^<!-- (file|test): (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown_files(page: str = "README.md") -> dict[str, str]:
    """Path of a file to the text by which the page shows it."""
    return _blocks("file", page)


def commands(name: str, page: str = "README.md") -> str:
    """The block that the page marks with `<!-- test: name -->`."""
    return _blocks("test", page)[name]


def _blocks(kind: str, page: str) -> dict[str, str]:
    text = (ROOT / page).read_text()
    return {name: block for found, name, block in _BLOCK.findall(text) if found == kind}
