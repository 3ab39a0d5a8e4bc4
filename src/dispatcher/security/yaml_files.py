"""YAML that an operator wrote, read strictly: plain data only, no aliases, no key twice, bounded. Pure."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

SHOWN_MAX = 10


class YamlError(ValueError):
    """A text is not the plain YAML that is read here; the message names the place, never a value."""


class _StrictLoader(yaml.SafeLoader):
    """Of a key that stands twice a reader sees one and the program takes the other."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise YamlError(f"line {self.get_mark().line + 1}: aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - as in the base
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                raise YamlError(f"line {key.start_mark.line + 1}: keys are plain texts")
            if key.value in seen:
                raise YamlError(f"line {key.start_mark.line + 1}: a key stands twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, bytes_max: int) -> Any:
    """The data in `text`. Raises YamlError."""
    if len(text.encode(errors="replace")) > bytes_max:
        raise YamlError(f"at most {bytes_max} bytes are read")
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise YamlError(f"line {line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError("not YAML") from None


def explain(error: ValidationError) -> str:
    """What does not fit a schema, place by place, at most ten, without the values."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}" for each in problems]
    more = [f"and {len(told) - SHOWN_MAX} more"] if len(told) > SHOWN_MAX else []
    return "; ".join(told[:SHOWN_MAX] + more)
