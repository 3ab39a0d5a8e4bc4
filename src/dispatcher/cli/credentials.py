"""Who the command line is to the service: a token, a certificate, or nobody in particular."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.cli.failure import UsageError

if TYPE_CHECKING:
    from dispatcher.config.groups import ClientSettings


@dataclass(frozen=True, slots=True)
class Credentials:
    """`with_tls`: the channel is encrypted and the service's certificate checked, by `roots` (PEM) or the system's."""

    token: str = field(default="", repr=False)
    with_tls: bool = False
    roots: bytes | None = None
    chain: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: ClientSettings) -> Credentials:
        """As the settings have it; UsageError for a file that can't be read."""
        names = (settings.client_ca_file, settings.client_certificate_file, settings.client_key_file)
        roots, chain, key = (_read(name) if name else None for name in names)
        token = settings.client_token.get_secret_value() if settings.client_token else ""
        return cls(token, settings.client_tls or any(names), roots, chain, key)


NOBODY = Credentials()


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or 'cannot be read'}") from error
