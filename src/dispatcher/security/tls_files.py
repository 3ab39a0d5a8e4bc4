"""The certificate of our own gRPC ports: chain, key, and the roots that callers' certificates must come from. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM each. `client_ca` is None where callers need no certificate."""

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None

    @classmethod
    def parse(cls, contents: Sequence[bytes]) -> TlsFiles:
        """From chain, key and, where callers need certificates, their roots. Raises ValueError: a chain and a key that
        do not belong together are refused here, for gRPC would only fail every handshake."""
        chain, key, *rest = contents
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
            private = load_pem_private_key(key, None)
            roots = [x509.load_pem_x509_certificates(each) for each in rest]
        except (TypeError, ValueError, UnsupportedAlgorithm):
            raise ValueError("not a PEM certificate chain, its unencrypted key, and roots") from None
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if leaf.public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
            raise ValueError("the key is not that of the certificate")
        if not all(roots):
            raise ValueError("the file of roots holds no certificate")
        return cls(chain, key, rest[0] if rest else None)
