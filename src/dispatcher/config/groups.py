"""The settings by group: each a frozen record with bounds and a sentence for the documentation."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from dispatcher.policy import ExponentialBackoff, RetryDefaults, RetrySchedule

KIB = 1024
MIB = 1024 * KIB
HOUR_S = 3600
DAY_S = 24 * HOUR_S

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s]+):(?P<port>\d{1,5})")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")


UNIX_PREFIX = "unix:"
"""Before the path of a socket, where a worker listens for its supervisor instead of on a port."""


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (host without brackets, port); ValueError when it is neither."""
    found = _HOST_PORT.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise ValueError("must be host:port, such as 0.0.0.0:50051 or [::]:50051")
    return found["host"].strip("[]"), int(found["port"])


def _checked_address(value: str) -> str:
    split_address(value)
    return value


def _checked_dsn(value: SecretStr) -> SecretStr:
    if urlsplit(value.get_secret_value()).scheme not in ("postgresql", "postgres"):
        raise ValueError("must be a postgresql:// URL")
    return value


def _checked_proxy(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError("must be http://[user:password@]host:port")
    return value


def _checked_target(value: str) -> str:
    host, port = split_address(value)
    is_address = value.startswith("[") or host.replace(".", "").isdecimal()
    if not int(port) or not (_is_address(host) if is_address else _HOST.fullmatch(host)):
        raise ValueError("must be host:port")
    return value


def _is_address(text: str) -> bool:
    try:
        return ip_address(text) is not None
    except ValueError:
        return False


def _checked_ports(value: str) -> str:
    for entry in value.split(","):
        low, _, high = entry.partition("-")
        if not (low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low) <= 65535):
            raise ValueError("must be ports or ranges between 1 and 65535, such as 443,8000-8999")
    return value


def _split_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _checked_waits(value: tuple[float, ...]) -> tuple[float, ...]:
    if not 1 <= len(value) <= 100 or not all(0 <= wait <= 7 * DAY_S for wait in value):
        raise ValueError("must be 1 to 100 waits of 0 to 604800 s, such as 5,300,1800")
    return value


Address = Annotated[str, AfterValidator(_checked_address)]
ProxyUrl = Annotated[SecretStr, AfterValidator(_checked_proxy)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_checked_dsn)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_split_list)]
Waits = Annotated[tuple[float, ...], BeforeValidator(_split_list), AfterValidator(_checked_waits)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
Words = Hosts
_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


PortRanges = Annotated[str, AfterValidator(_checked_ports)]


def _count(default: int, low: int, high: int, description: str) -> Any:
    return Field(default=default, ge=low, le=high, description=description)


def _time_s(default: float, low: float, high: float, description: str) -> Any:
    return Field(default=default, ge=low, le=high, description=description)


def _plain(default: Any, description: str) -> Any:
    return Field(default=default, description=description)


class Group(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True, allow_inf_nan=False
    )


class DatabaseSettings(Group):
    """PostgreSQL 15 or later; only the primary is used."""

    database_url: DatabaseUrl | None = _plain(None, "The database as a postgresql:// URL. `serve` needs it.")
    database_direct_url: DatabaseUrl | None = _plain(
        None, "The same database past a pooler, for `migrate`; unset means DISPATCHER_DATABASE_URL."
    )
    database_password_file: str = _plain(
        "", "A file with the password, read anew for each connection; the URL then needs none."
    )
    database_pooled: bool = _plain(
        default=False,
        description="The URL leads through a transaction pooler (PgBouncer): no LISTEN, no prepared statements.",
    )
    database_one_tenant: bool = _plain(
        default=False,
        description="Each statement is about one tenant, as Citus needs it; so it is anyway where that extension is.",
    )
    database_pool_size_max: int = _count(
        *(8, 3, 200),
        "Connections of one process's pool and its two writers; its listener and, at times, upkeep have one each.",
    )
    database_connect_timeout_s: float = _time_s(5.0, 0.1, 120, "Longest wait for a new connection.")
    database_away_s: float = _time_s(
        5.0, 0.1, 300, "Health turns after the database was away so long; one blip must not unroute the fleet."
    )
    statement_timeout_s: float = _time_s(30.0, 0.1, 3600, "Longest any one statement may run.")
    lock_timeout_s: float = _time_s(5.0, 0.05, 600, "Longest any one statement may wait for a lock.")
    idle_in_transaction_timeout_s: float = _time_s(
        10.0, 0.5, 600, "A transaction left idle so long is ended by the server: a frozen client must not hold locks."
    )
    look_back_slack_s: float = _time_s(
        10.0, 0.5, 600, "A commit may show so long after its statement's time limit; readers look back for both."
    )


class ListenSettings(Group):
    """Where the service listens and how it stops."""

    grpc_listen: Address = _plain("0.0.0.0:50051", "Callers' gRPC API (webhooks.v1), health and reflection.")
    admin_listen: Address = _plain("127.0.0.1:50052", "Operators' gRPC API (webhooks.admin.v1).")
    ops_listen: Address = _plain("0.0.0.0:8080", "HTTP: /metrics, /livez, /readyz.")
    scaler_listen: Address | None = _plain(
        None, "KEDA's external scaler: gRPC in clear, for everybody, which tells what the fleet keeps waiting."
    )
    scaler_interval_s: float = _time_s(2.0, 0.1, 300, "That is read from the database no more often.")
    grpc_message_bytes_max: int = _count(16 * MIB, 64 * KIB, 256 * MIB, "Largest gRPC message read or written.")
    grpc_metadata_bytes_max: int = _count(16 * KIB, 1 * KIB, 1 * MIB, "Largest metadata of one call.")
    grpc_connection_age_s: float = _time_s(
        1800.0, 1, DAY_S, "Connections are renewed about so often, so that new instances get their share."
    )
    grpc_connection_age_grace_s: float = _time_s(
        60.0, 0.1, DAY_S, "Calls go on so long on a connection that is being renewed; then it is closed under them."
    )
    grpc_keepalive_interval_s: float = _time_s(
        60.0, 1, DAY_S, "A connection on which nothing comes in for so long is pinged."
    )
    grpc_keepalive_timeout_s: float = _time_s(20.0, 0.1, 600, "And closed where the ping is not answered in this time.")
    grpc_ping_interval_min_s: float = _time_s(
        10.0, 0.1, HOUR_S, "Callers that ping more often are sent away at the third time (GOAWAY, too_many_pings)."
    )
    grpc_ping_without_calls: bool = _plain(
        default=True,
        description="Callers may ping a connection that has no call on it; else no more often than every 2 hours.",
    )
    grpc_streams_max: int = _count(1000, 1, 100_000, "Concurrent calls on one gRPC connection.")
    workers: int = _count(
        1, 1, 64, "Processes of one `serve` that share its gRPC port, each with connections and leases of its own."
    )
    worker_silent_max_s: float = _time_s(
        30.0, 2, 600, "A worker that does not answer for so long is killed and replaced."
    )
    worker_restart_max_s: float = _time_s(
        5.0, 0.1, 300, "Longest pause before a worker that keeps dying is started anew."
    )
    grpc_drain_s: float = _time_s(10.0, 0, 300, "Time for calls in flight to finish on shutdown.")
    delivery_drain_s: float = _time_s(10.0, 0, 300, "Time for attempts in flight to finish on shutdown.")


class PublishSettings(Group):
    """What Publish accepts, and the group commit behind it."""

    data_bytes_max: int = _count(1 * MIB, 1, 64 * MIB, "Largest payload of one event.")
    publish_events_max: int = _count(1000, 1, 10_000, "Events in one Publish call.")
    publish_rows_max: int = _count(
        100_000, 1, 1_000_000, "Outbox rows one Publish call may fan out to; more is FAN_OUT_TOO_LARGE."
    )
    publish_queue_events_max: int = _count(
        10_000, 1, 1_000_000, "Events waiting for a commit; beyond it Publish answers RESOURCE_EXHAUSTED."
    )
    publish_queue_bytes_max: int = _count(64 * MIB, 1 * MIB, 4096 * MIB, "The same in bytes of payload.")
    publish_batch_events_max: int = _count(500, 1, 10_000, "Events committed together.")
    publish_batch_bytes_max: int = _count(8 * MIB, 64 * KIB, 256 * MIB, "Bytes of payload committed together.")
    publish_batch_rows_max: int = _count(10_000, 1, 1_000_000, "Outbox rows committed together.")
    commit_gather_s: float = _time_s(
        0.003,
        0,
        0.02,
        "Where 4 requests or more wait as a commit ends, the next waits so long for who was answered.",
    )
    commit_min_s: float = _time_s(
        0.05, 0, 10, "A caller's deadline nearer than this is refused before anything is written."
    )
    dedup_window_s: int = _count(
        DAY_S, HOUR_S, 30 * DAY_S, "How long a caller's event id is remembered. A change forgets those before it."
    )
    page_size_max: int = _count(1000, 10, 10_000, "Most resources one page of a List answers with.")


class RetentionSettings(Group):
    """Time partitions and what is kept."""

    retention_s: int = _count(30 * DAY_S, DAY_S, 3650 * DAY_S, "How long events and attempts are kept.")
    partition_ahead_days: int = _count(7, 2, 60, "Partitions made ahead of time.")
    partition_check_interval_s: float = _time_s(600.0, 1, DAY_S, "How often partition upkeep looks.")
    partition_lock_timeout_s: float = _time_s(
        0.5, 0.01, 10, "Longest partition upkeep waits for a lock; it gives way and tries again later."
    )


class LeaseSettings(Group):
    """Who delivers what: leases on the 256 partitions of endpoints."""

    lease_ttl_s: float = _time_s(10.0, 1, 300, "Life of a lease, and of a heartbeat; both renewed at a third of it.")
    lease_send_margin_s: float = _time_s(1.0, 0.1, 60, "No send starts with less of the lease left.")
    sweep_interval_s: float = _time_s(5.0, 0.1, 300, "How often owned endpoints are searched for what no hint told.")
    checkpoint_interval_s: float = _time_s(2.0, 0.1, 300, "How often changed cursors are written.")
    command_poll_interval_s: float = _time_s(1.0, 0.05, 60, "How often an owner looks for operators' commands.")
    command_wait_s: float = _time_s(10.0, 0.1, 300, "Longest a call waits for the owner to execute its command.")


class DeliverySettings(Group):
    """Sending webhooks."""

    in_flight_max: int = _count(512, 1, 10_000, "Attempts in flight in one instance.")
    tenant_in_flight_max: int = _count(256, 1, 10_000, "The same for one tenant.")
    slow_in_flight_max: int = _count(128, 1, 10_000, "Pool of their own for endpoints that turned slow or dead.")
    slow_threshold_s: float = _time_s(2.0, 0.05, 60, "An endpoint whose attempts take longer counts as slow.")
    endpoint_in_flight_max: int = _count(
        32, 1, 1000, "Attempts in flight to one endpoint that names no max_in_flight; ordered ones have one."
    )
    lane_rows_max: int = _count(256, 1, 10_000, "Outbox rows one lane keeps in memory.")
    lane_parked_rows_max: int = _count(
        1000,
        1,
        10_000,
        "Deliveries one lane keeps aside in memory while they wait for a retry and others pass them; of one ordering "
        "key at most 64, the rest waits in the database.",
    )
    lane_bytes_max: int = _count(4 * MIB, 64 * KIB, 256 * MIB, "Bytes of payload one lane keeps in memory.")
    payload_bytes_budget: int = _count(64 * MIB, 1 * MIB, 4096 * MIB, "Bytes of payload all lanes keep in memory.")
    fetch_endpoints_max: int = _count(200, 1, 5000, "Endpoints whose next rows one query reads.")
    attempt_timeout_s: float = _time_s(15.0, 0.1, 300, "One attempt, body included, where the endpoint says nothing.")
    attempt_timeout_max_s: float = _time_s(60.0, 0.1, 300, "Longest timeout an endpoint may ask for.")
    connect_timeout_s: float = _time_s(
        5.0, 0.05, 60, "Longest that a connection may take within an attempt's timeout: name look-up, connect and TLS."
    )
    response_bytes_max: int = _count(64 * KIB, 1 * KIB, 16 * MIB, "Bytes read of a receiver's answer.")
    response_header_bytes_max: int = _count(16 * KIB, 1 * KIB, 256 * KIB, "Bytes of a receiver's headers.")
    response_excerpt_bytes_max: int = _count(1 * KIB, 0, 64 * KIB, "Bytes of a failure's answer kept on record.")
    flush_interval_s: float = _time_s(0.05, 0.001, 5, "Acknowledgements wait at most so long for their flush.")
    flush_attempts_max: int = _count(1000, 1, 50_000, "Attempts flushed together.")
    flush_stall_s: float = _time_s(
        1.0, 0.05, 60, "Sending stops once an acknowledgement has waited so long: it bounds duplicates after a crash."
    )
    user_agent: str = Field(
        default="dispatcher/0.1",
        min_length=1,
        max_length=128,
        pattern=r"^[\x20-\x7e]+$",
        description="The user-agent header of webhooks.",
    )


class RetrySettings(Group):
    """What follows a failed attempt, where neither endpoint nor tenant says otherwise. In the modes where others wait
    the wait before attempt n+1 is random in [0, min(max, min x factor^(n-1))]; UNORDERED follows the schedule."""

    retry_min_s: float = _time_s(1.0, 0.01, HOUR_S, "Bound of the first wait.")
    retry_max_s: float = _time_s(60.0, 0.01, 7 * DAY_S, "Bound of every wait: whatever is behind waits too.")
    retry_factor: float = _time_s(2.0, 1, 10, "Growth from one wait's bound to the next.")
    retry_schedule_s: Waits = _plain(
        (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0),
        "UNORDERED: the waits before the second attempt and those after it (Standard Webhooks); up to a tenth longer.",
    )
    attempts_max: int = _count(
        10_000, 1, 100_000, "Attempts before a delivery is exhausted, where no schedule says how many."
    )
    delivery_age_max_s: float = _time_s(
        4.0 * DAY_S, 1, 30 * DAY_S, "Age since its first attempt at which a delivery is exhausted."
    )

    @property
    def retry_defaults(self) -> RetryDefaults:
        """The service's word, after which come the tenant's and the endpoint's."""
        return RetryDefaults(
            schedule=RetrySchedule(self.retry_schedule_s),
            exponential=ExponentialBackoff(self.retry_min_s, self.retry_max_s, self.retry_factor),
            attempts_max=self.attempts_max,
            age_max_s=self.delivery_age_max_s,
        )


class FailureSettings(Group):
    """Circuits, throttles, and endpoints that are disabled by themselves, where the endpoint says nothing else."""

    circuit_failure_ratio: float = _time_s(0.5, 0.01, 1, "Share of failed attempts at which a URL's circuit opens.")
    circuit_window_s: float = _time_s(60.0, 1, HOUR_S, "The time whose attempts are counted.")
    circuit_attempts_min: int = _count(5, 1, 10_000, "Attempts the window must hold before a circuit may open.")
    circuit_open_s: float = _time_s(30.0, 0.1, HOUR_S, "How long a circuit is open before one attempt probes.")
    throttle_floor_per_s: float = _time_s(1.0, 0.001, 1000, "429 and 503 slow an endpoint down to no less.")
    throttle_recovery_s: float = _time_s(60.0, 1, HOUR_S, "Time in which a slowed endpoint regains its full rate.")
    backlog_high_rows: int = _count(
        10_000, 1, 10**9, "An endpoint's backlog is told of (dispatcher.backlog.high) from so many deliveries."
    )
    backlog_high_age_s: float = _time_s(600.0, 1, 30 * DAY_S, "Or from an oldest delivery of such an age.")
    operational_interval_s: float = _time_s(1.0, 0.05, 60, "How often the service's own events are published.")
    auto_disable_failing_s: float = _time_s(
        5.0 * DAY_S, 60, 90 * DAY_S, "An endpoint is disabled after so long a time of nothing but failures."
    )
    auto_disable_exhausted_heads: int = _count(
        3, 1, 1000, "Or after so many exhausted deliveries in a row without a success, where others wait for them."
    )
    egress_proxy_record_interval_s: float = _time_s(
        300.0, 0.01, HOUR_S, "Of the attempts to one endpoint that the egress proxy fails one in so long is recorded."
    )


class ReplaySettings(Group):
    """Replays, backfills and redrives."""

    replay_rate_per_s: float = _time_s(100.0, 0.1, 10_000, "Deliveries appended per second, where nobody says more.")
    replay_ahead_rows_max: int = _count(
        1000,
        1,
        100_000,
        "No more is appended while an endpoint has so many deliveries to make; live ones are among them.",
    )
    replay_interval_s: float = _time_s(0.5, 0.05, 60, "How often running replays have their turn.")


class CallerSettings(Group):
    """Who may call, and how that is known. See docs/security.md."""

    auth_mode: Literal["mtls", "xfcc", "linkerd", "jwt", "tokens", "none"] | None = _plain(
        None,
        "How callers are known: mtls (our own server), xfcc or linkerd (the mesh's word), jwt, tokens; none lets "
        "everybody do everything. `serve` needs it.",
    )
    auth_policy_file: str = _plain("", "YAML: who may do what. Needed but for `none`; re-read when it changes.")
    auth_trusted_peers: Networks = _plain(
        _LOOPBACK, "xfcc, linkerd: networks (CIDR) of the mesh's proxy; its headers are believed from there only."
    )
    auth_tokens_file: str = _plain("", "tokens: YAML with the tokens' hashes. Re-read when it changes.")
    auth_jwt_keys: str = _plain("", "jwt: the issuer's public keys (JWKS), a file or an https:// URL.")
    auth_jwt_ca_file: str = _plain("", "jwt: roots (PEM) to check that URL's server with, instead of the system's.")
    auth_jwt_issuer: str = _plain("", "jwt: what `iss` must be.")
    auth_jwt_audiences: Words = _plain((), "jwt: `aud` must hold one of these.")
    auth_jwt_principal_claim: str = _plain("sub", "jwt: the claim that names the caller.")
    auth_jwt_refresh_s: float = _time_s(300.0, 10, DAY_S, "jwt: how often that URL is asked.")
    auth_reload_interval_s: float = _time_s(5.0, 0.1, HOUR_S, "How often files of certificates and policy are re-read.")
    tls_certificate_file: str = _plain("", "Certificate chain (PEM) of our gRPC ports; without it they are plain.")
    tls_key_file: str = _plain("", "Its private key (PEM).")
    tls_client_ca_file: str = _plain("", "mtls: roots (PEM) that callers' certificates must come from.")
    health_access: Literal["open", "authenticated"] = _plain(
        "open", "Who may ask grpc.health: everybody, as a kubelet needs it, or known callers."
    )
    reflection_access: Literal["open", "authenticated", "off"] = _plain(
        "authenticated", "Who may ask for reflection: everybody, known callers, nobody."
    )
    caller_rate_per_s: float = _time_s(5000.0, 0.1, 1_000_000, "Calls of one caller on average, in one instance.")
    caller_burst: int = _count(10_000, 1, 1_000_000, "And at once; beyond it RESOURCE_EXHAUSTED.")
    ops_token: SecretStr | None = _plain(
        None,
        "Bearer token for metrics that name a tenant, on the ops port; without one only mode `none` shows them.",
    )
    ops_public_keys: bool = _plain(
        default=False,
        description="Publish the public keys of Ed25519 endpoints on the ops port, as "
        "/.well-known/webhook-keys/TENANT_UID/ENDPOINT_UID (JWKS).",
    )
    audit_retention_s: int = _count(400 * DAY_S, DAY_S, 3650 * DAY_S, "How long audit records are kept.")


class SecuritySettings(Group):
    """Secrets at rest and where webhooks may go. Private addresses are refused unless named here."""

    secret_keys: SecretStr | None = _plain(
        None,
        "Keys that seal stored secrets: comma-separated `id:base64` of 32 bytes; the first seals, all open. "
        "`serve` needs it.",
    )
    signing_key_overlap_s: int = _count(DAY_S, 0, 30 * DAY_S, "How long a rotated key still signs beside the new one.")
    egress_allowed_networks: Networks = _plain((), "Networks (CIDR) allowed although they are not public.")
    egress_allowed_hosts: Hosts = _plain((), "Host names allowed to resolve to non-public addresses.")
    egress_allowed_ports: PortRanges = _plain(
        "80,443,1024-65535",
        "Ports and ranges webhooks may go to; the default leaves out mail, SSH and their like.",
    )
    egress_proxy_url: ProxyUrl | None = _plain(
        None, "A forward proxy for webhooks, `http://[user:password@]host:port`; the addresses are checked before it."
    )
    egress_proxy_probe_target: Annotated[str, AfterValidator(_checked_target)] | None = _plain(
        None,
        "`host:port` that the proxy reaches whenever it works: it is asked for a tunnel there, and nothing is sent, "
        "where it does not get through to somebody and does not say why. Unset: a receiver that it reached before.",
    )
    egress_proxy_probe_interval_s: float = _time_s(1.0, 0.01, 60, "Least time between two such tunnels.")
    egress_proxy_probe_timeout_s: float = _time_s(3.0, 0.05, 60, "Longest wait for one of them.")
    egress_allow_http: bool = _plain(default=True, description="Whether http:// targets are accepted beside https://.")


class ObservabilitySettings(Group):
    """Logs and metrics. Export by OTLP is set by the standard OTEL_* variables."""

    log_format: Literal["json", "text", "auto"] = _plain("auto", "auto: text in a terminal, else JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = _plain("info", "Least level logged.")
    metrics_endpoints_worst_max: int = _count(
        10, 0, 100, "Endpoints named on metrics, those with the oldest backlog; all others are only summed."
    )
    metrics_backlog_interval_s: float = _time_s(10.0, 0.5, 600, "How often backlog gauges are measured.")
    metrics_database_interval_s: float = _time_s(
        30.0, 1, 3600, "How often it is measured what keeps the database's VACUUM from its work."
    )
    slo_threshold_s: float = _time_s(
        60.0, 1, DAY_S, "A delivery is late whose first attempt has not ended so long after the event's acceptance."
    )
    due_endpoint_rows_max: int = _count(
        100, 1, 1_000_000, "What one endpoint may add to the due backlog: more instances don't make one faster."
    )
    statistics_window_s: float = _time_s(
        300.0, 10, 6 * HOUR_S, "The time that the statistics in the status of an endpoint or a tenant are of."
    )
    statistics_attempts_max: int = _count(
        2000, 100, 50_000, "Attempts read for them at most; where there are more, the latest."
    )
    statistics_timeout_s: float = _time_s(
        2.0,
        0.05,
        30,
        "Longest that one statement for them may run, or the walk over a tenant's endpoints take; a tenant's status as "
        "a whole, three times as long.",
    )
    statistics_worst_max: int = _count(10, 0, 100, "Endpoints that a tenant's status names, by age and by backlog.")
    telemetry_flush_timeout_s: float = _time_s(3.0, 0, 60, "Longest wait for the last export on shutdown.")


class ClientSettings(Group):
    """Where the command line finds the service."""

    client_target: Address = _plain("127.0.0.1:50051", "Callers' API.")
    client_timeout_s: float = _time_s(10.0, 0.1, 600, "Deadline of one call.")
    client_token: SecretStr | None = _plain(None, "Bearer token that is sent with each call.")
    client_tls: bool = _plain(default=False, description="Call by TLS; so it is anyway where a file below is named.")
    client_ca_file: str = _plain("", "Roots (PEM) that the service's certificate must come from; unset: the system's.")
    client_certificate_file: str = _plain("", "The caller's own certificate chain (PEM), for mtls.")
    client_key_file: str = _plain("", "Its private key (PEM).")


GROUPS: tuple[type[Group], ...] = (
    DatabaseSettings,
    ListenSettings,
    PublishSettings,
    RetentionSettings,
    LeaseSettings,
    DeliverySettings,
    RetrySettings,
    FailureSettings,
    ReplaySettings,
    CallerSettings,
    SecuritySettings,
    ObservabilitySettings,
    ClientSettings,
)
