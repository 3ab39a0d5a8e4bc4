"""What kind of address an IP address is, with embedded IPv4 decoded; pure.

Own tables, because `ipaddress.is_global` passes NAT64 of a link-local address, IPv4-compatible loopback, multicast and,
on Python 3.11, 6to4. Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and updates) and the
documentation of the cloud providers for their metadata services.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class AddressKind(enum.StrEnum):
    """Why an address is not public."""

    UNSPECIFIED = "unspecified"
    LOOPBACK = "loopback"
    PRIVATE = "private"
    SHARED = "carrier-grade NAT"
    LINK_LOCAL = "link-local"
    METADATA = "cloud metadata service"
    MULTICAST = "multicast"
    BROADCAST = "broadcast"
    DOCUMENTATION = "documentation"
    TRANSITION = "IPv6 transition"
    RESERVED = "reserved"
    NOT_NAMED = "not named"


METADATA_ADDRESSES: frozenset[IPAddress] = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Azure, GCP, OCI, DigitalOcean, …
        "169.254.169.253",  # AWS DNS
        "169.254.169.123",  # AWS time
        "169.254.170.2",  # AWS ECS task credentials
        "169.254.170.23",  # AWS EKS pod identity
        "169.254.0.23",  # Tencent
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure wire server
        "192.0.0.192",  # Oracle Cloud classic
        "fd00:ec2::254",  # AWS
        "fd00:ec2::253",
        "fd00:ec2::123",
        "fd00:ec2::23",
        "fd20:ce::254",  # GCP
        "fe80::a9fe:a9fe",  # OpenStack
    )
)

_IPV4_KINDS = tuple(
    (IPv4Network(text), kind)
    for text, kind in (
        ("0.0.0.0/8", AddressKind.UNSPECIFIED),
        ("10.0.0.0/8", AddressKind.PRIVATE),
        ("100.64.0.0/10", AddressKind.SHARED),
        ("127.0.0.0/8", AddressKind.LOOPBACK),
        ("169.254.0.0/16", AddressKind.LINK_LOCAL),
        ("172.16.0.0/12", AddressKind.PRIVATE),
        ("192.0.0.0/24", AddressKind.RESERVED),
        ("192.0.2.0/24", AddressKind.DOCUMENTATION),
        ("192.31.196.0/24", AddressKind.RESERVED),  # AS112
        ("192.52.193.0/24", AddressKind.RESERVED),  # AMT
        ("192.88.99.0/24", AddressKind.TRANSITION),  # 6to4 relay anycast
        ("192.168.0.0/16", AddressKind.PRIVATE),
        ("192.175.48.0/24", AddressKind.RESERVED),  # AS112
        ("198.18.0.0/15", AddressKind.RESERVED),  # benchmarking
        ("198.51.100.0/24", AddressKind.DOCUMENTATION),
        ("203.0.113.0/24", AddressKind.DOCUMENTATION),
        ("224.0.0.0/4", AddressKind.MULTICAST),
        ("255.255.255.255/32", AddressKind.BROADCAST),
        ("240.0.0.0/4", AddressKind.RESERVED),
    )
)

_IPV6_KINDS = tuple(
    (IPv6Network(text), kind)
    for text, kind in (
        ("::/128", AddressKind.UNSPECIFIED),
        ("::1/128", AddressKind.LOOPBACK),
        ("::/96", AddressKind.TRANSITION),  # IPv4-compatible, deprecated
        ("::ffff:0:0:0/96", AddressKind.TRANSITION),  # IPv4-translated (RFC 2765)
        ("64:ff9b:1::/48", AddressKind.TRANSITION),  # local-use NAT64 (RFC 8215)
        ("100::/64", AddressKind.RESERVED),  # discard-only
        ("2001:db8::/32", AddressKind.DOCUMENTATION),
        ("2001::/32", AddressKind.TRANSITION),  # Teredo
        ("2001::/23", AddressKind.RESERVED),  # IETF protocol assignments
        ("2002::/16", AddressKind.TRANSITION),  # 6to4, deprecated (RFC 7526)
        ("2620:4f:8000::/48", AddressKind.RESERVED),  # AS112
        ("3fff::/20", AddressKind.DOCUMENTATION),
        ("fc00::/7", AddressKind.PRIVATE),
        ("fe80::/10", AddressKind.LINK_LOCAL),
        ("fec0::/10", AddressKind.PRIVATE),  # site-local, deprecated
        ("ff00::/8", AddressKind.MULTICAST),
    )
)

_IPV6_GLOBAL = IPv6Network("2000::/3")
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_LOW_32_CARRIERS = (
    _IPV4_MAPPED,
    _NAT64,
    IPv6Network("::/96"),
    IPv6Network("::ffff:0:0:0/96"),
    IPv6Network("64:ff9b:1::/48"),
)
_ISATAP_IDENTIFIERS = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214 section 6.1
_LOW_32 = 0xFFFF_FFFF


def address_kind(address: IPAddress) -> AddressKind | None:
    """Why `address` itself, whatever it embeds, is not public; None if it is.

    IPv6 is denied by default: outside 2000::/3 only IPv4-mapped and NAT64 addresses are judged by what they embed.
    """
    if address in METADATA_ADDRESSES:
        return AddressKind.METADATA
    if isinstance(address, IPv4Address):
        return next((kind for network, kind in _IPV4_KINDS if address in network), None)
    if address in _IPV4_MAPPED or address in _NAT64:
        return None
    kind = next((kind for network, kind in _IPV6_KINDS if address in network), None)
    if kind is None and address not in _IPV6_GLOBAL:
        return AddressKind.RESERVED
    return kind


def embedded_ipv4(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """Every IPv4 address that a gateway may read out of `address`: none, one, or two (Teredo: server and client)."""
    value = int(address)
    if value <= 1:
        return ()
    found: list[int] = []
    if any(address in carrier for carrier in _LOW_32_CARRIERS):
        found.append(value & _LOW_32)
    if address.sixtofour is not None:
        found.append(int(address.sixtofour))
    if address.teredo is not None:
        found.extend(int(part) for part in address.teredo)
    if (value >> 32) & _LOW_32 in _ISATAP_IDENTIFIERS:
        found.append(value & _LOW_32)
    return tuple(IPv4Address(part) for part in found)


def is_within(address: str, networks: Sequence[IPNetwork]) -> bool:
    """Whether an address, or the IPv4 address that it maps, is in one of the networks."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return any(each in network for network in networks for each in (parsed, mapped) if each is not None)


def parse_network(text: str) -> IPNetwork:
    """A CIDR without host bits (`10.0.0.0/8`) or a single address. Raises ValueError naming the text."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network in CIDR form: {error}") from None
