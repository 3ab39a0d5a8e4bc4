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
from pathlib import Path
from typing import Literal, Self

from pydantic import SecretStr, model_validator
from pydantic import ValidationError as PydanticValidationError

from dispatcher.config.groups import (
    GROUPS,
    MIB,
    CallerSettings,
    ClientSettings,
    DatabaseSettings,
    DeliverySettings,
    FailureSettings,
    LeaseSettings,
    ListenSettings,
    ObservabilitySettings,
    PublishSettings,
    ReplaySettings,
    RetentionSettings,
    RetrySettings,
    SecuritySettings,
)

PREFIX = "DISPATCHER_"
FILE_SUFFIX = "_FILE"
SECRET_FILE_BYTES_MAX = 64 * 1024
SHOWN_VALUE_CHARS_MAX = 80
STOP_SLACK_S = 5.0
"""For all that is bounded in code at the end of a process: the round that gives leases back, last hints, ports, the
interpreter."""
SERVE_REQUIRES = ("database_url", "secret_keys", "auth_mode")
MIGRATE_REQUIRES = ("database_url",)

# Kubernetes puts DISPATCHER_SERVICE_HOST, DISPATCHER_PORT=tcp://… and their like into every pod beside a Service
# called dispatcher; the test suite has a prefix of its own. Neither is a mistake of whoever set our variables.
_SERVICE_LINK = re.compile(r"DISPATCHER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_TEST_PREFIX = "DISPATCHER_TEST_"


class ConfigError(Exception):
    """The environment is wrong; `problems` has one line per variable, each naming it, none showing a secret."""

    def __init__(self, problems: Collection[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


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
    CallerSettings,
    ReplaySettings,
    FailureSettings,
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

    @property
    def process_stop_max_s(self) -> float:
        """The longest that the orderly end of one process takes, in the order of `dispatcher.app`."""
        handing_over_s = 2 * self.delivery_drain_s  # what a release may take: at rest, then on record
        writing_s = self.delivery_drain_s
        leaving_s, answering_s = handing_over_s + writing_s, 2 * self.grpc_drain_s
        return leaving_s + answering_s + self.telemetry_flush_timeout_s + self.database_connect_timeout_s + STOP_SLACK_S

    @property
    def stop_max_s(self) -> float:
        """The longest from SIGTERM to the exit of `serve`, that of its workers included."""
        supervisor_s = self.telemetry_flush_timeout_s + STOP_SLACK_S if self.workers > 1 else 0.0
        return self.process_stop_max_s + supervisor_s

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
    yield from _caller_relations(s)


_NEEDED_BY_MODE: Mapping[str, tuple[str, ...]] = {
    "mtls": ("tls_certificate_file", "tls_key_file", "tls_client_ca_file"),
    "jwt": ("auth_jwt_keys", "auth_jwt_issuer", "auth_jwt_audiences"),
    "tokens": ("auth_tokens_file",),
    "xfcc": ("auth_trusted_peers",),
    "linkerd": ("auth_trusted_peers",),
    "none": (),
}


_OF_ONE_MODE = (
    "auth_policy_file",
    "auth_tokens_file",
    "auth_jwt_keys",
    "auth_jwt_issuer",
    "auth_jwt_audiences",
    "tls_client_ca_file",
)


def _caller_relations(s: Settings) -> Iterator[tuple[bool, str]]:
    """A mode has all that it needs, and nothing is set that it would not heed."""
    mode = s.auth_mode
    if mode is None:
        return
    chosen = f"{variable_of('auth_mode')}={mode}"
    needed = _NEEDED_BY_MODE[mode] if mode == "none" else ("auth_policy_file", *_NEEDED_BY_MODE[mode])
    for name in needed:
        yield bool(getattr(s, name)), f"{variable_of(name)}: must be set for {chosen}"
    for name in _OF_ONE_MODE:
        yield name in needed or not getattr(s, name), f"{variable_of(name)}: means nothing with {chosen}"
    has_both = bool(s.tls_certificate_file) == bool(s.tls_key_file)
    yield has_both, f"{variable_of('tls_key_file')}: goes with {variable_of('tls_certificate_file')}"
    yield (
        "://" not in s.auth_jwt_keys or s.auth_jwt_keys.startswith("https://"),
        (f"{variable_of('auth_jwt_keys')}: must be a file or an https:// URL"),
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
            return ",".join(display(item) for item in value)
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
