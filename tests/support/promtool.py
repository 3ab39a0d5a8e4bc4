"""promtool as `make tools` gets it, and rule tests as it wants them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.readme import ROOT

RULES = ROOT / "helm" / "dispatcher" / "rules"
RULE_FILES = sorted(RULES.glob("*.yaml"))
PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{ROOT / '.tools'}:{os.environ['PATH']}")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: `make tools`")
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """One alert on made-up series: `series` by name, values in promtool's notation, one every `step_min`, which is how
    often rules are evaluated. It fires at the minutes `fires`, and at those of `quiet` it does not. `labels` are what
    the alert must carry."""

    alert: str
    series: Mapping[str, str]
    quiet: Sequence[int]
    fires: Sequence[int]
    labels: Mapping[str, str]
    step_min: int = 1


def rules() -> list[dict[str, Any]]:
    """All rules of all files, alerting and recording ones."""
    groups = [group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def run_promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What it says and whether it is content."""
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def check(case: Case, folder: Path, files: Sequence[Path] = ()) -> str:
    """Run one case against the rules; what promtool finds wrong, empty where nothing is."""
    expected = {"alertname": case.alert, "alertstate": "firing", **case.labels}
    matchers = ",".join(f'{name}="{value}"' for name, value in expected.items())
    firing = [_at(f"count(ALERTS{{{matchers}}}) > bool 0", minute, [1]) for minute in case.fires]
    resting = [_at(f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})', m, []) for m in case.quiet]
    test = {
        "interval": f"{case.step_min}m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [*firing, *resting],
    }
    file = folder / f"{case.alert}.yaml"
    document = {
        "rule_files": [str(path) for path in files or RULE_FILES],
        "evaluation_interval": f"{case.step_min}m",
        "tests": [test],
    }
    file.write_text(yaml.safe_dump(document))
    done = run_promtool("test", "rules", file)
    return "" if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"


def _at(expression: str, minute: int, values: Sequence[float]) -> dict[str, Any]:
    samples = [{"labels": "{}", "value": value} for value in values]
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}
