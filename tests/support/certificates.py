"""A certificate authority of the tests' own: certificates for servers, for workloads of a mesh, and broken ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def written(self, folder: Path, name: str = "tls") -> tuple[Path, Path]:
        """As two files."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)
        return certificate, key


@dataclass(slots=True)
class Authority:
    """Issues certificates."""

    name: str = "tests"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def subject(self) -> x509.Name:
        return common_name(self.name)

    @property
    def root(self) -> bytes:
        """Its own certificate, PEM."""
        builder = builder_of(self.subject, self.subject, self.key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """Its own key, PEM."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def issue(
        self,
        *,
        uris: Sequence[str] = (),
        hosts: Sequence[str] = (),
        expired: bool = False,
        subject: str = "leaf",
    ) -> Issued:
        """A certificate for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(host) for host in hosts]
        builder = builder_of(common_name(subject), self.subject, key, expired=expired)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return Issued(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


def common_name(text: str) -> x509.Name:
    """A name that has nothing else."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def builder_of(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, expired: bool = False
) -> x509.CertificateBuilder:
    """A certificate without its extensions, good for a day, or no more since a day."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 3 * DAY)
        .not_valid_after(now - DAY if expired else now + DAY)
    )
