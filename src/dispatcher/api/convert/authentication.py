"""How the service proves to a receiver who it is: checks of requests, and messages of records. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from webhooks.v1 import endpoint_pb2

from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.times import timestamp
from dispatcher.credentials import (
    NO_SECRETS,
    Authentication,
    BasicAuthentication,
    BearerAuthentication,
    CredentialSecrets,
    Method,
    OAuth2ClientCredentials,
    missing_secrets,
    with_kept,
)
from dispatcher.model import Endpoint, EndpointKey, EndpointSettings
from dispatcher.security.addresses import parse_network
from dispatcher.security.credentials import seal, unseal
from dispatcher.security.egress import EgressPolicy, UrlRefusedError, check_url, is_loopback, parse_url
from dispatcher.security.endpoint_tls import CertificateError, chain_expiry, check_pair
from dispatcher.security.headers import check_endpoint_headers
from dispatcher.security.secrets import Keyring

FIELD = "endpoint.authentication"
SECRET_HEADERS_MAX = 8
NAME_CHARACTERS_MAX = 256
SECRET_CHARACTERS_MAX = 1024
TOKEN_CHARACTERS_MAX = 4096
SCOPES_MAX = 32
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")


@dataclass(frozen=True, slots=True)
class Given:
    """What a request says: the shape, and those secrets that it does not leave empty."""

    shape: Authentication
    secrets: CredentialSecrets


def read_authentication(endpoint: endpoint_pb2.Endpoint, egress: EgressPolicy, violations: Violations) -> Given | None:
    """None where the request has none, which takes away what was there."""
    if not endpoint.HasField("authentication"):
        return None
    message = endpoint.authentication
    method, secret = _method(message, egress, violations)
    headers = dict(message.secret_headers)
    if len(headers) > SECRET_HEADERS_MAX:
        violations.add(f"{FIELD}.secret_headers", f"must hold at most {SECRET_HEADERS_MAX} headers")
    violations.extend(check_endpoint_headers(headers, f"{FIELD}.secret_headers"))
    chain, key = _certificate(message, violations)
    shape = Authentication(method, tuple(headers), chain)
    return Given(shape, CredentialSecrets(secret, headers, key))


def _method(
    message: endpoint_pb2.EndpointAuthentication, egress: EgressPolicy, violations: Violations
) -> tuple[Method | None, str]:
    match message.WhichOneof("method"):
        case "basic":
            basic = message.basic
            _printable(basic.username, f"{FIELD}.basic.username", violations)
            if ":" in basic.username:
                violations.add(f"{FIELD}.basic.username", "must not hold a colon (RFC 7617)")
            _printable(basic.password, f"{FIELD}.basic.password", violations, SECRET_CHARACTERS_MAX, is_needed=False)
            return BasicAuthentication(basic.username), basic.password
        case "bearer":
            token = message.bearer.token
            if token and (len(token) > TOKEN_CHARACTERS_MAX or not _TOKEN.fullmatch(token)):
                violations.add(f"{FIELD}.bearer.token", "must be a bearer token (RFC 6750 section 2.1)")
            return BearerAuthentication(), token
        case "oauth2":
            return _oauth2(message.oauth2, egress, violations), message.oauth2.client_secret
        case _:
            return None, ""


def _oauth2(
    message: endpoint_pb2.OAuth2ClientCredentials, egress: EgressPolicy, violations: Violations
) -> OAuth2ClientCredentials:
    field = f"{FIELD}.oauth2"
    _printable(message.client_id, f"{field}.client_id", violations)
    _printable(message.client_secret, f"{field}.client_secret", violations, SECRET_CHARACTERS_MAX, is_needed=False)
    _printable(message.audience, f"{field}.audience", violations, SECRET_CHARACTERS_MAX, is_needed=False)
    if len(message.scopes) > SCOPES_MAX or not all(_SCOPE.fullmatch(scope) for scope in message.scopes):
        violations.add(f"{field}.scopes", f"must be at most {SCOPES_MAX} scopes (RFC 6749 section 3.3)")
    return OAuth2ClientCredentials(
        _token_url(message.token_url, f"{field}.token_url", egress, violations),
        message.client_id,
        tuple(message.scopes),
        message.audience,
    )


def _token_url(text: str, field: str, egress: EgressPolicy, violations: Violations) -> str:
    try:
        url = parse_url(text)
        check_url(url, egress)
    except UrlRefusedError as error:
        violations.add(field, error.description)
        return ""
    if url.scheme != "https" and not is_loopback(url, egress):
        violations.add(field, "must begin with https://: a client secret is sent there")
    return url.text


def _printable(
    text: str, field: str, violations: Violations, most: int = NAME_CHARACTERS_MAX, *, is_needed: bool = True
) -> None:
    if len(text) > most or not _PRINTABLE.fullmatch(text):
        violations.add(field, f"must be printable ASCII of at most {most} characters")
    elif is_needed and not text:
        violations.add(field, "must be given")


def _certificate(message: endpoint_pb2.EndpointAuthentication, violations: Violations) -> tuple[str, str]:
    if not message.HasField("client_certificate"):
        return "", ""
    chain, key = message.client_certificate.certificate_chain, message.client_certificate.private_key
    field = f"{FIELD}.client_certificate"
    try:
        chain_expiry(chain)
    except CertificateError as error:
        violations.add(f"{field}.certificate_chain", str(error))
        return chain, key
    try:
        if key:
            check_pair(chain, key)
    except CertificateError as error:
        violations.add(f"{field}.private_key", str(error))
    return chain, key


def sealed(given: Given | None, before: Endpoint | None, key: EndpointKey, keyring: Keyring) -> bytes | None:
    """The secrets to store for an endpoint: those given, and of `before` those that may be kept.

    Raises InvalidRequestError where one is missing.
    """
    if given is None:
        return None
    stored = NO_SECRETS
    if before is not None and before.sealed_credentials is not None:
        stored = unseal(before.sealed_credentials, before.key, keyring)
    secrets = with_kept(given.shape, given.secrets, before.authentication if before else None, stored)
    violations = Violations()
    for field in missing_secrets(given.shape, secrets):
        violations.add(f"{FIELD}.{field}", "must be given")
    violations.raise_if_any()
    return seal(secrets, key, keyring)


def check_origins(before: Endpoint, after: EndpointSettings, given: Given | None, *, is_given: bool) -> None:
    """That secrets kept from before do not go to an origin they did not go to. Raises InvalidRequestError.

    `is_given`: the request speaks of authentication. A private key is not sent, so a certificate alone may stay.
    """
    shape = given.shape if given is not None else None if is_given else before.authentication
    if shape is None or (shape.method is None and not shape.secret_headers):
        return
    new = _origins(after) - _origins(before.settings)
    sent = Authentication(shape.method, shape.secret_headers)
    complete = given is not None and not missing_secrets(sent, given.secrets)
    if new and not complete:
        violations = Violations()
        violations.add(FIELD, "all secrets must be given again: webhooks are to go to another origin")
        violations.raise_if_any()


def _origins(settings: EndpointSettings) -> set[str]:
    found = set()
    for text in (settings.url, *settings.fallback_urls):
        try:
            found.add(parse_url(text).origin)
        except UrlRefusedError:
            found.add(text)
    return found


def authentication_message(shape: Authentication | None) -> endpoint_pb2.EndpointAuthentication | None:
    """The shape as the API shows it, all secrets empty."""
    if shape is None:
        return None
    message = endpoint_pb2.EndpointAuthentication(secret_headers=dict.fromkeys(shape.secret_headers, ""))
    match shape.method:
        case BasicAuthentication(username):
            message.basic.username = username
        case BearerAuthentication():
            message.bearer.SetInParent()
        case OAuth2ClientCredentials() as oauth2:
            message.oauth2.CopyFrom(
                endpoint_pb2.OAuth2ClientCredentials(
                    token_url=oauth2.token_url,
                    client_id=oauth2.client_id,
                    scopes=oauth2.scopes,
                    audience=oauth2.audience,
                )
            )
        case None:
            pass
    if shape.client_chain:
        message.client_certificate.certificate_chain = shape.client_chain
        message.client_certificate.expire_time.CopyFrom(timestamp(chain_expiry(shape.client_chain)))
    return message


def checked_networks(texts: Sequence[str], field: str, violations: Violations, most: int = 32) -> tuple[str, ...]:
    """Networks in CIDR form, as they are stored and shown."""
    if len(texts) > most:
        violations.add(field, f"must hold at most {most} networks, holds {len(texts)}")
        return ()
    found = []
    for index, text in enumerate(texts):
        try:
            found.append(str(parse_network(text)))
        except ValueError:
            violations.add(f"{field}[{index}]", "must be a network in CIDR form, such as 203.0.113.0/24")
    return tuple(dict.fromkeys(found))
