"""Packs the API for users of other languages: every .proto that a descriptor set names, and the set itself.

    python protos/package.py DESCRIPTOR_SET ZIP PROTO_ROOT…

The same input gives the same bytes: members are sorted and bear a fixed time.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = "dispatcher-protos"
# The earliest time that a zip can hold: the true one would make each build differ.
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
# protoc knows these by itself, from its own include folder; every other compiler brings them, too.
BUILT_IN_PREFIX = "google/protobuf/"


def read_source(path: str, roots: Sequence[Path]) -> bytes:
    """The text of one .proto, from the first root that has it."""
    for root in roots:
        if (root / path).is_file():
            return (root / path).read_bytes()
    raise FileNotFoundError(f"{path} is in none of {', '.join(map(str, roots))}")


def members(descriptor_set: bytes, roots: Sequence[Path]) -> dict[str, bytes]:
    """Path inside the zip to content; `descriptor_set` is a serialized google.protobuf.FileDescriptorSet."""
    names = [file.name for file in FileDescriptorSet.FromString(descriptor_set).file]
    sources = {name: read_source(name, roots) for name in names if not name.startswith(BUILT_IN_PREFIX)}
    return {**sources, "dispatcher.binpb": descriptor_set}


def write_zip(target: Path, contents: dict[str, bytes]) -> None:
    """Write `contents` to `target` below one folder, the same bytes each time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(f"{ROOT}/{name}", FIXED_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, contents[name])


def main(arguments: Sequence[str]) -> None:
    descriptor_set, target, *roots = map(Path, arguments)
    write_zip(target, members(descriptor_set.read_bytes(), roots))
    print(target)  # noqa: T201 - the recipe's answer: where to find it


if __name__ == "__main__":
    main(sys.argv[1:])
