"""Lock files hold pins and hashes and no URL, so that any mirror serves them, and agree with each other."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Each installs the one before it and more; `make run` and `make test` share an environment.
NESTED = ("requirements.txt", "requirements-dev.txt", "requirements-test.txt")
LOCKS = (*NESTED, "requirements-tools.txt")
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+)(?: ; ([^\\]+?))? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")
COMMENT = re.compile(r"^ *#")
# A scheme, an option of pip, a direct reference, or a dotted host followed by a path or a port.
ELSEWHERE = re.compile(r"://|^ *-|\s@\s|[a-z0-9-]\.(?:org|com|net|io|dev)(?:[/:]|$)", re.IGNORECASE)


def broken_lines(name: str, text: str) -> Iterator[str]:
    """Every line of a lock file that is neither a pin nor its hash nor a comment, or that names a place."""
    for number, line in enumerate(text.splitlines(), 1):
        if HASH.match(line):
            continue
        if ELSEWHERE.search(line):
            yield f"{name}:{number}: names a place to install from: {line.strip()}"
        elif line and not COMMENT.match(line) and not PIN.match(line):
            yield f"{name}:{number}: not a pin with hashes: {line.strip()}"


def pins_of(text: str) -> dict[tuple[str, str], str]:
    """Version by name and environment marker."""
    found = (PIN.match(line) for line in text.splitlines())
    return {(pin[1], pin[3] or ""): pin[2] for pin in found if pin}


def disagreements(texts: dict[str, str]) -> Iterator[str]:
    """Every package that a file of NESTED pins and the next one does not, or otherwise."""
    for smaller, larger in pairwise(NESTED):
        wider = {name: version for (name, _), version in pins_of(texts[larger]).items()}
        for (name, _), version in pins_of(texts[smaller]).items():
            if wider.get(name) != version:
                yield f"{name} is {version} in {smaller}, {wider.get(name, 'missing')} in {larger}: run `make lock`"


def main() -> int:
    """Print what is wrong."""
    texts = {name: (ROOT / name).read_text() for name in LOCKS}
    broken = [line for name, text in texts.items() for line in broken_lines(name, text)]
    broken += disagreements(texts)
    for line in broken:
        print(line, file=sys.stderr)
    print(", ".join(f"{name}: {len(pins_of(text))} packages" for name, text in texts.items()))
    return 1 if broken or not all(pins_of(text) for text in texts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
