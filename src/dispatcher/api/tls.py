"""TLS of our own gRPC ports; the certificate of each handshake is the one that is there by then."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from dispatcher.security.tls_files import TlsFiles


def server_credentials(files: Callable[[], TlsFiles]) -> grpc.ServerCredentials:
    """For `add_secure_port`. Callers need a certificate where there are roots for it. TLS 1.2 is grpc's least."""
    needs_certificate = files().client_ca is not None
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files()), lambda: _configuration(files()), require_client_authentication=needs_certificate
    )


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(files.key, files.chain)], files.client_ca)
