"""Settings: frozen, typed, flat; this module is the only reader of the environment.

`DISPATCHER_<NAME IN CAPITALS>` sets the field of that name. An empty variable counts as not set. Lists are
comma-separated. A secret may come from a file named by `<VARIABLE>_FILE` (as Docker and Kubernetes mount them).
Anything unknown or out of bounds is a `ConfigError` that lists every problem at once and shows no secret.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic import ValidationError as PydanticValidationError

PREFIX = "DISPATCHER_"
FILE_SUFFIX = "_FILE"
SECRET_FILE_BYTES_MAX = 64 * 1024
SHOWN_VALUE_CHARS_MAX = 80
SERVE_REQUIRES = ("database_url", "secret_keys")
MIGRATE_REQUIRES = ("database_url",)

KIB = 1024
MIB = 1024 * KIB
HOUR_S = 3600
DAY_S = 24 * HOUR_S

# Kubernetes puts DISPATCHER_SERVICE_HOST, DISPATCHER_PORT=tcp://… and their like into every pod beside a Service
# called dispatcher; the test suite has a prefix of its own. Neither is a mistake of whoever set our variables.
_SERVICE_LINK = re.compile(r"DISPATCHER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_TEST_PREFIX = "DISPATCHER_TEST_"
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s]+):(?P<port>\d{1,5})")


class ConfigError(Exception):
    """The environment is wrong; `problems` has one line per variable, each naming it, none showing a secret."""

    def __init__(self, problems: Collection[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (host without brackets, port); ValueError when it is neither."""
    found = _HOST_PORT.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise ValueError("must be host:port, such as 0.0.0.0:50051 or [::]:50051")
    return found["host"].strip("[]"), int(found["port"])


def mask_dsn(dsn: str) -> str:
    """The database URL with its password, in the authority or in the query, as ***."""
    scheme, separator, rest = dsn.partition("://")
    authority, slash, tail = rest.partition("/")
    if not separator or authority.count("@") > 1 or "@" in tail:
        return "***"  # an unescaped @ or / in the password: its parts can't be told apart
    userinfo, at, hosts = authority.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    shown = f"{hosts}{slash}{tail}"
    masked = re.sub(r"(?i)(password=)[^&]*", r"\1***", shown)
    return f"{scheme}://{user}{':***' if colon else ''}{at}{masked}"


def _checked_address(value: str) -> str:
    split_address(value)
    return value


def _checked_dsn(value: SecretStr) -> SecretStr:
    if urlsplit(value.get_secret_value()).scheme not in ("postgresql", "postgres"):
        raise ValueError("must be a postgresql:// URL")
    return value


def _checked_ports(value: str) -> str:
    for entry in value.split(","):
        low, _, high = entry.partition("-")
        if not (low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low) <= 65535):
            raise ValueError("must be ports or ranges between 1 and 65535, such as 443,8000-8999")
    return value


def _split_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(_checked_address)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_checked_dsn)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_split_list)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_split_list)]


PortRanges = Annotated[str, AfterValidator(_checked_ports)]


def _count(default: int, low: int, high: int, description: str) -> Any:
    return Field(default=default, ge=low, le=high, description=description)


def _time_s(default: float, low: float, high: float, description: str) -> Any:
    return Field(default=default, ge=low, le=high, description=description)


def _plain(default: Any, description: str) -> Any:
    return Field(default=default, description=description)


class _Group(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True, allow_inf_nan=False
    )


class DatabaseSettings(_Group):
    """PostgreSQL 15 or later; only the primary is used."""

    database_url: DatabaseUrl | None = _plain(None, "The database as a postgresql:// URL. `serve` needs it.")
    database_direct_url: DatabaseUrl | None = _plain(
        None, "The same database past a pooler, for `migrate`; unset means DISPATCHER_DATABASE_URL."
    )
    database_pooled: bool = _plain(
        default=False,
        description="The URL leads through a transaction pooler (PgBouncer): no LISTEN, no prepared statements.",
    )
    database_pool_size_max: int = _count(8, 3, 200, "Connections of one instance, the writers' two included.")
    database_connect_timeout_s: float = _time_s(5.0, 0.1, 120, "Longest wait for a new connection.")
    database_away_s: float = _time_s(
        5.0, 0.1, 300, "Health turns after the database was away so long; one blip must not unroute the fleet."
    )
    statement_timeout_s: float = _time_s(30.0, 0.1, 3600, "Longest any one statement may run.")
    lock_timeout_s: float = _time_s(5.0, 0.05, 600, "Longest any one statement may wait for a lock.")
    idle_in_transaction_timeout_s: float = _time_s(
        10.0, 0.5, 600, "A transaction left idle so long is ended by the server: a frozen client must not hold locks."
    )


class ListenSettings(_Group):
    """Where the service listens and how it stops."""

    grpc_listen: Address = _plain("0.0.0.0:50051", "Callers' gRPC API (webhooks.v1), health and reflection.")
    admin_listen: Address = _plain("127.0.0.1:50052", "Operators' gRPC API (webhooks.admin.v1).")
    ops_listen: Address = _plain("0.0.0.0:8080", "HTTP: /metrics, /livez, /readyz.")
    grpc_message_bytes_max: int = _count(16 * MIB, 64 * KIB, 256 * MIB, "Largest gRPC message read or written.")
    grpc_streams_max: int = _count(1000, 1, 100_000, "Concurrent calls on one gRPC connection.")
    grpc_drain_s: float = _time_s(10.0, 0, 300, "Time for calls in flight to finish on shutdown.")
    delivery_drain_s: float = _time_s(10.0, 0, 300, "Time for attempts in flight to finish on shutdown.")


class PublishSettings(_Group):
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
    commit_min_s: float = _time_s(
        0.05, 0, 10, "A caller's deadline nearer than this is refused before anything is written."
    )
    dedup_window_s: int = _count(
        DAY_S, HOUR_S, 30 * DAY_S, "How long a caller's event id is remembered. A change forgets those before it."
    )
    page_size_max: int = _count(1000, 10, 10_000, "Most resources one page of a List answers with.")


class RetentionSettings(_Group):
    """Time partitions and what is kept."""

    retention_s: int = _count(30 * DAY_S, DAY_S, 3650 * DAY_S, "How long events and attempts are kept.")
    partition_ahead_days: int = _count(7, 2, 60, "Partitions made ahead of time.")
    partition_check_interval_s: float = _time_s(600.0, 1, DAY_S, "How often partition upkeep looks.")
    partition_lock_timeout_s: float = _time_s(
        0.5, 0.01, 10, "Longest partition upkeep waits for a lock; it gives way and tries again later."
    )


class LeaseSettings(_Group):
    """Who delivers what: leases on the 256 partitions of endpoints."""

    lease_ttl_s: float = _time_s(10.0, 1, 300, "Life of a lease; renewed at a third of it.")
    lease_send_margin_s: float = _time_s(1.0, 0.1, 60, "No send starts with less of the lease left.")
    heartbeat_interval_s: float = _time_s(2.0, 0.1, 60, "How often an instance says it lives.")
    heartbeat_ttl_s: float = _time_s(10.0, 1, 300, "An instance silent for so long no longer counts for a fair share.")
    sweep_interval_s: float = _time_s(5.0, 0.1, 300, "How often owned endpoints are searched for what no hint told.")
    checkpoint_interval_s: float = _time_s(2.0, 0.1, 300, "How often changed cursors are written.")
    command_poll_interval_s: float = _time_s(1.0, 0.05, 60, "How often an owner looks for operators' commands.")


class DeliverySettings(_Group):
    """Sending webhooks."""

    in_flight_max: int = _count(512, 1, 10_000, "Attempts in flight in one instance.")
    tenant_in_flight_max: int = _count(256, 1, 10_000, "The same for one tenant.")
    slow_in_flight_max: int = _count(128, 1, 10_000, "Pool of their own for endpoints that turned slow or dead.")
    slow_threshold_s: float = _time_s(2.0, 0.05, 60, "An endpoint whose attempts take longer counts as slow.")
    endpoint_in_flight_max: int = _count(
        32, 1, 1000, "Attempts in flight to one endpoint that names no max_in_flight; ordered ones have one."
    )
    lane_rows_max: int = _count(256, 1, 10_000, "Outbox rows one lane keeps in memory.")
    lane_bytes_max: int = _count(4 * MIB, 64 * KIB, 256 * MIB, "Bytes of payload one lane keeps in memory.")
    payload_bytes_budget: int = _count(64 * MIB, 1 * MIB, 4096 * MIB, "Bytes of payload all lanes keep in memory.")
    fetch_endpoints_max: int = _count(200, 1, 5000, "Endpoints whose next rows one query reads.")
    attempt_timeout_s: float = _time_s(15.0, 0.1, 300, "One attempt, body included, where the endpoint says nothing.")
    attempt_timeout_max_s: float = _time_s(60.0, 0.1, 300, "Longest timeout an endpoint may ask for.")
    connect_timeout_s: float = _time_s(5.0, 0.05, 60, "Name look-up, connect and TLS of one attempt.")
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


class RetrySettings(_Group):
    """What follows a failed attempt. The wait before attempt n+1 is random in [0, min(max, min x factor^(n-1))]."""

    retry_min_s: float = _time_s(1.0, 0.01, HOUR_S, "Bound of the first wait.")
    retry_max_s: float = _time_s(6.0 * HOUR_S, 0.01, 7 * DAY_S, "Bound of every wait.")
    retry_factor: float = _time_s(2.0, 1, 10, "Growth from one wait's bound to the next.")
    attempts_max: int = _count(20, 1, 1000, "Attempts before a delivery is dead-lettered.")
    delivery_age_max_s: float = _time_s(
        3.0 * DAY_S, 1, 30 * DAY_S, "Age since its first attempt at which a delivery is dead-lettered."
    )


class SecuritySettings(_Group):
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
    egress_allow_http: bool = _plain(default=True, description="Whether http:// targets are accepted beside https://.")


class ObservabilitySettings(_Group):
    """Logs and metrics. Export by OTLP is set by the standard OTEL_* variables."""

    log_format: Literal["json", "text", "auto"] = _plain("auto", "auto: text in a terminal, else JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = _plain("info", "Least level logged.")
    metrics_endpoints_worst_max: int = _count(
        10, 0, 100, "Endpoints named on metrics, those with the oldest backlog; all others are only summed."
    )
    metrics_backlog_interval_s: float = _time_s(10.0, 0.5, 600, "How often backlog gauges are measured.")
    telemetry_flush_timeout_s: float = _time_s(3.0, 0, 60, "Longest wait for the last export on shutdown.")


class ClientSettings(_Group):
    """Where the command line finds the service."""

    client_target: Address = _plain("127.0.0.1:50051", "Callers' API.")
    client_timeout_s: float = _time_s(10.0, 0.1, 600, "Deadline of one call.")


GROUPS: tuple[type[_Group], ...] = (
    DatabaseSettings,
    ListenSettings,
    PublishSettings,
    RetentionSettings,
    LeaseSettings,
    DeliverySettings,
    RetrySettings,
    SecuritySettings,
    ObservabilitySettings,
    ClientSettings,
)


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """One line of `dispatcher config`: the field, its variable, its value as text with secrets masked, its origin."""

    name: str
    variable: str
    value: str
    origin: Literal["default", "environment"]


class Settings(
    ClientSettings,
    ObservabilitySettings,
    SecuritySettings,
    RetrySettings,
    DeliverySettings,
    LeaseSettings,
    RetentionSettings,
    PublishSettings,
    ListenSettings,
    DatabaseSettings,
):
    """All settings of one process. A component asks for the group it needs (`DeliverySettings`) and is given this."""

    @classmethod
    def load(cls, environ: Mapping[str, str], *, required: Collection[str] = ()) -> Self:
        """Settings from the variables that begin with DISPATCHER_; ConfigError lists all that is wrong.

        `required` names fields that the caller can't do without (`SERVE_REQUIRES`).
        """
        values, problems = _collect(environ)
        unreadable = {problem.partition(":")[0].removesuffix(FILE_SUFFIX) for problem in problems}
        for name in required:
            if name not in values and variable_of(name) not in unreadable:
                problems.append(f"{variable_of(name)}: must be set")
        try:
            settings = cls.model_validate(values)
        except PydanticValidationError as error:
            problems.extend(_explain(error, values))
        if problems:
            raise ConfigError(sorted(problems))
        return settings

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if broken := [sentence for holds, sentence in _relations(self) if not holds]:
            raise ValueError("\n".join(broken))
        return self

    def effective(self) -> tuple[EffectiveSetting, ...]:
        """Every setting in the order of the documentation, secrets masked."""
        return tuple(
            EffectiveSetting(
                name,
                variable_of(name),
                _masked(name, getattr(self, name)) if is_secret(name) else display(getattr(self, name)),
                "environment" if name in self.model_fields_set else "default",
            )
            for group in GROUPS
            for name in group.model_fields
        )


def _relations(s: Settings) -> Iterator[tuple[bool, str]]:
    def at_most(low: str, high: str) -> tuple[bool, str]:
        return getattr(s, low) <= getattr(s, high), f"{variable_of(low)}: must not exceed {variable_of(high)}"

    yield at_most("data_bytes_max", "grpc_message_bytes_max")
    yield at_most("data_bytes_max", "publish_queue_bytes_max")
    yield at_most("publish_events_max", "publish_queue_events_max")
    yield at_most("retry_min_s", "retry_max_s")
    yield at_most("attempt_timeout_s", "attempt_timeout_max_s")
    yield at_most("response_excerpt_bytes_max", "response_bytes_max")
    yield at_most("delivery_age_max_s", "retention_s")
    yield at_most("dedup_window_s", "retention_s")
    yield at_most("lane_bytes_max", "payload_bytes_budget")
    yield (
        s.lease_send_margin_s <= s.lease_ttl_s / 3,
        f"{variable_of('lease_send_margin_s')}: must not exceed a third of {variable_of('lease_ttl_s')}",
    )
    yield (
        s.heartbeat_interval_s <= s.heartbeat_ttl_s / 2,
        f"{variable_of('heartbeat_interval_s')}: must not exceed half of {variable_of('heartbeat_ttl_s')}",
    )


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def is_secret(name: str) -> bool:
    """Whether a field's value is masked everywhere and may come from a file."""
    return "SecretStr" in str(Settings.model_fields[name].annotation)


def _masked(name: str, value: SecretStr | None) -> str:
    if value is None:
        return ""
    return mask_dsn(value.get_secret_value()) if name.endswith("_url") else "***"


def display(value: object) -> str:
    """A value that is no secret as text, as one would write it into the environment; empty for unset."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(str(item) for item in value)
        case float():
            return f"{value:g}" if value < MIB else f"{value:.0f}"
        case _:
            return str(value)


def _collect(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Field values as text from the environment and secret files, and what is unknown or unreadable."""
    values: dict[str, str] = {}
    problems: list[str] = []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX) or _is_foreign(variable) or value == "":
            continue
        name = variable.removeprefix(PREFIX).lower()
        secret_name = variable.removesuffix(FILE_SUFFIX).removeprefix(PREFIX).lower()
        if name in Settings.model_fields and variable == variable_of(name):
            values[name] = value
        elif variable.endswith(FILE_SUFFIX) and secret_name in Settings.model_fields and is_secret(secret_name):
            _read_secret(environ, variable, secret_name, values, problems)
        else:
            problems.append(f"{variable}: unknown setting{_hint(variable)}")
    return values, problems


def _is_foreign(variable: str) -> bool:
    return variable.startswith(_TEST_PREFIX) or _SERVICE_LINK.fullmatch(variable) is not None


def _hint(variable: str) -> str:
    known = [variable_of(name) for name in Settings.model_fields]
    nearest = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.7)
    return f"; did you mean {nearest[0]}?" if nearest else "; `dispatcher config` lists all"


def _read_secret(
    environ: Mapping[str, str], variable: str, name: str, values: dict[str, str], problems: list[str]
) -> None:
    if environ.get(variable_of(name)):
        problems.append(f"{variable}: {variable_of(name)} is set as well; keep one")
        return
    try:
        with Path(environ[variable]).open("rb") as file:
            content = file.read(SECRET_FILE_BYTES_MAX + 1)
        text = content.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        problems.append(f"{variable}: cannot read the file: {reason}")
        return
    if not text or len(content) > SECRET_FILE_BYTES_MAX:
        problems.append(f"{variable}: the file is {'too large' if text else 'empty'}")
        return
    values[name] = text


def _explain(error: PydanticValidationError, values: Mapping[str, str]) -> Iterator[str]:
    seen: set[str] = set()
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            yield from message.split("\n")
            continue
        name = str(detail["loc"][0])
        if name in seen:
            continue  # a union reports each of its branches; the first says enough
        seen.add(name)
        shown = "" if is_secret(name) else f" (got {values.get(name, '')[:SHOWN_VALUE_CHARS_MAX]!r})"
        yield f"{variable_of(name)}: {message[:1].lower()}{message[1:]}{shown}"


def from_environment(*, required: Collection[str] = ()) -> Settings:
    """`Settings.load` of this process's environment."""
    return Settings.load(os.environ, required=required)


def environment() -> Mapping[str, str]:
    """This process's environment, for what is not ours to name: the OTEL_* variables."""
    return os.environ
