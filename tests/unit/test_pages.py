"""The pages that people write: what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dispatcher.config import Settings, variable_of
from dispatcher.store import citus
from tests.support.readme import ROOT

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "docs/guarantees.md",
    "docs/kubernetes.md",
    "docs/mesh.md",
    "docs/operations.md",
    "docs/scaling.md",
    "docs/security.md",
)
UNITS = re.compile(r"_(seconds|bytes)?(_?(total|count|sum|bucket))?$")


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(page)):
        path, _, wanted = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if wanted:
            assert wanted in {anchor(line.lstrip("# ")) for line in file.read_text().splitlines() if line[:1] == "#"}, (
                target
            )


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_a_page_names_exist(page: str) -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    named = set(re.findall(r"\bDISPATCHER_[A-Z_]+[A-Z]\b(?!_?…)", text_of(page))) - {
        "DISPATCHER_TEST_DSN",
        "DISPATCHER_EGRESS",
    }
    assert named <= known


def test_tests_that_a_page_names_exist() -> None:
    sources = "\n".join(path.read_text() for path in Path(ROOT, "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_[a-z0-9_]+|Test[A-Za-z]+)`", text_of("docs/guarantees.md")))
    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in sources and f"{name} = " not in sources} == set()


def test_the_calls_for_citus_are_those_that_are_made() -> None:
    shown = re.findall(r"^SELECT create_.*;$", text_of("docs/scaling.md"), re.MULTILINE)
    assert shown == [f"{call};" for _, call in citus.calls()]
