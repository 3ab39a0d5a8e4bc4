"""A Dockerfile as its stages and instructions, for tests where no container engine runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    """`RUN`, `COPY` and so on with the rest of its line, continuation lines joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """Of the rest, options (`--…`) left out."""
        return [word for word in shlex.split(self.rest) if not word.startswith("--")]

    @property
    def options(self) -> dict[str, str]:
        """`--name=value` of the rest, as far as they stand before anything else."""
        found = {}
        for word in shlex.split(self.rest):
            if not word.startswith("--"):
                break
            name, _, value = word.removeprefix("--").partition("=")
            found[name] = value
        return found

    @property
    def as_json(self) -> list[str]:
        """The words of the exec form; ValueError for the shell form."""
        words: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return words


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next; `instructions` does not hold it."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name == name]

    def only(self, name: str) -> Instruction:
        (found,) = self.all(name)
        return found


def instructions_of(text: str) -> list[Instruction]:
    """Comments and empty lines left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(name.upper(), rest.strip()) for name, _, rest in (x.partition(" ") for x in joined.split("\n"))]


def read_dockerfile(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage with their defaults, and the stages."""
    arguments: dict[str, str] = {}
    stages: list[tuple[str, str, list[Instruction]]] = []
    for instruction in instructions_of(path.read_text()):
        if instruction.name == "FROM":
            base, _, name = instruction.rest.partition(" AS ")
            stages.append((base, name.strip(), []))
        elif stages:
            stages[-1][2].append(instruction)
        else:
            assert instruction.name == "ARG", instruction
            name, _, value = instruction.rest.partition("=")
            arguments[name] = value
    return arguments, [Stage(base, name, tuple(found)) for base, name, found in stages]
