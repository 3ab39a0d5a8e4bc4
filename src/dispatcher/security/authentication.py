"""Who calls: one mode of the settings decides, and the others' credentials mean nothing.

metadata, peer and certificate of a call ──mode──▶ Caller, or UnauthenticatedError
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Protocol

from dispatcher.security.addresses import IPNetwork
from dispatcher.security.callers import (
    ANONYMOUS,
    AuthMode,
    AuthReason,
    Caller,
    address_of_peer,
    principal_of_certificate,
    principal_of_forwarded_certificate,
    principal_of_linkerd,
    refused,
)
from dispatcher.security.jwt import TokenRules, Verified
from dispatcher.security.key_sources import KeySource, verified
from dispatcher.security.tokens import TokenTable, hash_of, utc_now

FORWARDED_CERTIFICATE = "x-forwarded-client-cert"
LINKERD_CLIENT = "l5d-client-id"
AUTHORIZATION = "authorization"
SUPERVISED_PRINCIPAL = "dispatcher-principal"
SUPERVISED_MODE = "dispatcher-auth-mode"
KNOWN_TOKENS_MAX = 4096
KNOWN_TOKEN_S = 60.0
"""So long a verified JWT is not verified again: a key that was taken out of the set is heeded after that."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What came with a call: gRPC's metadata, its name of the peer, and its authentication properties, which exist
    where our own server ends TLS."""

    metadata: Sequence[tuple[str, str | bytes]] = field(repr=False)
    peer: str
    properties: Mapping[str, Iterable[bytes]] = field(repr=False)

    def only(self, key: str) -> str:
        """The value of a key that is there once. Raises UnauthenticatedError for none and for several: a second one
        is somebody's attempt to be taken for another."""
        found = [value for name, value in self.metadata if name == key]
        if not found:
            raise refused(AuthReason.MISSING, f"the call has no {key}")
        if len(found) > 1 or not isinstance(found[0], str):
            raise refused(AuthReason.INVALID, f"the call has {key} more than once")
        return found[0]

    def bearer(self) -> str:
        """The token of `authorization: Bearer …` (RFC 6750 section 2.1). Raises UnauthenticatedError."""
        scheme, _, token = self.only(AUTHORIZATION).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise refused(AuthReason.INVALID, "authorization must be a bearer token")
        return token.strip()


class Authenticator(Protocol):
    """One mode."""

    async def caller_of(self, credentials: Credentials, /) -> Caller:
        """Who calls. Raises UnauthenticatedError."""


class NoAuthentication:
    """Everybody is anonymous: for `dispatcher dev`, and for who says so."""

    async def caller_of(self, _: Credentials) -> Caller:
        return Caller(ANONYMOUS, AuthMode.NONE)


class BySupervisor:
    """What the supervisor of this worker has found out, believed on the worker's own socket only."""

    async def caller_of(self, credentials: Credentials) -> Caller:
        if not credentials.peer.startswith("unix:"):
            raise refused(AuthReason.PEER_NOT_TRUSTED, "only the supervisor calls here")
        return Caller(credentials.only(SUPERVISED_PRINCIPAL), AuthMode(credentials.only(SUPERVISED_MODE)))


class ByCertificate:
    """The client's certificate, which our own server has verified."""

    def __init__(self) -> None:
        self._principal_of = lru_cache(maxsize=1024)(principal_of_certificate)

    async def caller_of(self, credentials: Credentials) -> Caller:
        certificates = list(credentials.properties.get("x509_pem_cert", ()))
        if not certificates:
            raise refused(AuthReason.MISSING, "the connection has no client certificate")
        return Caller(self._principal_of(certificates[0]), AuthMode.MTLS)


class ByMeshHeader:
    """What the mesh's sidecar says, believed from its own addresses only."""

    def __init__(self, mode: AuthMode, trusted_peers: Sequence[IPNetwork]) -> None:
        """`mode` is XFCC or LINKERD."""
        self._mode = mode
        self._trusted = tuple(trusted_peers)
        self._is_trusted = lru_cache(maxsize=4096)(self._look_up)
        is_linkerd = mode is AuthMode.LINKERD
        self._key = LINKERD_CLIENT if is_linkerd else FORWARDED_CERTIFICATE
        read = principal_of_linkerd if is_linkerd else principal_of_forwarded_certificate
        self._read = lru_cache(maxsize=1024)(read)

    async def caller_of(self, credentials: Credentials) -> Caller:
        if not self._is_trusted(_host_part(credentials.peer)):
            problem = f"{self._key} is believed from the mesh's proxy only: call through the mesh"
            raise refused(AuthReason.PEER_NOT_TRUSTED, problem)
        return Caller(self._read(credentials.only(self._key)), self._mode)

    def _look_up(self, host_part: str) -> bool:
        address = address_of_peer(f"{host_part}:0")
        return address is not None and any(address in network for network in self._trusted)


def _host_part(peer: str) -> str:
    return peer.rpartition(":")[0]


class ByToken:
    """Static bearer tokens."""

    def __init__(self, table: Callable[[], TokenTable], now: Callable[[], datetime] = utc_now) -> None:
        self._table = table
        self._now = now

    async def caller_of(self, credentials: Credentials) -> Caller:
        return self._table().caller_of(credentials.bearer(), self._now())


class ByJwt:
    """Bearer tokens of an OpenID Connect issuer."""

    def __init__(self, source: KeySource, rules: TokenRules, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._rules = rules
        self._clock = clock
        self._known: OrderedDict[str, tuple[Verified, float]] = OrderedDict()

    async def caller_of(self, credentials: Credentials) -> Caller:
        token, now = credentials.bearer(), self._clock()
        name = hash_of(token)  # the tokens themselves are not kept
        known, until = self._known.get(name, (None, 0.0))
        if known is not None and now < min(until, known.expires_at_s):
            return known.caller
        self._known.pop(name, None)
        found = await verified(token, self._source, self._rules)
        self._known[name] = (found, now + KNOWN_TOKEN_S)
        while len(self._known) > KNOWN_TOKENS_MAX:
            self._known.popitem(last=False)
        return found.caller
