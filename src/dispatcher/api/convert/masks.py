"""Field masks of updates (AIP-134, AIP-161). Pure.

A resource names its leaves: the paths that can be changed on their own. A path in a mask stands for itself or for all
leaves below it; output-only and identifying fields are ignored (AIP-203); anything else is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from dispatcher.api.convert.checks import Violations, shown

ALL = "*"
PATHS_MAX = 100
FIELD = "update_mask"


@dataclass(frozen=True, slots=True)
class Maskable:
    """`leaves` can be changed; `ignored` may be named and are not."""

    leaves: tuple[str, ...]
    ignored: frozenset[str] = frozenset({"name", "uid", "create_time", "update_time", "etag"})


def leaves_to_change(mask: FieldMask, resource: Message, maskable: Maskable, violations: Violations) -> frozenset[str]:
    """The leaves that an update changes: those of the mask; all for `*`; those set in `resource` for an empty mask."""
    paths = list(mask.paths)
    if not paths:
        return frozenset(leaf for leaf in maskable.leaves if _is_set(resource, leaf.split(".")))
    if len(paths) > PATHS_MAX:
        violations.add(FIELD, f"must have at most {PATHS_MAX} paths")
        return frozenset()
    if ALL in paths:
        if len(paths) > 1:
            violations.add(FIELD, "`*` must stand alone")
        return frozenset(maskable.leaves)
    chosen: set[str] = set()
    for path in paths:
        covered = _below(path, maskable.leaves)
        chosen.update(covered)
        if not covered and path.partition(".")[0] not in maskable.ignored:
            violations.add(FIELD, f"{shown(path)!r} is not a field that can be changed: {', '.join(maskable.leaves)}")
    return frozenset(chosen)


def _below(path: str, leaves: Collection[str]) -> list[str]:
    return [leaf for leaf in leaves if leaf == path or leaf.startswith(f"{path}.")]


def _is_set(message: Message, path: list[str]) -> bool:
    """Whether a field differs from its default; a field with presence, whether it is there."""
    name, *rest = path
    if rest:
        return bool(message.HasField(name)) and _is_set(getattr(message, name), rest)
    descriptor = message.DESCRIPTOR.fields_by_name[name]
    return bool(message.HasField(name)) if descriptor.has_presence else bool(getattr(message, name))
