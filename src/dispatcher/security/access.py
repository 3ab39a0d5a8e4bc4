"""Everything that decides about callers, as the settings have it: read once per process, kept fresh while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from dispatcher.config.groups import CallerSettings
from dispatcher.security.authentication import (
    Authenticator,
    ByCertificate,
    ByJwt,
    ByMeshHeader,
    ByToken,
    NoAuthentication,
)
from dispatcher.security.authorization import AccessPolicy
from dispatcher.security.callers import AuthMode
from dispatcher.security.jwt import TokenRules
from dispatcher.security.key_sources import KeyFile, KeySource, KeyUrl
from dispatcher.security.tls_files import TlsFiles
from dispatcher.security.tokens import TokenTable
from dispatcher.security.watched_files import WatchedFiles, one_text

_log = logging.getLogger(__name__)

Follower = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Access:
    """How callers are known, and what they may. `policy` is None where everybody may everything (mode `none`), `tls`
    where our ports are plain."""

    authenticator: Authenticator = field(default_factory=NoAuthentication)
    policy: Callable[[], AccessPolicy] | None = None
    tls: Callable[[], TlsFiles] | None = None
    followers: tuple[Follower, ...] = ()

    async def run(self) -> None:
        """Keep all of it fresh, for ever."""
        async with asyncio.TaskGroup() as group:
            for follow in self.followers:
                group.create_task(follow(), name="access")
            await asyncio.Event().wait()


def load_access(settings: CallerSettings) -> Access:
    """Read what the settings name. Raises FileUnusableError."""
    mode, followers, every_s = AuthMode(settings.auth_mode or ""), list[Follower](), settings.auth_reload_interval_s
    authenticator = _authenticator(mode, settings, followers)
    policies = tls = None
    if mode is AuthMode.NONE:
        _log.warning("callers are not authenticated: whoever reaches the ports may do everything")
    else:
        policies = WatchedFiles([settings.auth_policy_file], one_text(AccessPolicy.parse))
        followers.append(lambda: policies.follow(every_s))
    if settings.tls_certificate_file:
        tls = WatchedFiles(_tls_paths(settings), TlsFiles.parse)
        followers.append(lambda: tls.follow(every_s))
    return Access(
        authenticator,
        None if policies is None else lambda: policies.value,
        None if tls is None else lambda: tls.value,
        tuple(followers),
    )


def _tls_paths(settings: CallerSettings) -> list[str]:
    own = [settings.tls_certificate_file, settings.tls_key_file]
    return [*own, settings.tls_client_ca_file] if settings.tls_client_ca_file else own


def _authenticator(mode: AuthMode, settings: CallerSettings, followers: list[Follower]) -> Authenticator:
    """That of the mode; what must be kept fresh for it is added to `followers`."""
    match mode:
        case AuthMode.NONE:
            return NoAuthentication()
        case AuthMode.MTLS:
            return ByCertificate()
        case AuthMode.XFCC | AuthMode.LINKERD:
            return ByMeshHeader(mode, settings.auth_trusted_peers)
        case AuthMode.TOKENS:
            tokens = WatchedFiles([settings.auth_tokens_file], one_text(TokenTable.parse))
            followers.append(lambda: tokens.follow(settings.auth_reload_interval_s))
            return ByToken(lambda: tokens.value)
        case AuthMode.JWT:
            source, every_s = _key_source(settings)
            followers.append(lambda: source.follow(every_s))
            return ByJwt(source, _rules(settings))


def _key_source(settings: CallerSettings) -> tuple[KeySource, float]:
    """Where the keys come from, and how often they are looked at, in seconds."""
    if settings.auth_jwt_keys.startswith("https://"):
        source = KeyUrl(settings.auth_jwt_keys, ca_file=settings.auth_jwt_ca_file or None)
        return source, settings.auth_jwt_refresh_s
    return KeyFile(settings.auth_jwt_keys), settings.auth_reload_interval_s


def _rules(settings: CallerSettings) -> TokenRules:
    return TokenRules(
        settings.auth_jwt_issuer,
        settings.auth_jwt_audiences,
        principal_claim=settings.auth_jwt_principal_claim,
    )
