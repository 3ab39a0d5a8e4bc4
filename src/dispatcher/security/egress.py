"""Which endpoints may be reached: one module decides, at Create and Update (early) and at every connect (the real one).

Only the deployment's configuration widens. A widening never opens multicast, broadcast or unspecified addresses, and
a cloud metadata address only by naming that very address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from dispatcher.security.addresses import AddressKind, IPAddress, IPNetwork, address_kind, embedded_ipv4, parse_network
from dispatcher.security.urls import EndpointUrl, UrlRefusal, UrlRefusedError, parse_url

__all__ = [
    "AddressRefusedError",
    "EgressPolicy",
    "EndpointUrl",
    "UrlRefusal",
    "UrlRefusedError",
    "check_url",
    "is_address_allowed",
    "is_loopback",
    "parse_url",
    "refused_kind",
]

DEFAULT_ALLOWED_PORTS = "80,443,1024-65535"
"""Privileged ports other than HTTP's are closed: no mail, SSH, LDAP or SMB server is talked into anything."""

_LOCAL_NAMES = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa", "svc", "cluster.local")
_NEVER_WIDENED = frozenset({AddressKind.MULTICAST, AddressKind.BROADCAST, AddressKind.UNSPECIFIED})
_WIDENED_BY_HOST = frozenset({AddressKind.PRIVATE, AddressKind.SHARED})


class AddressRefusedError(OSError):
    """A connection was refused by policy before a byte went out; an OSError so that it passes through a resolver."""

    def __init__(self, address: str, kind: AddressKind) -> None:
        why = (
            "is not in the endpoint's allowed_cidrs"
            if kind is AddressKind.NOT_NAMED
            else f"is a {kind.value} address, which the egress policy does not allow"
        )
        super().__init__(f"{address} {why}")
        self.address = address
        self.kind = kind


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Where webhooks may go. The default is the public internet.

    `allowed_networks` widens to those addresses. `allowed_hosts` are names or suffixes (`svc.cluster.local` matches
    itself and everything below) that may resolve to private addresses. `allowed_ports` are inclusive ranges.
    """

    allowed_networks: tuple[IPNetwork, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_ports: tuple[tuple[int, int], ...] = ((80, 80), (443, 443), (1024, 65_535))
    allow_http: bool = True

    @classmethod
    def from_text(
        cls, networks: str = "", hosts: str = "", ports: str = DEFAULT_ALLOWED_PORTS, *, allow_http: bool = True
    ) -> EgressPolicy:
        """From settings text, each a comma separated list. Raises ValueError naming the bad entry."""
        return cls(
            tuple(parse_network(entry) for entry in _entries(networks)),
            tuple(_parse_suffix(entry) for entry in _entries(hosts)),
            tuple(_parse_ports(entry) for entry in _entries(ports)),
            allow_http,
        )

    @classmethod
    def for_development(cls) -> EgressPolicy:
        """Loopback beside the public internet: for `dispatcher dev` and tests, never a default."""
        return cls.from_text(networks="127.0.0.0/8,::1/128")

    def allows_host(self, host: str) -> bool:
        """Whether `host` (normal form) is, or is below, one of the allowed hosts."""
        return any(host == suffix or host.endswith(f".{suffix}") for suffix in self.allowed_hosts)

    def allows_port(self, port: int) -> bool:
        return any(low <= port <= high for low, high in self.allowed_ports)


def is_address_allowed(address: IPAddress | str, policy: EgressPolicy, host: str | None = None) -> bool:
    """Whether a connection to `address` is allowed; `host` is the name it was resolved from, None for a literal."""
    return refused_kind(str(address), policy, host) is None


@lru_cache(maxsize=4096)
def refused_kind(address: str, policy: EgressPolicy, host: str | None = None) -> AddressKind | None:
    """Why a connection to `address` is refused, None if it is allowed. Text that is no address is refused as reserved.

    Every IPv4 address embedded in an IPv6 one must be allowed as well.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return AddressKind.RESERVED
    widened_by_host = host is not None and policy.allows_host(host)
    if isinstance(parsed, IPv4Address):
        return _refused(parsed, policy, widened_by_host=widened_by_host)
    return _refused_ipv6(parsed, policy, widened_by_host=widened_by_host)


def _refused_ipv6(address: IPv6Address, policy: EgressPolicy, *, widened_by_host: bool) -> AddressKind | None:
    if address.scope_id is not None:
        return AddressKind.LINK_LOCAL
    parts: tuple[IPAddress, ...] = (*embedded_ipv4(address), address)
    refusals = (_refused(part, policy, widened_by_host=widened_by_host) for part in parts)
    return next((kind for kind in refusals if kind is not None), None)


def _refused(address: IPAddress, policy: EgressPolicy, *, widened_by_host: bool) -> AddressKind | None:
    """The kind of `address` unless it is public or widened."""
    kind = address_kind(address)
    if kind is None or (widened_by_host and kind in _WIDENED_BY_HOST):
        return None
    if kind in _NEVER_WIDENED:
        return kind
    if any(_widens(network, address, kind) for network in policy.allowed_networks):
        return None
    return kind


def _widens(network: IPNetwork, address: IPAddress, kind: AddressKind) -> bool:
    if kind is AddressKind.METADATA and network.num_addresses != 1:
        return False
    return address in network


def check_url(url: EndpointUrl, policy: EgressPolicy) -> None:
    """The early, friendly check at Create and Update; names are judged for good only when they are resolved.

    Raises UrlRefusedError.
    """
    if url.scheme == "http" and not policy.allow_http:
        raise UrlRefusedError(UrlRefusal.SCHEME, "the URL must begin with https://")
    if not policy.allows_port(url.port):
        raise UrlRefusedError(UrlRefusal.PORT_NOT_ALLOWED, f"port {url.port} is not among the allowed ports")
    if url.address is not None:
        kind = refused_kind(str(url.address), policy)
        if kind is not None:
            raise UrlRefusedError(UrlRefusal.ADDRESS_NOT_ALLOWED, f"the host is a {kind.value} address")
    elif _is_local_name(url.host) and not (policy.allowed_networks or policy.allows_host(url.host)):
        raise UrlRefusedError(UrlRefusal.NAME_NOT_ALLOWED, "the host is a local name; webhooks go to public hosts")


def is_loopback(url: EndpointUrl, policy: EgressPolicy) -> bool:
    """Whether a URL leads to this machine, and the deployment wants that: `dispatcher dev` and tests."""
    return url.address is not None and url.address.is_loopback and refused_kind(str(url.address), policy) is None


def _is_local_name(host: str) -> bool:
    return any(host == name or host.endswith(f".{name}") for name in _LOCAL_NAMES)


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _parse_suffix(entry: str) -> str:
    """A host suffix in normal form; a leading `*.` or `.` is only a habit of writing."""
    try:
        url = parse_url(f"https://{entry.removeprefix('*').removeprefix('.')}")
    except UrlRefusedError as error:
        raise ValueError(f"{entry!r} is not a host name or suffix: {error.description}") from None
    if url.address is not None or url.target != "/" or url.port != 443:
        raise ValueError(f"{entry!r} is not a host name or suffix")
    return url.host


def _parse_ports(entry: str) -> tuple[int, int]:
    written = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", entry)
    if written is None:
        raise ValueError(f"{entry!r} is not a port or a range of ports")
    ports = (int(written[1]), int(written[2] or written[1]))
    if not 1 <= ports[0] <= ports[1] <= 65_535:
        raise ValueError(f"{entry!r} is not a range within 1 to 65535")
    return ports
