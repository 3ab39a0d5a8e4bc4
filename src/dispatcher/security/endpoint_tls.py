"""TLS towards one endpoint: its own roots, and the certificate that we show. Verification is always on."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

CHAIN_CHARACTERS_MAX = 32_768
ROOTS_CHARACTERS_MAX = 65_536
KEY_CHARACTERS_MAX = 16_384
CERTIFICATES_MAX = 64


@dataclass(frozen=True, slots=True)
class EndpointTls:
    """PEM each, empty for what is not there. Hashable: equal ones share a context."""

    roots: str = field(default="", repr=False)
    chain: str = field(default="", repr=False)
    key: str = field(default="", repr=False)


class CertificateError(ValueError):
    """A PEM text is not what it should be. The message never repeats it."""


def check_roots(pem: str) -> None:
    """Raises CertificateError unless `pem` holds certificates."""
    _certificates(pem, ROOTS_CHARACTERS_MAX)


def chain_expiry(pem: str) -> datetime:
    """When the first certificate of a chain ends (UTC). Raises CertificateError."""
    return _certificates(pem, CHAIN_CHARACTERS_MAX)[0].not_valid_after_utc


def check_pair(chain: str, key: str) -> None:
    """Raises CertificateError unless the key is that of the chain's first certificate."""
    leaf = _certificates(chain, CHAIN_CHARACTERS_MAX)[0]
    if len(key) > KEY_CHARACTERS_MAX:
        raise CertificateError(f"must have at most {KEY_CHARACTERS_MAX} characters")
    try:
        private = load_pem_private_key(key.encode(), None)
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        fits = private.public_key().public_bytes(*form) == leaf.public_key().public_bytes(*form)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError("must be an unencrypted private key in PEM") from None
    if not fits:
        raise CertificateError("must be the key of the certificate")


def _certificates(pem: str, characters_max: int) -> list[x509.Certificate]:
    if len(pem) > characters_max:
        raise CertificateError(f"must have at most {characters_max} characters")
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError("must be certificates in PEM") from None
    if not 1 <= len(found) <= CERTIFICATES_MAX:
        raise CertificateError(f"must hold 1 to {CERTIFICATES_MAX} certificates")
    return found


def client_context(tls: EndpointTls, ca_file: str | None = None) -> ssl.SSLContext:
    """A context for connections out; `ca_file` adds to the system's roots where the endpoint has none of its own.

    TLS 1.2 and later (RFC 9325 section 3.1.1). Reads files. Raises ssl.SSLError, OSError.
    """
    if tls.roots:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=tls.roots)
    else:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if tls.chain:
        with _as_file(f"{tls.key.strip()}\n{tls.chain.strip()}\n") as path:
            context.load_cert_chain(path)
    return context


@contextmanager
def _as_file(content: str) -> Iterator[str]:
    """Python's ssl reads keys from files only: one in memory where there is such a thing, else one for us alone."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "w") as file:
                file.write(content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        path.touch(mode=0o600)
        path.write_text(content)
        yield str(path)
