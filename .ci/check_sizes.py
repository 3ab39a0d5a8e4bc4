"""Size rules: functions ≤70 lines everywhere, modules ≤500 lines and few functions over 25 lines in src/dispatcher."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICE = Path("src/dispatcher")
FOLDERS = (SERVICE, Path("tests"), Path(".ci"), Path("docs"), Path("protos"))
FUNCTION_LINES_MAX = 70
FUNCTION_LINES_USUAL = 25
LONG_SHARE_MAX = 0.10
MODULE_LINES_MAX = 500


@dataclass(frozen=True, slots=True)
class Function:
    """A function, method or nested function, from its `def` to its last line, docstring included."""

    path: Path
    line: int
    name: str
    lines: int


def functions_of(path: Path, source: str) -> Iterator[Function]:
    """Every function of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(path, node.lineno, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)


def broken_rules(sources: dict[Path, str]) -> Iterator[str]:
    """One line per broken rule. Keys are paths relative to the repository."""
    functions = [function for path, source in sources.items() for function in functions_of(path, source)]
    for function in functions:
        if function.lines > FUNCTION_LINES_MAX:
            where = f"{function.path}:{function.line}: {function.name}"
            yield f"{where} has {function.lines} lines, the limit is {FUNCTION_LINES_MAX}"
    for path, source in sources.items():
        lines = source.count("\n")
        if path.is_relative_to(SERVICE) and lines > MODULE_LINES_MAX:
            yield f"{path} has {lines} lines, the limit is {MODULE_LINES_MAX}"
    share = long_share(functions)
    if share > LONG_SHARE_MAX:
        yield f"{share:.1%} of the functions in {SERVICE} are over {FUNCTION_LINES_USUAL} lines ({LONG_SHARE_MAX:.0%})"


def long_share(functions: list[Function]) -> float:
    """The share of the service's functions that are longer than usual."""
    ours = [function for function in functions if function.path.is_relative_to(SERVICE)]
    return sum(function.lines > FUNCTION_LINES_USUAL for function in ours) / max(1, len(ours))


def main() -> int:
    """Print the broken rules, or the figures."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    sources = {path.relative_to(ROOT): path.read_text() for path in paths}
    if not any(path.is_relative_to(SERVICE) for path in sources):
        print(f"{SERVICE} has no modules: wrong folder?", file=sys.stderr)
        return 1
    broken = list(broken_rules(sources))
    for line in broken:
        print(line, file=sys.stderr)
    functions = [function for path, source in sources.items() for function in functions_of(path, source)]
    ours = [function.lines for function in functions if function.path.is_relative_to(SERVICE)]
    print(
        f"{len(ours)} functions in {SERVICE}: longest {max(ours)} lines, {long_share(functions):.1%} over "
        f"{FUNCTION_LINES_USUAL}; {len(functions)} in all"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
