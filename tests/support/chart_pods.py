"""What a pod of the chart finds: its environment and the files that are mounted, as a kubelet would make them."""

from __future__ import annotations

from pathlib import Path

from tests.support.certificates import Authority
from tests.support.chart import Rendered
from tests.support.node import SECRET_KEYS

MOUNTED = "/etc/dispatcher"
POD = {"POD_NAME": "d-0", "POD_NAMESPACE": "webhooks", "POD_IPS": "10.1.2.3,fd00::3"}
DSN = "postgresql://dispatcher@db.internal/dispatcher"
CONTENTS = {
    "DISPATCHER_DATABASE_URL_FILE": DSN,
    "DISPATCHER_SECRET_KEYS_FILE": SECRET_KEYS,
    "DISPATCHER_OPS_TOKEN_FILE": "a token",
    "DISPATCHER_EGRESS_PROXY_URL_FILE": "http://user:word@proxy.internal:3128",
    "DISPATCHER_AUTH_TOKENS_FILE": f"tokens: [{{principal: shop, sha256: {'ab' * 32}}}]",
}


def environment(rendered: Rendered) -> dict[str, str]:
    """What the container finds in its environment, as a kubelet would make it, save for what comes from a Secret."""
    (source,) = rendered.container["envFrom"]
    assert source == {"configMapRef": {"name": rendered.one("ConfigMap")["metadata"]["name"]}}
    made = dict(rendered.settings)
    for entry in rendered.container["env"]:
        if "valueFrom" not in entry:
            value = entry["value"]
            for name, text in POD.items():
                value = value.replace(f"$({name})", text)
            made[entry["name"]] = value
    return made


def with_files(rendered: Rendered, folder: Path) -> dict[str, str]:
    """The environment with the mounted folders under `folder`, filled."""
    made = {name: value.replace(MOUNTED, str(folder)) for name, value in environment(rendered).items()}
    mounts = {mount["name"]: mount["mountPath"] for mount in rendered.container["volumeMounts"]}
    for name, value in environment(rendered).items():
        if value.startswith(f"{MOUNTED}/"):
            volume = value.removeprefix(f"{MOUNTED}/").partition("/")[0]
            assert mounts[volume] == f"{MOUNTED}/{volume}", name
            path = folder / value.removeprefix(f"{MOUNTED}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(CONTENTS.get(name, ""))
    if rendered.has("ConfigMap", "-access"):
        for name, text in rendered.one("ConfigMap", "-access")["data"].items():
            (folder / "access" / name).write_text(text)
    if (folder / "tls").exists():
        authority = Authority()
        certificate, key = authority.issue(hosts=["dispatcher"]).written(folder, "ours")
        (folder / "tls" / "tls.crt").write_bytes(certificate.read_bytes())
        (folder / "tls" / "tls.key").write_bytes(key.read_bytes())
        (folder / "tls" / "ca.crt").write_bytes(authority.root)
    return made
