"""How the service proves to a receiver who it is: the shape, which may be shown, and the secrets, which may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BasicAuthentication:
    """RFC 7617."""

    username: str


@dataclass(frozen=True, slots=True)
class BearerAuthentication:
    """RFC 6750, a token that does not change."""


@dataclass(frozen=True, slots=True)
class OAuth2ClientCredentials:
    """RFC 6749 section 4.4."""

    token_url: str
    client_id: str
    scopes: tuple[str, ...] = ()
    audience: str = ""


Method = BasicAuthentication | BearerAuthentication | OAuth2ClientCredentials


@dataclass(frozen=True, slots=True)
class Authentication:
    """What may be shown of it. `secret_headers` are names in the order given; `client_chain` is PEM, empty for none."""

    method: Method | None = None
    secret_headers: tuple[str, ...] = ()
    client_chain: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class CredentialSecrets:
    """What must not be: `secret` is the method's password, token or client secret; `client_key` is PEM. Sealed at rest;
    in memory only where it is used."""

    secret: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    client_key: str = ""

    def __repr__(self) -> str:
        return "CredentialSecrets(…)"

    def __reduce__(self) -> str:
        raise TypeError("secrets are not serialised")


NO_SECRETS = CredentialSecrets()


def with_kept(
    authentication: Authentication, given: CredentialSecrets, before: Authentication | None, stored: CredentialSecrets
) -> CredentialSecrets:
    """`given`, with what is left empty taken from `stored` where what it belongs to is as `before`."""
    if before is None:
        return given
    keeps_method = _is_same_party(authentication.method, before.method)
    keeps_key = authentication.client_chain == before.client_chain
    names = {name.lower(): name for name in before.secret_headers}
    headers = {
        name: value or stored.headers.get(names.get(name.lower(), ""), "") for name, value in given.headers.items()
    }
    return CredentialSecrets(
        given.secret or (stored.secret if keeps_method else ""),
        headers,
        given.client_key or (stored.client_key if keeps_key else ""),
    )


def _is_same_party(now: Method | None, before: Method | None) -> bool:
    """Whether a stored secret may go on being used: it goes to the same party under the same name."""
    match now, before:
        case BasicAuthentication(), BasicAuthentication():
            return now.username == before.username
        case BearerAuthentication(), BearerAuthentication():
            return True
        case OAuth2ClientCredentials(), OAuth2ClientCredentials():
            return (now.token_url, now.client_id) == (before.token_url, before.client_id)
        case _:
            return False


def missing_secrets(authentication: Authentication, secrets: CredentialSecrets) -> list[str]:
    """The fields, below `authentication`, whose secret is not there."""
    match authentication.method:
        case BasicAuthentication():
            field_name = "basic.password"
        case BearerAuthentication():
            field_name = "bearer.token"
        case OAuth2ClientCredentials():
            field_name = "oauth2.client_secret"
        case None:
            field_name = ""
    missing = [field_name] if field_name and not secrets.secret else []
    missing += [f"secret_headers[{name}]" for name in authentication.secret_headers if not secrets.headers.get(name)]
    if authentication.client_chain and not secrets.client_key:
        missing.append("client_certificate.private_key")
    return missing
