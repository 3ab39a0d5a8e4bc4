"""The zip that users of other languages get."""

from __future__ import annotations

import importlib.util
import zipfile
from importlib import resources
from pathlib import Path
from types import ModuleType

import google.rpc
import pytest

PROTOS = Path(__file__).parents[2] / "protos"
GOOGLE = Path(google.rpc.__path__[0]).parents[1]


@pytest.fixture(scope="module")
def package() -> ModuleType:
    spec = importlib.util.spec_from_file_location("package", PROTOS / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def descriptor_set() -> bytes:
    return resources.files("webhooks").joinpath("descriptors.binpb").read_bytes()


def test_the_zip_is_the_same_each_time_and_holds_the_sources(package: ModuleType, tmp_path: Path) -> None:
    contents = package.members(descriptor_set(), [PROTOS, GOOGLE])
    package.write_zip(tmp_path / "one.zip", contents)
    package.write_zip(tmp_path / "two.zip", dict(reversed(contents.items())))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        source = archive.read("dispatcher-protos/webhooks/v1/event.proto")
        assert archive.read("dispatcher-protos/dispatcher.binpb") == descriptor_set()
    assert source == (PROTOS / "webhooks/v1/event.proto").read_bytes()


def test_googles_protos_are_found_beside_ours(package: ModuleType) -> None:
    assert b"HttpRule" in package.read_source("google/api/annotations.proto", [PROTOS, GOOGLE])


def test_a_missing_source_is_an_error(package: ModuleType) -> None:
    with pytest.raises(FileNotFoundError, match="is in none of"):
        package.members(descriptor_set(), [GOOGLE])
