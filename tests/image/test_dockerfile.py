"""The rules that the Dockerfile keeps; numbers are hadolint's."""

from __future__ import annotations

import re
from pathlib import Path

from dispatcher import __version__
from dispatcher.config import Settings
from dispatcher.config.groups import split_address
from tests.support.cli import run_cli
from tests.support.dockerfile import read_dockerfile

ROOT = Path(__file__).parents[2]
ARGUMENTS, STAGES = read_dockerfile(ROOT / "Dockerfile")
EVERYTHING = [instruction for stage in STAGES for instruction in stage.instructions]
LAST = STAGES[-1]


def test_every_stage_stands_on_one_base_that_may_be_named_by_its_digest() -> None:
    assert {stage.base for stage in STAGES} == {"${PYTHON_IMAGE}"}
    name, _, tag = ARGUMENTS["PYTHON_IMAGE"].partition(":")
    assert (name, tag != "latest", "slim" in tag) == ("python", True, True)  # DL3006, DL3007


def test_the_interpreter_is_the_oldest_that_is_supported_and_so_the_one_that_is_tested() -> None:
    (floor,) = re.findall(r'^requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert ARGUMENTS["PYTHON_IMAGE"].startswith(f"python:{floor}-")


def test_it_runs_as_a_numeric_user_that_is_not_root() -> None:
    assert LAST.only("USER").rest == "65532:65532"  # DL3002
    entered = LAST.instructions.index(LAST.only("USER"))
    assert not [i for i in LAST.instructions[entered:] if i.name in ("RUN", "COPY")], "nothing may belong to the user"


def test_what_is_copied_exists_and_goes_to_the_builder() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = [
        source
        for stage in STAGES
        for copy in stage.all("COPY")
        if "from" not in copy.options
        for source in copy.words[:-1]
    ]
    assert copied
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert set(copied) == sent
    assert rules[1] == "*", "nothing else goes there"


def test_stages_copy_from_stages_before_them() -> None:
    for number, stage in enumerate(STAGES):
        before = {earlier.name for earlier in STAGES[:number]}
        assert {copy.options["from"] for copy in stage.all("COPY") if "from" in copy.options} <= before


def test_packages_are_installed_by_hash_or_from_what_was_built_and_leave_no_cache() -> None:
    commands = [part for i in EVERYTHING if i.name == "RUN" for part in i.rest.split("&&")]
    installs = [command for command in commands if re.search(r"\bpip\b.*\binstall\b", command)]
    assert len(installs) == 3
    for command in installs:
        assert "--no-cache-dir" in command  # DL3042
        assert "--require-hashes" in command or "--no-index" in command  # DL3013


def test_nothing_is_fetched_by_other_means() -> None:
    assert [i for i in EVERYTHING if i.name in ("ADD", "MAINTAINER", "SHELL", "ONBUILD")] == []  # DL3020, DL4000
    text = " ".join(i.rest for i in EVERYTHING)
    assert not re.search(r"\b(apt|apt-get|curl|wget|git|sudo|ssh)\b", text)
    assert not any(re.search(r"\bcd\s", run.rest) for run in EVERYTHING if run.name == "RUN")  # DL3003


def test_nothing_that_installs_or_builds_is_left() -> None:
    (run,) = LAST.all("RUN")
    assert re.search(r"pip uninstall --yes .*\bsetuptools wheel pip\b", run.rest)
    assert "ensurepip" in run.rest
    assert [copy.options.get("from") for copy in LAST.all("COPY")] == ["install"]


def test_it_runs_the_service_in_exec_form_and_asks_its_health_by_a_command_that_exists() -> None:
    assert LAST.only("ENTRYPOINT").as_json == ["dispatcher"]  # DL3025
    assert LAST.only("CMD").as_json == ["serve"]
    asked = LAST.only("HEALTHCHECK").as_json
    assert asked[:2] == ["dispatcher", "health"]
    assert run_cli(*asked[1:], "--help").code == 0
    assert LAST.only("STOPSIGNAL").rest == "SIGTERM"


def test_the_ports_are_those_that_the_service_listens_on() -> None:
    settings = Settings()
    known = {split_address(address)[1] for address in (settings.grpc_listen, settings.ops_listen)}
    assert {int(port) for port in LAST.only("EXPOSE").words} == known | {50053}


def test_the_labels_are_those_of_the_open_container_initiative_and_the_version_is_ours() -> None:
    labels = dict(word.split("=", 1) for word in LAST.only("LABEL").words)
    prefix = "org.opencontainers.image."
    assert {f"{prefix}{name}" for name in ("title", "description", "licenses", "version", "revision")} == labels.keys()
    assert f"VERSION={__version__}" in [argument.rest for argument in LAST.all("ARG")]
