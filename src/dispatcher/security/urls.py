"""One strict reading of an endpoint's URL; pure. What two parsers would read differently is refused.

RFC 3986 (http and https only), hosts per RFC 1123 and IDNA 2008 with UTS 46 mapping, numeric hosts per the WHATWG rule
"ends in a number".
"""

from __future__ import annotations

import enum
import re
import urllib.parse
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import idna
from yarl import URL

from dispatcher.security.addresses import IPAddress

URL_CHARACTERS_MAX = 2048
HOST_CHARACTERS_MAX = 253
DEFAULT_PORTS = {"http": 80, "https": 443}


class UrlRefusal(enum.StrEnum):
    """Why a URL is refused; stable words for error details."""

    TOO_LONG = "URL_TOO_LONG"
    MALFORMED = "URL_MALFORMED"
    FORBIDDEN_CHARACTER = "URL_FORBIDDEN_CHARACTER"
    SCHEME = "URL_SCHEME_NOT_ALLOWED"
    USER_INFO = "URL_HAS_USER_INFO"
    FRAGMENT = "URL_HAS_FRAGMENT"
    HOST = "URL_HOST_INVALID"
    AMBIGUOUS_ADDRESS = "URL_ADDRESS_AMBIGUOUS"
    PORT = "URL_PORT_INVALID"
    PORT_NOT_ALLOWED = "URL_PORT_NOT_ALLOWED"
    ADDRESS_NOT_ALLOWED = "URL_ADDRESS_NOT_ALLOWED"
    NAME_NOT_ALLOWED = "URL_NAME_NOT_ALLOWED"


class UrlRefusedError(ValueError):
    """A URL is not one that webhooks may be sent to. `description` says what to change; it never repeats the URL."""

    def __init__(self, reason: UrlRefusal, description: str) -> None:
        super().__init__(description)
        self.reason = reason
        self.description = description


@dataclass(frozen=True, slots=True)
class EndpointUrl:
    """A parsed URL. `text` is its normal form, `host` ASCII and lower-case, IPv6 without brackets.

    `target` is path and query as they go into the request line; `address` is set for a literal. `wire` is the same URL
    for the HTTP client, made once.
    """

    text: str
    scheme: str
    host: str
    port: int
    target: str
    address: IPAddress | None
    wire: URL = field(repr=False, compare=False)

    @property
    def authority(self) -> str:
        """Host, and port where it is not the scheme's own: what `Host` says."""
        return _authority(self.scheme, self.host, self.port)

    @property
    def origin(self) -> str:
        """Scheme, host and port: what may be logged; paths and queries hold receivers' secrets."""
        return f"{self.scheme}://{self.authority}"


_SPLIT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_HIERARCHY = re.compile(r"//([^/?#]*)(/[^?#]*)?(\?[^#]*)?(#.*)?", re.DOTALL)
_IPV6_AUTHORITY = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
_TARGET = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_OCTET = r"(?:0|[1-9][0-9]{0,2})"
_DOTTED_QUAD = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def parse_url(text: str) -> EndpointUrl:
    """Read `text` strictly. Raises UrlRefusedError."""
    scheme, authority, target = _split(text)
    host, address, port = _parse_authority(authority, DEFAULT_PORTS[scheme])
    normal = f"{scheme}://{_authority(scheme, host, port)}{target}"
    wire = _agreed(normal, scheme, host, port)
    return EndpointUrl(normal, scheme, host, port, target, address, wire)


def _split(text: str) -> tuple[str, str, str]:
    """Scheme, authority and target (never empty) of a URL whose characters have been checked."""
    if len(text) > URL_CHARACTERS_MAX:
        raise UrlRefusedError(UrlRefusal.TOO_LONG, f"the URL has more than {URL_CHARACTERS_MAX} characters")
    if any(character <= " " or character in '\\"<>^`{|}' or not character.isprintable() for character in text):
        raise UrlRefusedError(
            UrlRefusal.FORBIDDEN_CHARACTER, 'the URL may hold no space, control character, backslash or any of "<>^`{|}'
        )
    parts = _SPLIT.fullmatch(text)
    scheme = parts[1].lower() if parts else ""
    if parts is None or scheme not in DEFAULT_PORTS:
        raise UrlRefusedError(UrlRefusal.SCHEME, "the URL must begin with https:// or http://")
    hierarchy = _HIERARCHY.fullmatch(parts[2])
    if hierarchy is None:
        raise UrlRefusedError(UrlRefusal.MALFORMED, "the URL must have the form https://host/path")
    authority, path, query, fragment = hierarchy.groups()
    if fragment is not None:
        raise UrlRefusedError(UrlRefusal.FRAGMENT, "the URL may not have a fragment (#…)")
    target = (path or "/") + (query if query and query != "?" else "")  # a bare "?" asks nothing: clients drop it
    if not _TARGET.fullmatch(target):
        raise UrlRefusedError(UrlRefusal.FORBIDDEN_CHARACTER, "path and query must be percent-encoded ASCII (RFC 3986)")
    return scheme, authority, target


def _parse_authority(authority: str, default_port: int) -> tuple[str, IPAddress | None, int]:
    if "@" in authority:
        raise UrlRefusedError(
            UrlRefusal.USER_INFO, "the URL may not hold a user name or password; credentials have their own fields"
        )
    if "[" in authority or "]" in authority:
        literal = _IPV6_AUTHORITY.fullmatch(authority)
        if literal is None:
            raise UrlRefusedError(UrlRefusal.HOST, "an IPv6 host has the form [2001:db8::1]")
        ipv6 = _parse_ipv6(literal[1])
        return str(ipv6), ipv6, _parse_port(literal[2], default_port)
    name, colon, port = authority.partition(":")
    host = _normal_host(name)
    return host, _parse_ipv4(host, name), _parse_port(port if colon else None, default_port)


def _parse_port(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not _PORT.fullmatch(text) or int(text) > 65_535:
        raise UrlRefusedError(UrlRefusal.PORT, "the port must be a number from 1 to 65535")
    return int(text)


def _parse_ipv6(text: str) -> IPv6Address:
    if "%" in text:
        raise UrlRefusedError(UrlRefusal.HOST, "an IPv6 host may not name a zone")
    try:
        return IPv6Address(text)
    except AddressValueError:
        raise UrlRefusedError(UrlRefusal.HOST, "the IPv6 host is malformed") from None


def _normal_host(name: str) -> str:
    """The host in ASCII and lower case, each label checked."""
    if not name:
        raise UrlRefusedError(UrlRefusal.HOST, "the URL has no host")
    host = name.lower() if name.isascii() else _idna(name)
    labels = host.split(".")
    if labels[-1] == "":
        raise UrlRefusedError(UrlRefusal.HOST, "the host may not end in a dot")
    if len(host) > HOST_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlRefusedError(
            UrlRefusal.HOST, "the host must be dot-separated labels of 1 to 63 letters, digits and inner hyphens"
        )
    for label in labels:
        if label.startswith("xn--"):
            _check_a_label(label)
    return host


def _idna(name: str) -> str:
    try:
        return idna.encode(name, uts46=True, std3_rules=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        raise UrlRefusedError(UrlRefusal.HOST, "the host is not a valid internationalised name (IDNA 2008)") from None


def _check_a_label(label: str) -> None:
    """An A-label must decode, and encode back to itself: else resolvers and clients would disagree about it."""
    try:
        unchanged = idna.encode(idna.decode(label)).decode("ascii") == label
    except (idna.IDNAError, UnicodeError):
        unchanged = False
    if not unchanged:
        raise UrlRefusedError(UrlRefusal.HOST, "the host has a label that is not valid punycode")


def _parse_ipv4(host: str, written: str) -> IPv4Address | None:
    """The address of a dotted quad, None for a name; every other numeric form is refused.

    A host whose last label is a number is an address to some resolvers (127.1, 0x7f000001, 0177.0.0.1, ①②⑦.0.0.1).
    """
    if not _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        return None
    if host != written or not _DOTTED_QUAD.fullmatch(host):
        raise UrlRefusedError(UrlRefusal.AMBIGUOUS_ADDRESS, "an IPv4 host must be written as four decimal numbers")
    try:
        return IPv4Address(host)
    except AddressValueError:
        raise UrlRefusedError(UrlRefusal.AMBIGUOUS_ADDRESS, "each part of an IPv4 host is at most 255") from None


def _authority(scheme: str, host: str, port: int) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == DEFAULT_PORTS[scheme] else f"{bracketed}:{port}"


def _agreed(normal: str, scheme: str, host: str, port: int) -> URL:
    """The URL as the HTTP client reads it, after both it and the standard library have agreed with this parser."""
    try:
        wire, second = URL(normal, encoded=True), urllib.parse.urlsplit(normal)
        readings = {
            (scheme, host, port),
            (wire.scheme, wire.raw_host, wire.port),
            (second.scheme, second.hostname, second.port or DEFAULT_PORTS[scheme]),
        }
    except ValueError:
        readings = set()
    if len(readings) != 1:
        raise UrlRefusedError(UrlRefusal.MALFORMED, "the URL can be read in more than one way")
    return wire
