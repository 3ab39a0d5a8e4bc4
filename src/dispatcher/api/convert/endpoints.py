"""Endpoints: checks of requests, and messages of records. Pure.

Each leaf, a field that can be changed on its own, has one reader; Create reads all of them, Update those of its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from typing import Any

from webhooks.v1 import attempt_pb2, endpoint_pb2

from dispatcher.api.convert import authentication, checks, policies
from dispatcher.api.convert.authentication import Given
from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.masks import Maskable, leaves_to_change
from dispatcher.api.convert.names import new_id, read_name
from dispatcher.api.convert.times import duration, timestamp, to_seconds
from dispatcher.model import (
    Endpoint,
    EndpointSettings,
    EndpointState,
    OrderingMode,
    ProbeResult,
    SealedSigningKey,
    SigningAlgorithm,
    TracePropagation,
)
from dispatcher.policy import (
    AutoDisableOverrides,
    CircuitOverrides,
    ExhaustionPolicy,
    RateLimit,
    RetryOverrides,
)
from dispatcher.routing.patterns import validate_pattern
from dispatcher.security.egress import EgressPolicy, UrlRefusedError, check_url, parse_url
from dispatcher.security.endpoint_tls import CertificateError, check_roots
from dispatcher.security.headers import check_endpoint_headers
from dispatcher.security.secrets import Keyring
from dispatcher.security.signing import (
    SigningSecret,
    SigningSecretError,
    format_public,
    new_signing_secret,
    parse_signing_secret,
)
from dispatcher.store.endpoints import NewEndpoint

PATTERN = "tenants/{tenant}/endpoints/{endpoint}"
PATTERNS_MAX = 100
STATE_REASON_CHARS_MAX = 256
TIMEOUT_MIN_S = 0.1
IN_FLIGHT_MAX = 1000
OVERLAP_MAX_S = 30 * 86_400
FALLBACK_URLS_MAX = 3


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """What the settings say of endpoints: times in seconds; the policy judges URLs."""

    egress: EgressPolicy
    timeout_default_s: float
    timeout_max_s: float
    in_flight_default: int
    overlap_default_s: float


_Reader = Callable[[endpoint_pb2.Endpoint, EndpointRules, Violations], Any]


def _description(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> str:
    limit = checks.DESCRIPTION_CHARS_MAX
    return checks.text(endpoint.description, "endpoint.description", violations, chars_max=limit, lines=True)


def _url(endpoint: endpoint_pb2.Endpoint, rules: EndpointRules, violations: Violations) -> str:
    return _checked_url(endpoint.http.url, "endpoint.http.url", rules, violations)


def _checked_url(text: str, field: str, rules: EndpointRules, violations: Violations) -> str:
    """The URL in its normal form, as it is stored and shown."""
    try:
        url = parse_url(text)
        check_url(url, rules.egress)
    except UrlRefusedError as error:
        violations.add(field, error.description)
        return ""
    return url.text


def _fallback_urls(endpoint: endpoint_pb2.Endpoint, rules: EndpointRules, violations: Violations) -> tuple[str, ...]:
    field, given = "endpoint.http.fallback_urls", endpoint.http.fallback_urls
    if len(given) > FALLBACK_URLS_MAX:
        violations.add(field, f"must hold at most {FALLBACK_URLS_MAX} URLs, holds {len(given)}")
        return ()
    urls = tuple(_checked_url(text, f"{field}[{i}]", rules, violations) for i, text in enumerate(given))
    if len(set(urls)) < len(urls):
        violations.add(field, "must be distinct")
    return urls


def _event_types(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> tuple[str, ...]:
    patterns = endpoint.event_types
    if not 1 <= len(patterns) <= PATTERNS_MAX:
        violations.add("endpoint.event_types", f"must hold 1 to {PATTERNS_MAX} patterns, holds {len(patterns)}")
    for i, pattern in enumerate(islice(patterns, PATTERNS_MAX)):
        problem = validate_pattern(pattern)
        if problem is not None:
            violations.add(f"endpoint.event_types[{i}]", problem)
    return tuple(dict.fromkeys(patterns))


def _state(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> EndpointState:
    found = _STATES.get(endpoint.state)
    if found is None:
        violations.add("endpoint.state", "must be ACTIVE, PAUSED or DISABLED")
    return found or EndpointState.ACTIVE


def _state_reason(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> str:
    return checks.text(endpoint.state_reason, "endpoint.state_reason", violations, chars_max=STATE_REASON_CHARS_MAX)


def _labels(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> dict[str, str]:
    return checks.labels(endpoint.labels, "endpoint.labels", violations)


def _timeout(endpoint: endpoint_pb2.Endpoint, rules: EndpointRules, violations: Violations) -> float:
    if not endpoint.delivery_settings.HasField("timeout"):
        return rules.timeout_default_s
    seconds = to_seconds(endpoint.delivery_settings.timeout)
    if seconds is None or not TIMEOUT_MIN_S <= seconds <= rules.timeout_max_s:
        violations.add(
            "endpoint.delivery_settings.timeout", f"must be {TIMEOUT_MIN_S:g} s to {rules.timeout_max_s:g} s"
        )
        return rules.timeout_default_s
    return seconds


def _headers(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> dict[str, str]:
    headers = dict(endpoint.delivery_settings.headers)
    violations.extend(check_endpoint_headers(headers, "endpoint.delivery_settings.headers"))
    return headers


def _max_in_flight(endpoint: endpoint_pb2.Endpoint, rules: EndpointRules, violations: Violations) -> int:
    value = endpoint.delivery_settings.max_in_flight
    if not 0 <= value <= IN_FLIGHT_MAX:
        violations.add("endpoint.delivery_settings.max_in_flight", f"must be 1 to {IN_FLIGHT_MAX}")
    return value or rules.in_flight_default


def _ordering_mode(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> OrderingMode:
    found = _MODES.get(endpoint.delivery_settings.ordering_mode)
    if found is None:
        violations.add("endpoint.delivery_settings.ordering_mode", "must be ORDERED, ORDERED_BY_KEY or UNORDERED")
    return found or OrderingMode.ORDERED


def _trace_propagation(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> TracePropagation:
    found = _TRACES.get(endpoint.delivery_settings.trace_propagation)
    if found is None:
        violations.add("endpoint.delivery_settings.trace_propagation", "must be NONE, NEW_ROOT or CONTINUE")
    return found or TracePropagation.NONE


def _retry(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> RetryOverrides:
    settings = endpoint.delivery_settings
    return policies.read_retry(settings.retry_policy, "endpoint.delivery_settings.retry_policy", violations)


def _exhaustion(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> ExhaustionPolicy:
    value = endpoint.delivery_settings.exhaustion_policy
    return policies.read_exhaustion(value, "endpoint.delivery_settings.exhaustion_policy", violations)


def _rate_limit(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> RateLimit | None:
    settings = endpoint.delivery_settings
    if not settings.HasField("rate_limit"):
        return None
    return policies.read_rate_limit(settings.rate_limit, "endpoint.delivery_settings.rate_limit", violations)


def _circuit(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> CircuitOverrides:
    settings = endpoint.delivery_settings
    return policies.read_circuit(settings.circuit_breaker, "endpoint.delivery_settings.circuit_breaker", violations)


def _auto_disable(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> AutoDisableOverrides:
    settings = endpoint.delivery_settings
    return policies.read_auto_disable(settings.auto_disable, "endpoint.delivery_settings.auto_disable", violations)


def _http_signatures(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, __: Violations) -> bool:
    return endpoint.delivery_settings.http_message_signatures


def _allowed_networks(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> tuple[str, ...]:
    return authentication.checked_networks(endpoint.http.allowed_cidrs, "endpoint.http.allowed_cidrs", violations)


def _ca_certificates(endpoint: endpoint_pb2.Endpoint, _: EndpointRules, violations: Violations) -> str:
    pem = endpoint.http.ca_certificates
    try:
        if pem:
            check_roots(pem)
    except CertificateError as error:
        violations.add("endpoint.http.ca_certificates", str(error))
    return pem


def _authentication(endpoint: endpoint_pb2.Endpoint, rules: EndpointRules, violations: Violations) -> Given | None:
    return authentication.read_authentication(endpoint, rules.egress, violations)


_STATES: dict[int, EndpointState] = {
    endpoint_pb2.Endpoint.STATE_UNSPECIFIED: EndpointState.ACTIVE,
    endpoint_pb2.Endpoint.STATE_ACTIVE: EndpointState.ACTIVE,
    endpoint_pb2.Endpoint.STATE_PAUSED: EndpointState.PAUSED,
    endpoint_pb2.Endpoint.STATE_DISABLED: EndpointState.DISABLED,
}
_MODES: dict[int, OrderingMode] = {
    endpoint_pb2.ORDERING_MODE_UNSPECIFIED: OrderingMode.ORDERED,
    endpoint_pb2.ORDERING_MODE_ORDERED: OrderingMode.ORDERED,
    endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY: OrderingMode.ORDERED_BY_KEY,
    endpoint_pb2.ORDERING_MODE_UNORDERED: OrderingMode.UNORDERED,
}
_TRACES: dict[int, TracePropagation] = {
    endpoint_pb2.TRACE_PROPAGATION_UNSPECIFIED: TracePropagation.NONE,
    endpoint_pb2.TRACE_PROPAGATION_NONE: TracePropagation.NONE,
    endpoint_pb2.TRACE_PROPAGATION_NEW_ROOT: TracePropagation.NEW_ROOT,
    endpoint_pb2.TRACE_PROPAGATION_CONTINUE: TracePropagation.CONTINUE,
}
# Leaf of the message, field of the record, its reader: of the endpoint itself, then of its settings.
_OWN: dict[str, tuple[str, _Reader]] = {
    "description": ("description", _description),
    "event_types": ("event_types", _event_types),
    "state": ("state", _state),
    "state_reason": ("state_reason", _state_reason),
    "labels": ("labels", _labels),
}
_SETTINGS: dict[str, tuple[str, _Reader]] = {
    "http.url": ("url", _url),
    "delivery_settings.timeout": ("timeout_s", _timeout),
    "delivery_settings.headers": ("headers", _headers),
    "delivery_settings.max_in_flight": ("max_in_flight", _max_in_flight),
    "delivery_settings.ordering_mode": ("ordering_mode", _ordering_mode),
    "delivery_settings.trace_propagation": ("trace_propagation", _trace_propagation),
    "http.fallback_urls": ("fallback_urls", _fallback_urls),
    "http.allowed_cidrs": ("allowed_networks", _allowed_networks),
    "http.ca_certificates": ("ca_certificates", _ca_certificates),
    "delivery_settings.retry_policy": ("retry", _retry),
    "delivery_settings.exhaustion_policy": ("exhaustion", _exhaustion),
    "delivery_settings.rate_limit": ("rate_limit", _rate_limit),
    "delivery_settings.circuit_breaker": ("circuit", _circuit),
    "delivery_settings.auto_disable": ("auto_disable", _auto_disable),
    "delivery_settings.http_message_signatures": ("http_signatures", _http_signatures),
}
_CREDENTIALS: dict[str, tuple[str, _Reader]] = {"authentication": ("authentication", _authentication)}
MASKABLE = Maskable(
    (*_OWN, *_SETTINGS, *_CREDENTIALS),
    frozenset({"name", "uid", "create_time", "update_time", "etag", "revision", "signing_keys"}),
)


def _read(
    readers: dict[str, tuple[str, _Reader]],
    leaves: frozenset[str],
    endpoint: endpoint_pb2.Endpoint,
    rules: EndpointRules,
    violations: Violations,
) -> dict[str, Any]:
    return {field: read(endpoint, rules, violations) for leaf, (field, read) in readers.items() if leaf in leaves}


def read_create(
    request: endpoint_pb2.CreateEndpointRequest, rules: EndpointRules
) -> tuple[str, NewEndpoint, SigningSecret, Given | None]:
    """The tenant's id, the endpoint to create, its first secret, and its credentials, not sealed yet.

    Errors: InvalidRequestError.
    """
    violations = Violations()
    (tenant,) = read_name(request.parent, "tenants/{tenant}", violations, field="parent")
    name = new_id(request.endpoint_id, "endpoint_id", violations)
    if not request.HasField("endpoint"):
        violations.add("endpoint", "must be set")
    everything = frozenset(MASKABLE.leaves)
    own = _read(_OWN, everything, request.endpoint, rules, violations)
    settings = _read(_SETTINGS, everything, request.endpoint, rules, violations)
    secret = read_secret(request.signing_secret, request.signing_algorithm, violations)
    given = _authentication(request.endpoint, rules, violations)
    violations.raise_if_any()
    shape = None if given is None else given.shape
    new = NewEndpoint(name=name, settings=EndpointSettings(**settings), authentication=shape, **own)
    return tenant, new, secret, given


def read_update(
    request: endpoint_pb2.UpdateEndpointRequest, rules: EndpointRules, keyring: Keyring
) -> tuple[str, str, Callable[[Endpoint], Endpoint]]:
    """The ids of tenant and endpoint, and the change. Errors: InvalidRequestError."""
    violations = Violations()
    tenant, name = read_name(request.endpoint.name, PATTERN, violations, field="endpoint.name")
    checks.etag(request.endpoint.etag, "endpoint.etag", violations)
    leaves = leaves_to_change(request.update_mask, request.endpoint, MASKABLE, violations)
    own = _read(_OWN, leaves, request.endpoint, rules, violations)
    settings = _read(_SETTINGS, leaves, request.endpoint, rules, violations)
    credentials = _read(_CREDENTIALS, leaves, request.endpoint, rules, violations)
    violations.raise_if_any()

    def change(before: Endpoint) -> Endpoint:
        after = replace(before, settings=replace(before.settings, **settings), **own)
        given = credentials.get("authentication")
        authentication.check_origins(before, after.settings, given, is_given=bool(credentials))
        if credentials:
            secrets = authentication.sealed(given, before, before.key, keyring)
            shape = None if given is None else given.shape
            after = replace(after, authentication=shape, sealed_credentials=secrets)
        # A reason speaks of the state it came with.
        is_stale = after.state != before.state and "state_reason" not in own
        return replace(after, state_reason="") if is_stale else after

    return tenant, name, change


def read_secret(text: str, algorithm: int, violations: Violations) -> SigningSecret:
    """The caller's secret, or a fresh one where it is empty."""
    wanted = _ALGORITHMS.get(algorithm)
    if algorithm and wanted is None:
        violations.add("signing_algorithm", "must be HMAC_SHA256 or ED25519")
    fresh = new_signing_secret(wanted or SigningAlgorithm.HMAC_SHA256)
    try:
        found = parse_signing_secret(text) if text else fresh
    except SigningSecretError as error:
        violations.add("signing_secret", str(error))
        return fresh
    if wanted is not None and found.algorithm is not wanted:
        violations.add("signing_algorithm", "must be that of signing_secret")
    return found


_ALGORITHMS: dict[int, SigningAlgorithm] = {
    endpoint_pb2.SIGNING_ALGORITHM_HMAC_SHA256: SigningAlgorithm.HMAC_SHA256,
    endpoint_pb2.SIGNING_ALGORITHM_ED25519: SigningAlgorithm.ED25519,
}


def read_rotation(
    request: endpoint_pb2.RotateSigningKeyRequest, rules: EndpointRules
) -> tuple[str, str, SigningSecret, timedelta]:
    """The ids of tenant and endpoint, the new secret, and the overlap. Errors: InvalidRequestError."""
    violations = Violations()
    tenant, name = read_name(request.name, PATTERN, violations)
    checks.etag(request.etag, "etag", violations)
    overlap_s: float | None = rules.overlap_default_s
    if request.HasField("overlap"):
        overlap_s = to_seconds(request.overlap)
    if overlap_s is None or not 0 <= overlap_s <= OVERLAP_MAX_S:
        violations.add("overlap", "must be 0 s to 30 days")
    secret = read_secret(request.signing_secret, request.signing_algorithm, violations)
    violations.raise_if_any()
    return tenant, name, secret, timedelta(seconds=overlap_s or 0.0)


def read_pause(request: endpoint_pb2.PauseEndpointRequest) -> tuple[str, str, str]:
    """The ids of tenant and endpoint, and the reason. Errors: InvalidRequestError."""
    violations = Violations()
    tenant, name = read_name(request.name, PATTERN, violations)
    checks.etag(request.etag, "etag", violations)
    reason = checks.text(request.reason, "reason", violations, chars_max=STATE_REASON_CHARS_MAX)
    violations.raise_if_any()
    return tenant, name, reason


def read_resume(
    request: endpoint_pb2.ResumeEndpointRequest | endpoint_pb2.EnableEndpointRequest,
) -> tuple[str, str, float | None]:
    """The ids of tenant and endpoint, and the rate to catch up at. Errors: InvalidRequestError."""
    violations = Violations()
    tenant, name = read_name(request.name, PATTERN, violations)
    checks.etag(request.etag, "etag", violations)
    rate = policies.read_rate(request.max_per_second, "max_per_second", violations)
    violations.raise_if_any()
    return tenant, name, rate


def endpoint_message(
    tenant: str, endpoint: Endpoint, keys: Sequence[SealedSigningKey], secrets: dict[str, str] | None = None
) -> endpoint_pb2.Endpoint:
    """An endpoint as the API shows it; `secrets` by key id only in the answer that made the key."""
    return endpoint_pb2.Endpoint(
        name=f"tenants/{tenant}/endpoints/{endpoint.name}",
        uid=str(endpoint.key.endpoint_id),
        description=endpoint.description,
        http=endpoint_pb2.HttpTarget(
            url=endpoint.settings.url,
            fallback_urls=endpoint.settings.fallback_urls,
            allowed_cidrs=endpoint.settings.allowed_networks,
            ca_certificates=endpoint.settings.ca_certificates,
        ),
        authentication=authentication.authentication_message(endpoint.authentication),
        event_types=endpoint.event_types,
        state=endpoint_pb2.Endpoint.State.Value(f"STATE_{endpoint.state.value}"),
        state_reason=endpoint.state_reason,
        delivery_settings=_settings_message(endpoint.settings),
        labels=endpoint.labels,
        signing_keys=[signing_key_message(key, (secrets or {}).get(key.key_id, "")) for key in keys],
        revision=endpoint.revision,
        create_time=timestamp(endpoint.create_time),
        update_time=timestamp(endpoint.update_time),
        etag=str(endpoint.etag),
    )


def _settings_message(settings: EndpointSettings) -> endpoint_pb2.DeliverySettings:
    return endpoint_pb2.DeliverySettings(
        timeout=duration(settings.timeout_s),
        headers=settings.headers,
        max_in_flight=settings.max_in_flight,
        ordering_mode=endpoint_pb2.OrderingMode.Value(f"ORDERING_MODE_{settings.ordering_mode.value}"),
        trace_propagation=endpoint_pb2.TracePropagation.Value(f"TRACE_PROPAGATION_{settings.trace_propagation.value}"),
        retry_policy=policies.retry_message(settings.retry),
        exhaustion_policy=policies.exhaustion_word(settings.exhaustion),
        rate_limit=policies.rate_limit_message(settings.rate_limit),
        circuit_breaker=policies.circuit_message(settings.circuit),
        auto_disable=policies.auto_disable_message(settings.auto_disable),
        http_message_signatures=settings.http_signatures,
    )


def signing_key_message(key: SealedSigningKey, secret: str = "") -> endpoint_pb2.SigningKey:
    """A signing key; its secret only where it has just been made."""
    state = endpoint_pb2.SigningKey.STATE_ACTIVE if key.expire_time is None else endpoint_pb2.SigningKey.STATE_RETIRING
    message = endpoint_pb2.SigningKey(
        id=key.key_id,
        algorithm=endpoint_pb2.SigningAlgorithm.Value(f"SIGNING_ALGORITHM_{key.algorithm.value}"),
        public_key=format_public(key.public_key),
        state=state,
        secret=secret,
        create_time=timestamp(key.create_time),
    )
    if key.expire_time is not None:
        message.expire_time.CopyFrom(timestamp(key.expire_time))
    return message


def probe_message(result: ProbeResult) -> endpoint_pb2.TestEndpointResponse:
    """The answer of TestEndpoint."""
    return endpoint_pb2.TestEndpointResponse(
        outcome=attempt_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{result.outcome.name}"),
        status_code=result.status_code or 0,
        latency=duration(result.latency_s),
        error=result.error or "",
        response_excerpt=result.response_excerpt,
    )
