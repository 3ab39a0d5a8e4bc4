"""An endpoint ready for sending: everything that is the same for all its attempts is computed here, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dispatcher.credentials import NO_SECRETS
from dispatcher.delivery.health import StoredHealth, Trouble
from dispatcher.delivery.policies import FailureDefaults, FailurePolicies, policies_of
from dispatcher.model import EndpointKey, EndpointSettings, EndpointState, SealedSigningKey, TenantState
from dispatcher.security.addresses import IPNetwork, parse_network
from dispatcher.security.credentials import PreparedCredentials, prepare, unseal
from dispatcher.security.headers import CREDENTIAL_NAMES, RESERVED_NAMES, RESERVED_PREFIXES
from dispatcher.security.secrets import Keyring, SealContext
from dispatcher.security.signing import Key, key_of
from dispatcher.security.urls import EndpointUrl, UrlRefusedError, parse_url
from dispatcher.store.runtime import EndpointRuntimeRow


@dataclass(frozen=True, slots=True)
class PreparedKey:
    """A signing key ready to sign, until `expires_at_s` (Unix seconds; None for good)."""

    key_id: str
    key: Key
    expires_at_s: float | None

    def is_live(self, now_s: float) -> bool:
        return self.expires_at_s is None or now_s < self.expires_at_s


@dataclass(frozen=True, slots=True)
class EndpointRuntime:
    """What an attempt needs of its endpoint. Replaced as a whole when the endpoint changes; never altered.

    `settings` are those of the newest `revision` and govern where and how anything is sent, also rows published under
    an older one, so that a corrected URL frees the backlog. `revisions` has the settings of each revision that
    unsettled rows may name, for the lane's ordering modes. `url` is None for a stored URL that the present rules
    refuse, and `url_problem` says why; `fallbacks` likewise. `health` is what was on record. `constant_headers` are the
    user-agent and the endpoint's own headers, `credentials` has those that are secrets, `fixed_headers` both.
    """

    key: EndpointKey
    tenant_name: str
    endpoint_name: str
    state: EndpointState
    deleted: bool
    revision: int
    settings: EndpointSettings
    revisions: Mapping[int, EndpointSettings]
    url: EndpointUrl | None
    url_problem: str
    constant_headers: Mapping[str, str] = field(repr=False)
    keys: tuple[PreparedKey, ...] = field(repr=False)
    policies: FailurePolicies
    fallbacks: tuple[tuple[EndpointUrl | None, str], ...] = ()
    tenant_state: TenantState = TenantState.ACTIVE
    health: StoredHealth | None = None
    credentials: PreparedCredentials = field(default=PreparedCredentials(), repr=False)
    allowed_networks: tuple[IPNetwork, ...] = ()
    fixed_headers: Mapping[str, str] = field(init=False, repr=False)
    _lasting_keys: tuple[Key, ...] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lasting = tuple(prepared.key for prepared in self.keys)
        is_lasting = all(prepared.expires_at_s is None for prepared in self.keys)
        object.__setattr__(self, "fixed_headers", {**self.constant_headers, **self.credentials.headers})
        object.__setattr__(self, "_lasting_keys", lasting if is_lasting else None)

    def target(self, url_index: int) -> tuple[EndpointUrl | None, str]:
        """The URL of an index, or None and why it is refused; one that is gone by now is the endpoint's own."""
        if 0 < url_index <= len(self.fallbacks):
            return self.fallbacks[url_index - 1]
        return self.url, self.url_problem

    @property
    def is_held(self) -> bool:
        """Whether nothing may be sent: paused, disabled or deleted, or its tenant is paused."""
        return self.deleted or self.state is not EndpointState.ACTIVE or self.tenant_state is not TenantState.ACTIVE

    def live_keys(self, now_s: float) -> list[PreparedKey]:
        """The keys that sign at `now_s` (Unix seconds): those for good first, then the newest."""
        return [prepared for prepared in self.keys if prepared.is_live(now_s)]

    def signers(self, now_s: float) -> Sequence[Key]:
        """What signs at `now_s`, in the order of `live_keys`."""
        if self._lasting_keys is not None:
            return self._lasting_keys
        return [prepared.key for prepared in self.live_keys(now_s)]

    def can_sign(self, now_s: float) -> bool:
        """Whether any key is live; where none is, nothing may be sent."""
        return any(prepared.is_live(now_s) for prepared in self.keys)


def prepare_endpoint(
    row: EndpointRuntimeRow, keyring: Keyring, user_agent: str, defaults: FailureDefaults | None = None
) -> EndpointRuntime:
    """Prepare an endpoint from what the store knows of it.

    Raises `SecretSealError` if any of its signing keys, or its credentials, do not open: a webhook that lacks one of
    its signatures would be refused by a receiver in the middle of a rotation.
    """
    settings = row.revisions[row.revision]
    url, problem = _parse(settings.url)
    credentials = _credentials(row, settings, keyring)
    return EndpointRuntime(
        key=row.key,
        tenant_name=row.tenant_name,
        endpoint_name=row.name,
        state=row.state,
        deleted=row.delete_time is not None,
        revision=row.revision,
        settings=settings,
        revisions=row.revisions,
        url=url,
        url_problem=problem,
        constant_headers=_constant_headers(settings.headers, user_agent, credentials),
        credentials=credentials,
        allowed_networks=tuple(parse_network(text) for text in settings.allowed_networks),
        keys=_prepare_keys(row.key, row.signing_keys, keyring),
        policies=policies_of(defaults or FailureDefaults(), settings, row.tenant_retry, row.catch_ups),
        fallbacks=tuple(_parse(text) for text in settings.fallback_urls),
        tenant_state=row.tenant_state,
        health=_health(row),
    )


def _credentials(row: EndpointRuntimeRow, settings: EndpointSettings, keyring: Keyring) -> PreparedCredentials:
    secrets = NO_SECRETS if row.sealed_credentials is None else unseal(row.sealed_credentials, row.key, keyring)
    return prepare(row.key, row.authentication, secrets, settings.ca_certificates)


def _health(row: EndpointRuntimeRow) -> StoredHealth | None:
    if row.failing_since is None and not row.exhausted_heads and row.trouble is None:
        return None
    return StoredHealth(row.failing_since, row.exhausted_heads, Trouble(row.trouble) if row.trouble else None)


def _parse(url: str) -> tuple[EndpointUrl | None, str]:
    try:
        return parse_url(url), ""
    except UrlRefusedError as error:
        return None, error.description


def _constant_headers(own: Mapping[str, str], user_agent: str, credentials: PreparedCredentials) -> dict[str, str]:
    """The endpoint's own headers can't replace ours, whatever an older release let in, nor stand beside a secret one of
    the same name."""
    secret = {name.lower() for name in credentials.headers}
    kept = {name: value for name, value in own.items() if not _is_reserved(name.lower()) and name.lower() not in secret}
    return kept | {"user-agent": user_agent}


def _is_reserved(lower_name: str) -> bool:
    return lower_name in RESERVED_NAMES or lower_name in CREDENTIAL_NAMES or lower_name.startswith(RESERVED_PREFIXES)


def _prepare_keys(
    key: EndpointKey, signing_keys: Sequence[SealedSigningKey], keyring: Keyring
) -> tuple[PreparedKey, ...]:
    newest_first = sorted(signing_keys, key=lambda sealed: sealed.create_time, reverse=True)
    for_good_first = sorted(newest_first, key=lambda sealed: sealed.expire_time is not None)
    return tuple(
        PreparedKey(
            sealed.key_id,
            key_of(
                sealed.algorithm,
                keyring.open(sealed.sealed, SealContext(key.tenant_id, key.endpoint_id, sealed.key_id)),
            ),
            None if sealed.expire_time is None else sealed.expire_time.timestamp(),
        )
        for sealed in for_good_first
    )
