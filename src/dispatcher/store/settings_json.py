"""Endpoint settings as they stand in `endpoint.settings` and `endpoint_revision.settings`; pure.

Read tolerantly, since the previous release runs on the new schema: keys it does not know are ignored, and kept when it
writes; a missing key takes its default; a word it does not know is read as the strictest one it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from dispatcher.model import EndpointSettings, OrderingMode, TracePropagation
from dispatcher.policy import (
    AutoDisableOverrides,
    Backoff,
    CircuitOverrides,
    ExhaustionPolicy,
    ExponentialBackoff,
    PublishQuota,
    RateLimit,
    RetryOverrides,
    RetrySchedule,
)

DEFAULT_TIMEOUT_S = 15.0
DEFAULT_MAX_IN_FLIGHT = 32


def settings_to_json(settings: EndpointSettings, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object to store; keys of `stored`, the present object, that this release does not know are kept."""
    return {
        **(stored or {}),
        "url": settings.url,
        "timeout_s": settings.timeout_s,
        "headers": dict(settings.headers),
        "max_in_flight": settings.max_in_flight,
        "ordering_mode": settings.ordering_mode.value,
        "trace_propagation": settings.trace_propagation.value,
        "fallback_urls": list(settings.fallback_urls),
        "retry": retry_to_json(settings.retry),
        "exhaustion": settings.exhaustion.value,
        "rate_limit": None if settings.rate_limit is None else asdict(settings.rate_limit),
        "circuit": asdict(settings.circuit),
        "auto_disable": asdict(settings.auto_disable),
        "allowed_networks": list(settings.allowed_networks),
        "ca_certificates": settings.ca_certificates,
        "http_signatures": settings.http_signatures,
    }


def settings_from_json(stored: Mapping[str, Any]) -> EndpointSettings:
    """The settings in a stored JSON object."""
    return EndpointSettings(
        url=stored["url"],
        timeout_s=float(stored.get("timeout_s", DEFAULT_TIMEOUT_S)),
        headers=dict(stored.get("headers", {})),
        max_in_flight=int(stored.get("max_in_flight", DEFAULT_MAX_IN_FLIGHT)),
        ordering_mode=_ordering_mode(stored.get("ordering_mode")),
        trace_propagation=_trace_propagation(stored.get("trace_propagation")),
        fallback_urls=tuple(stored.get("fallback_urls") or ()),
        retry=retry_from_json(stored.get("retry") or {}),
        exhaustion=_exhaustion(stored.get("exhaustion")),
        rate_limit=_rate_limit(stored.get("rate_limit")),
        circuit=CircuitOverrides(**_known(stored.get("circuit"), CircuitOverrides)),
        auto_disable=AutoDisableOverrides(**_known(stored.get("auto_disable"), AutoDisableOverrides)),
        allowed_networks=tuple(stored.get("allowed_networks") or ()),
        ca_certificates=str(stored.get("ca_certificates") or ""),
        http_signatures=bool(stored.get("http_signatures")),
    )


def retry_to_json(retry: RetryOverrides) -> dict[str, Any]:
    """What an endpoint or a tenant says of retries, as it is stored; what it does not say is left out."""
    said: dict[str, Any] = {"attempts_max": retry.attempts_max, "age_max_s": retry.age_max_s}
    match retry.backoff:
        case ExponentialBackoff():
            said["exponential"] = asdict(retry.backoff)
        case RetrySchedule():
            said["schedule_s"] = list(retry.backoff.waits_s)
        case None:
            pass
    if retry.final_status_codes is not None:
        said["final_status_codes"] = sorted(retry.final_status_codes)
    return {name: value for name, value in said.items() if value is not None}


def retry_from_json(stored: Mapping[str, Any]) -> RetryOverrides:
    """The reverse of `retry_to_json`."""
    codes = stored.get("final_status_codes")
    return RetryOverrides(
        backoff=_backoff(stored),
        attempts_max=stored.get("attempts_max"),
        age_max_s=stored.get("age_max_s"),
        final_status_codes=None if codes is None else frozenset(codes),
    )


def tenant_settings_to_json(
    retry: RetryOverrides, quota: PublishQuota, stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON object of `tenant.settings`; keys of `stored` that this release does not know are kept."""
    return {**(stored or {}), "retry": retry_to_json(retry), "publish_quota": asdict(quota)}


def tenant_settings_from_json(stored: Mapping[str, Any]) -> tuple[RetryOverrides, PublishQuota]:
    """The reverse of `tenant_settings_to_json`."""
    quota = PublishQuota(**_known(stored.get("publish_quota"), PublishQuota))
    return retry_from_json(stored.get("retry") or {}), quota


def _backoff(stored: Mapping[str, Any]) -> Backoff | None:
    if "exponential" in stored:
        return ExponentialBackoff(**_known(stored["exponential"], ExponentialBackoff))
    if "schedule_s" in stored:
        return RetrySchedule(tuple(float(wait) for wait in stored["schedule_s"]))
    return None


def _rate_limit(stored: Mapping[str, Any] | None) -> RateLimit | None:
    return None if stored is None else RateLimit(float(stored["per_second"]), int(stored["burst"]))


def _known(stored: Mapping[str, Any] | None, record: type[Any]) -> dict[str, Any]:
    """The keys that are fields of `record`; those of a newer release are left."""
    names = {field.name for field in fields(record)}
    return {name: value for name, value in (stored or {}).items() if name in names}


def _exhaustion(word: object) -> ExhaustionPolicy:
    """None is an endpoint of before there was a choice; a word of a newer release is read as the one that keeps all."""
    if word is None:
        return ExhaustionPolicy.DEAD_LETTER
    try:
        return ExhaustionPolicy(str(word))
    except ValueError:
        return ExhaustionPolicy.HALT


def _ordering_mode(word: object) -> OrderingMode:
    try:
        return OrderingMode(str(word))
    except ValueError:
        return OrderingMode.ORDERED


def _trace_propagation(word: object) -> TracePropagation:
    try:
        return TracePropagation(str(word))
    except ValueError:
        return TracePropagation.NONE
