"""Who calls us: the identity that a certificate or the mesh's word gives; pure.

Every reader fails closed: what is missing, ambiguous or malformed is an UnauthenticatedError, never a guess.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509

from dispatcher.errors import UnauthenticatedError

PRINCIPAL_CHARACTERS_MAX = 512
FORWARDED_CERTIFICATE_CHARACTERS_MAX = 16_384
ANONYMOUS = "anonymous"


class AuthMode(enum.StrEnum):
    """How callers are known; exactly one per deployment, never detected."""

    NONE = "none"
    MTLS = "mtls"
    XFCC = "xfcc"
    LINKERD = "linkerd"
    JWT = "jwt"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. `claims` are those of a JWT: names with their texts; none in other modes. Hashable, so
    that what it may is found once."""

    principal: str
    mode: AuthMode
    claims: tuple[tuple[str, tuple[str, ...]], ...] = ()


class AuthReason(enum.StrEnum):
    """Why a call is UNAUTHENTICATED; stable words for ErrorInfo."""

    MISSING = "CREDENTIALS_MISSING"
    INVALID = "CREDENTIALS_INVALID"
    PEER_NOT_TRUSTED = "PEER_NOT_TRUSTED"
    NO_IDENTITY = "CERTIFICATE_WITHOUT_IDENTITY"
    KEYS_UNAVAILABLE = "SIGNING_KEYS_UNAVAILABLE"


_PRINCIPAL = re.compile(r"[\x21-\x7e]+")
# SPIFFE-ID 2.1: a trust domain of lower-case letters, digits, dots, dashes and underscores; path segments without
# percent-encoding, empty segments and dots alone.
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


def refused(reason: AuthReason, message: str) -> UnauthenticatedError:
    """The error that a caller is answered; it never repeats a credential."""
    return UnauthenticatedError(message, reason=reason.value)


def checked_principal(text: str) -> str:
    """`text` as a principal: printable ASCII without spaces, at most 512 characters. Raises UnauthenticatedError."""
    if len(text) > PRINCIPAL_CHARACTERS_MAX or not _PRINCIPAL.fullmatch(text):
        raise refused(AuthReason.INVALID, "the identity is not printable ASCII of at most 512 characters")
    return text


def checked_uri(text: str) -> str:
    """A URI as a principal; with the scheme `spiffe` it must be a workload's SPIFFE ID. Raises UnauthenticatedError."""
    if text[:7].lower() == "spiffe:" and not _SPIFFE.fullmatch(text):
        raise refused(AuthReason.INVALID, "the identity is not a SPIFFE ID of a workload")
    return checked_principal(text)


def principal_of_certificate(pem: bytes) -> str:
    """The principal of a verified client certificate (PEM): its only URI SAN, as X.509-SVID section 2 has it, or
    without any its only DNS SAN as `dns:NAME`. Raises UnauthenticatedError."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType, x509.DuplicateExtension):
        raise refused(
            AuthReason.NO_IDENTITY, "the client certificate has no readable subject alternative name"
        ) from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = names.get_values_for_type(x509.DNSName)
    if len(uris) == 1:
        return checked_uri(uris[0])
    if not uris and len(hosts) == 1 and _DNS_NAME.fullmatch(hosts[0].lower()):
        return f"dns:{hosts[0].lower()}"
    raise refused(
        AuthReason.NO_IDENTITY, "the client certificate must name exactly one URI, or one DNS name and no URI"
    )


def principal_of_forwarded_certificate(header: str) -> str:
    """The principal of an `x-forwarded-client-cert` header: the only URI of its last element.

    Elements before it are what earlier hops said, which nobody has checked. Envoy, "HTTP header manipulation,
    x-forwarded-client-cert": elements are separated by commas, pairs by semicolons, values may be quoted.
    Raises UnauthenticatedError.
    """
    if len(header) > FORWARDED_CERTIFICATE_CHARACTERS_MAX:
        raise refused(AuthReason.INVALID, "x-forwarded-client-cert is too long")
    uris = [value for key, value in _pairs(_split(header, ",")[-1]) if key == "uri"]
    if len(uris) != 1 or not uris[0]:
        raise refused(AuthReason.NO_IDENTITY, "the last element of x-forwarded-client-cert must have exactly one URI")
    return checked_uri(uris[0])


def _pairs(element: str) -> list[tuple[str, str]]:
    """Keys in lower case with their values unquoted."""
    found = []
    for pair in _split(element, ";"):
        key, equals, value = pair.partition("=")
        if not equals:
            raise refused(AuthReason.INVALID, "x-forwarded-client-cert is malformed")
        found.append((key.strip().lower(), _unquoted(value.strip())))
    return found


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        if '"' in value:
            raise refused(AuthReason.INVALID, "x-forwarded-client-cert is malformed")
        return value
    if len(value) < 2 or not value.endswith('"'):
        raise refused(AuthReason.INVALID, "x-forwarded-client-cert is malformed")
    return re.sub(r"\\(.)", r"\1", value[1:-1])


def _split(text: str, separator: str) -> list[str]:
    """`text` at each `separator` outside quotes. Raises UnauthenticatedError where a quote stays open."""
    parts, start, is_quoted, is_escaped = [], 0, False, False
    for index, character in enumerate(text):
        if is_escaped:
            is_escaped = False
        elif is_quoted and character == "\\":
            is_escaped = True
        elif character == '"':
            is_quoted = not is_quoted
        elif character == separator and not is_quoted:
            parts.append(text[start:index])
            start = index + 1
    if is_quoted:
        raise refused(AuthReason.INVALID, "x-forwarded-client-cert is malformed: a quote stays open")
    return [*parts, text[start:]]


def principal_of_linkerd(header: str) -> str:
    """The principal of an `l5d-client-id` header, which the proxy sets from the client's mesh certificate: a DNS name
    such as `shop.acme.serviceaccount.identity.linkerd.cluster.local`. Raises UnauthenticatedError."""
    if not _DNS_NAME.fullmatch(header):
        raise refused(AuthReason.INVALID, "l5d-client-id is not a workload's name")
    return header


def address_of_peer(peer: str) -> IPv4Address | IPv6Address | None:
    """The address in gRPC's name of a peer (`ipv4:10.0.0.1:5555`, `ipv6:%5B::1%5D:5555`); None for any other kind.
    IPv4 within IPv6 is given as IPv4."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]").strip("[]")
    if kind not in ("ipv4", "ipv6"):
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
