"""The top level holds what a reader expects and nothing else; no file names a package registry. Works without git."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    ".ci",
    ".dockerignore",
    ".editorconfig",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "docs",
    "helm",
    "protos",
    "pyproject.toml",
    "requirements-dev.txt",
    "requirements-test.txt",
    "requirements-tools.txt",
    "requirements.txt",
    "src",
    "tests",
}
# Where packages come from is the business of the machine: a mirror works as well.
REGISTRIES = re.compile(
    rb"pypi[.]org|pythonhosted[.]org|npmjs[.](?:org|com)|yarnpkg[.]com|crates[.]io|proxy[.]golang[.]org|rubygems[.]org",
    re.IGNORECASE,
)
FILE_BYTES_MAX = 8 * 1024 * 1024


def ignored_patterns() -> list[str]:
    """The names that .gitignore leaves out, at any depth: it holds nothing but such names."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    return [".git", *(line.rstrip("/") for line in lines if line and not line.startswith("#"))]


def files_below(folder: Path, ignored: list[str]) -> Iterator[Path]:
    """Every file that would be committed."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in ignored):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from files_below(path, ignored)
        elif path.is_file():
            yield path


def broken_rules(files: list[Path]) -> Iterator[str]:
    """One line per broken rule. `files` are relative to the repository."""
    for name in sorted({path.parts[0] for path in files} - TOP_LEVEL):
        yield f"{name}: the top level does not hold this (.ci/check_layout.py lists what it holds)"
    for path in files:
        content = (ROOT / path).read_bytes()
        if len(content) > FILE_BYTES_MAX:
            yield f"{path}: over {FILE_BYTES_MAX} bytes"
        for number, line in enumerate(content.splitlines(), 1):
            if found := REGISTRIES.search(line):
                yield f"{path}:{number}: names the package registry {found.group().decode()}"


def main() -> int:
    """Print the broken rules."""
    files = [path.relative_to(ROOT) for path in files_below(ROOT, ignored_patterns())]
    broken = list(broken_rules(files))
    for line in broken:
        print(line, file=sys.stderr)
    print(f"{len(files)} files")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
