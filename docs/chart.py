"""The chart's generated parts: in values.schema.json the settings and which keys are required, the settings' bounds in
templates/_bounds.tpl, and README.md from README.md.gotmpl and values.yaml.

The template and the comments (`# -- …`) are helm-docs' own form, of which this knows the few marks that it needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dispatcher.config import Settings, variable_of

CHART = Path(__file__).parent.parent / "helm" / "dispatcher"
COMMENT = re.compile(r"^ *# ?(?P<starts>-- )?(?P<text>.*)$")
OTEL_VALUE = {"type": ["string", "number", "boolean"]}
INTEGER_TEXT = "^[0-9]*$"
NUMBER_TEXT = "^([0-9]+([.][0-9]+)?)?$"
NOT_SET = ""
"""An empty text is a setting that is not set, of every kind."""
EMPTIED_BY_NULL = {
    "auth.policy",
    "nodeSelector",
    "affinity",
    "serviceAccount.annotations",
    "service.annotations",
    "monitoring.dashboards.annotations",
    "istio.destinationRule.outlierDetection",
    "cnpg.resources",
}
"""Maps that are rendered alike empty and absent: what another file of values put into them, null takes away."""
KUBERNETES_OWN = "#/definitions/resources"
"""Parts of it may be taken away by null, a limit for instance; they are then not there, as they are for Kubernetes."""
BOUNDS_TEMPLATE = """\
{{/* Made by `make docs` from src/dispatcher/config/groups.py; a test compares. The bounds of each number. */}}

{{- define "dispatcher.bounds" -}}
%s
{{- end -}}
"""


def render_schema() -> str:
    """values.schema.json as it stands, its `definitions.settings` and the `required` of each level made anew."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    schema["definitions"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {variable_of(name): setting_schema(name) for name in sorted(Settings.model_fields)},
        "patternProperties": {"^OTEL_[A-Z0-9_]+$": OTEL_VALUE},
    }
    _require(schema, yaml.safe_load((CHART / "values.yaml").read_text()), schema["definitions"], "")
    return json.dumps(schema, indent=2) + "\n"


def _require(schema: dict[str, Any], values: Any, definitions: dict[str, Any], prefix: str) -> None:
    """Requires every key that has a default. Helm takes a key that is null out of the defaults before it looks into the
    schema, so that only a null can be missing; a template would read it as 0, as false or as nothing."""
    level = _resolved(schema, definitions)
    if not isinstance(values, dict) or "properties" not in level or schema.get("$ref") == KUBERNETES_OWN:
        return
    inner = level["properties"]
    required = [key for key in values if _is_required(inner[key], values[key], f"{prefix}{key}")]
    if required:
        level["required"] = required
    for key, value in values.items():
        _require(inner[key], value, definitions, f"{prefix}{key}.")


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = definitions[name] if name else schema
    return found


def _is_required(schema: dict[str, Any], default: Any, path: str) -> bool:
    return default is not None and "null" not in schema.get("type", ()) and path not in EMPTIED_BY_NULL


def setting_schema(name: str) -> dict[str, Any]:
    """What a value of `config` may be. Text is accepted for every kind: the service reads text anyway. The bounds of a
    number that is text are beyond a schema: `render_bounds`."""
    field = Settings.model_fields[name]
    kind = str(field.annotation)
    limits = bounds_of(name)
    if "Literal" in kind:
        return {"enum": [*re.findall(r"'(\w+)'", kind), NOT_SET], "description": field.description}
    if field.annotation is bool:
        return {"enum": [True, False, "true", "false", NOT_SET], "description": field.description}
    if field.annotation is int:
        return {"type": ["integer", "string"], **limits, "pattern": INTEGER_TEXT, "description": field.description}
    if field.annotation is float:
        return {"type": ["number", "string"], **limits, "pattern": NUMBER_TEXT, "description": field.description}
    return {"type": ["string", "number"], "description": field.description}


def bounds_of(name: str) -> dict[str, float]:
    """`minimum` and `maximum` of a setting that is a number; empty for others."""
    return {
        keyword: getattr(item, attribute)
        for item in Settings.model_fields[name].metadata
        for attribute, keyword in (("ge", "minimum"), ("le", "maximum"))
        if hasattr(item, attribute)
    }


def render_bounds() -> str:
    """templates/_bounds.tpl: by variable, for the check of numbers that are given as text."""
    limits = {variable_of(name): bounds_of(name) for name in sorted(Settings.model_fields)}
    rows = [f"{name}: [{found['minimum']}, {found['maximum']}]" for name, found in limits.items() if found]
    return BOUNDS_TEMPLATE % "\n".join(rows)


@dataclass(frozen=True, slots=True)
class Value:
    """One row of the README's table."""

    path: str
    default: Any
    description: str


def documented_values(text: str) -> Iterator[Value]:
    """Every value of values.yaml that has a `# --` comment, in order. ValueError for one that has none."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 -- values.yaml is a map
    yield from _values_below(root, text.splitlines(), "")


def _values_below(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Value]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        description = _description_above(lines, key.start_mark.line)
        if description:
            yield Value(path, yaml.safe_load(yaml.serialize(value)), description)
        elif isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            yield from _values_below(value, lines, f"{path}.")
        else:
            raise ValueError(f"values.yaml: {path} has no comment")


def _description_above(lines: list[str], line: int) -> str:
    """The comment right above a line, from its `# --` on; empty where there is no such mark."""
    found: list[str] = []
    for text in reversed(lines[:line]):
        comment = COMMENT.match(text)
        if comment is None:
            return ""
        found.insert(0, comment["text"])
        if comment["starts"]:
            return " ".join(found)
    return ""


def render_readme() -> str:
    """README.md of the chart."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = documented_values((CHART / "values.yaml").read_text())
    marks = {
        "chart.version": chart["version"],
        "chart.appVersion": chart["appVersion"],
        "chart.kubeVersion": chart["kubeVersion"],
        "chart.valuesTable": "\n".join(["| value | default | meaning |", "|---|---|---|", *map(_row, values)]),
    }
    template = (CHART / "README.md.gotmpl").read_text()
    return re.sub(r'\{\{ template "([\w.]+)" \. \}\}', lambda mark: str(marks[mark[1]]), template)


def _row(value: Value) -> str:
    default = json.dumps(value.default, ensure_ascii=False)
    return f"| `{value.path}` | `{default}` | {value.description} |".replace("\\|", "|")
