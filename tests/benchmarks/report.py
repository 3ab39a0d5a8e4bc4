"""What a benchmark says: rows with their baselines and targets, as a table and as JSON."""

from __future__ import annotations

import enum
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Sense(enum.Enum):
    """Which side of a target is the good one."""

    AT_LEAST = ">="
    AT_MOST = "<="


@dataclass(frozen=True, slots=True)
class Target:
    """What a row is to reach: its ratio to the baseline where it has one, else its value; `floor` is of the value."""

    sense: Sense
    bound: float
    floor: float | None = None

    def is_met(self, reached: float, value: float) -> bool:
        """Whether `reached` is on the good side."""
        good = reached >= self.bound if self.sense is Sense.AT_LEAST else reached <= self.bound
        return good and (self.floor is None or value >= self.floor)

    def __str__(self) -> str:
        floor = "" if self.floor is None else f", >= {_number(self.floor)}"
        return f"{self.sense.value} {_number(self.bound)}{floor}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measure. `values` and `baselines` are the repetitions, taken in turn: the n-th of each belong together.

    `costs` are what one event cost (medians), by name; `note` says what the figure alone does not.
    """

    name: str
    unit: str
    values: Sequence[float]
    target: Target | None
    baselines: Sequence[float] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def baseline(self) -> float | None:
        return statistics.median(self.baselines) if self.baselines else None

    @property
    def ratios(self) -> list[float]:
        """One for each repetition."""
        return [value / baseline for value, baseline in zip(self.values, self.baselines, strict=True)]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.baselines else None

    @property
    def met(self) -> bool | None:
        """None where nothing was promised."""
        if self.target is None:
            return None
        return self.target.is_met(self.value if self.ratio is None else self.ratio, self.value)

    def as_json(self) -> dict[str, Any]:
        """The row as it is written; `min` and `max` are over the repetitions."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline,
            "ratio": self.ratio,
            "target": None if self.target is None else str(self.target),
            "met": self.met,
            "min": min(self.values),
            "max": max(self.values),
            "ratio_min": min(self.ratios) if self.baselines else None,
            "ratio_max": max(self.ratios) if self.baselines else None,
            "costs": dict(self.costs),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran."""

    processor: str
    cores: int
    memory_gb: float
    system: str
    python: str
    receiver: str
    date: str

    @classmethod
    def present(cls, receiver: str) -> Machine:
        """This one."""
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            _processor(),
            os.cpu_count() or 1,
            round(pages / 1e9, 1),
            f"{platform.system()} {platform.release()}",
            platform.python_version(),
            receiver,
            datetime.now(UTC).strftime("%Y-%m-%d"),
        )


def write_json(path: Path, machine: Machine, rows: Sequence[Row]) -> None:
    """All of it."""
    path.write_text(json.dumps({"machine": asdict(machine), "rows": [row.as_json() for row in rows]}, indent=2) + "\n")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| measure | value (min to max) | baseline | ratio (min to max) | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        span = f"{_number(row.value)} {row.unit} ({_number(min(row.values))} to {_number(max(row.values))})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
        baseline = "" if row.baseline is None else _number(row.baseline)
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        lines.append(f"| `{row.name}` | {span} | {baseline} | {ratio} | {row.target or ''} | {met} |")
    return "\n".join(lines)


def costs(rows: Sequence[Row]) -> str:
    """What one event cost, as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row.costs))
    lines = [f"| measure | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in rows:
        if row.costs:
            cells = [_number(row.costs[name]) if name in row.costs else "" for name in names]
            lines.append(f"| `{row.name}` | {' | '.join(cells)} |")
    return "\n".join(lines) if names else ""


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
