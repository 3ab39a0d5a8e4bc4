"""The little of Kubernetes' API that helm asks before it renders for a cluster: what kinds there are, and what lives.

It answers on loopback and changes nothing: whoever sends an object is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KINDS: Mapping[str, tuple[str, ...]] = {
    "v1": ("ConfigMap", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment",),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "batch/v1": ("Job",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "policy/v1": ("PodDisruptionBudget",),
}
RELEASE_BEFORE: Object = {
    "info": {"status": "deployed"},
    "chart": {"metadata": {"name": "dispatcher", "version": "0.0.1", "apiVersion": "v2"}},
    "manifest": "",
}


def plural(kind: str) -> str:
    """A kind's name in a path."""
    return kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")


def root_of(version: str) -> str:
    """The path of a version of a group; the first group has no name."""
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def discovery(version: str) -> Object:
    """The resources of one version of a group."""
    resources = [
        {"name": plural(kind), "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
        for kind in KINDS[version]
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def groups() -> Object:
    """The groups that there are."""
    found = []
    for version in (each for each in KINDS if "/" in each):
        entry = {"groupVersion": version, "version": version.partition("/")[2]}
        found.append({"name": version.partition("/")[0], "versions": [entry], "preferredVersion": entry})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def pages(kube: str, living: list[Object]) -> dict[str, Object]:
    """Every path that is answered."""
    major, minor, _ = kube.split(".")
    made: dict[str, Object] = {
        "/version": {"major": major, "minor": minor, "gitVersion": f"v{kube}"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": groups(),
    }
    for version in KINDS:
        made[root_of(version)] = discovery(version)
    for each in living:
        where = each["metadata"]
        path = f"namespaces/{where['namespace']}/{plural(each['kind'])}/{where['name']}"
        made[f"{root_of(each['apiVersion'])}/{path}"] = each
    return made


class _Handler(BaseHTTPRequestHandler):
    answers: Mapping[str, Object]

    def do_GET(self) -> None:
        found = self.answers.get(self.path.partition("?")[0])
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(missing if found is None else found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 -- the base's own name
        """Quiet: helm tells what it misses."""


@contextmanager
def cluster(folder: Path, *living: Object, kube: str = "1.37.0", revision: int = 1) -> Iterator[dict[str, str]]:
    """The environment in which helm sees a cluster with these objects, and release `d` at a revision."""
    handler = type("_Answering", (_Handler,), {"answers": pages(kube, list(living))})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield _environment(folder, server.server_port, revision)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _environment(folder: Path, port: int, revision: int) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    release = RELEASE_BEFORE | {"name": "d", "namespace": "webhooks", "version": revision}
    (folder / "releases").write_text(yaml.safe_dump([release]))
    return {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "HELM_DRIVER": "memory",
        "HELM_MEMORY_DRIVER_DATA": str(folder / "releases"),
        "HELM_CACHE_HOME": str(folder / "cache"),
    }
