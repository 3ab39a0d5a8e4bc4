"""The lines by which the pages install the chart, as they stand: a real kubectl and helm make the objects of them.

Without a cluster: `kubectl create` answers what it would send, and `helm upgrade --install` is `helm template`.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from dispatcher.security.secrets import Keyring
from tests.support.chart import HELMS, Object, Rendered, needs_helm
from tests.support.commands import TOOLS_REQUIRED, run_commands
from tests.support.readme import ROOT, commands

TOOLS = f"{Path(sys.executable).parent}:{ROOT / '.tools'}:{os.environ['PATH']}"
KUBECTL = shutil.which("kubectl", path=TOOLS)
pytestmark = [
    needs_helm,
    pytest.mark.skipif(KUBECTL is None and not TOOLS_REQUIRED, reason="kubectl is not installed: `make tools`"),
]
WITHOUT_A_CLUSTER = """
kubectl() { command kubectl "$@" --dry-run=client -o yaml; echo ---; }
helm() { shift 2; command helm template "$@"; }
"""


def install(page: str, folder: Path, exchanged: Mapping[str, str]) -> Rendered:
    """What the page's lines would bring to a cluster."""
    (folder / "helm").symlink_to(ROOT / "helm")
    (folder / "tokens.yaml").write_text("tokens: []\n")
    script = WITHOUT_A_CLUSTER + commands("install", page)
    told = run_commands(script, exchanged, folder, PATH=TOOLS, KUBECONFIG="/nonexistent")
    return Rendered(tuple(found for found in yaml.safe_load_all(told) if found))


PAGES = pytest.mark.parametrize(
    ("page", "exchanged"),
    [("helm/dispatcher/README.md", {}), ("docs/kubernetes.md", {"sha256:…": f"sha256:{'ab' * 32}"})],
)


@PAGES
def test_the_lines_of_the_page_make_all_that_the_pods_need(
    page: str, exchanged: Mapping[str, str], tmp_path: Path
) -> None:
    assert "helm" in HELMS
    made = install(page, tmp_path, exchanged)
    (namespace,) = made.all("Namespace")
    assert {found["metadata"]["namespace"] for found in made.objects if found is not namespace} == {"webhooks"}
    (secret,) = made.all("Secret")
    (deployment,) = made.all("Deployment")
    assert mounted_keys(deployment) == {(secret["metadata"]["name"], key) for key in secret["data"]}
    assert Keyring.parse(secret_text(secret, "secret-keys"))


@PAGES
def test_no_secret_is_made_where_no_key_could_be(page: str, exchanged: Mapping[str, str], tmp_path: Path) -> None:
    made = install(page, tmp_path, {**exchanged, "dispatcher secrets new-key": "no-such-program"})
    assert made.all("Secret") == []


def mounted_keys(deployment: Object) -> set[tuple[str, str]]:
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    sources = next(volume for volume in volumes if volume["name"] == "secrets")["projected"]["sources"]
    return {(each["secret"]["name"], item["key"]) for each in sources for item in each["secret"]["items"]}


def secret_text(secret: Object, key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()
