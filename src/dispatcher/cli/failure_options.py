"""The options that say how failures are met, and the fields they make. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from dispatcher.cli.arguments import Fields, duration, given
from dispatcher.cli.failure import UsageError

RETRIES = "When a failed delivery is tried again (replaces all of it)"


class Exhaustion(StrEnum):
    """What follows the last attempt."""

    DEAD_LETTER = "dead-letter"
    HALT = "halt"


Schedule = Annotated[
    str | None,
    typer.Option("--schedule", metavar="WAITS", help="Waits one by one: 5s,5m,30m,2h.", rich_help_panel=RETRIES),
]
MinBackoff = Annotated[
    str | None,
    typer.Option("--min-backoff", metavar="DURATION", help="Bound of the first wait.", rich_help_panel=RETRIES),
]
MaxBackoff = Annotated[
    str | None,
    typer.Option("--max-backoff", metavar="DURATION", help="Bound of every wait.", rich_help_panel=RETRIES),
]
MaxAttempts = Annotated[
    int | None, typer.Option("--max-attempts", min=1, help="Attempts, then it is given up.", rich_help_panel=RETRIES)
]
MaxAge = Annotated[
    str | None,
    typer.Option("--max-age", metavar="DURATION", help="Age since its first attempt.", rich_help_panel=RETRIES),
]
FinalStatuses = Annotated[
    list[int] | None,
    typer.Option("--final-status", min=400, max=599, help="Not tried again; may be repeated.", rich_help_panel=RETRIES),
]
ClearRetries = Annotated[
    bool, typer.Option("--clear-retries", help="Nothing of its own: the default holds.", rich_help_panel=RETRIES)
]
Rate = Annotated[
    float | None,
    typer.Option("--rate", metavar="PER_SECOND", min=0, help="How fast what has waited goes out; 0: no such limit."),
]


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """What was given of a retry policy; None or False where it was not."""

    schedule: str | None = None
    min_backoff: str | None = None
    max_backoff: str | None = None
    max_attempts: int | None = None
    max_age: str | None = None
    final_statuses: list[int] | None = None
    clear: bool = False

    def fields(self, path: str) -> Fields:
        """The policy as the one field `path`, {} where nothing was given."""
        policy = self._policy()
        if self.clear and policy:
            raise UsageError("--clear-retries and the options of a retry policy exclude each other")
        return {path: policy} if policy or self.clear else {}

    def _policy(self) -> dict[str, Any]:
        exponential = given(
            minBackoff=_duration(self.min_backoff, "--min-backoff"),
            maxBackoff=_duration(self.max_backoff, "--max-backoff"),
        )
        if exponential and self.schedule is not None:
            raise UsageError("--schedule excludes --min-backoff and --max-backoff")
        return given(
            schedule=None if self.schedule is None else {"waits": _waits(self.schedule)},
            exponential=exponential or None,
            maxAttempts=self.max_attempts,
            maxAge=_duration(self.max_age, "--max-age"),
            finalStatusCodes=self.final_statuses or None,
        )


def _waits(text: str) -> list[str]:
    return [duration(wait, "--schedule") for wait in text.split(",")]


def _duration(text: str | None, option: str) -> str | None:
    return None if text is None else duration(text, option)


@dataclass(frozen=True, slots=True)
class EndpointFailureOptions:
    """What was given of an endpoint's own word on failures, beside its retries."""

    on_exhaustion: Exhaustion | None = None
    fallback_urls: list[str] | None = None
    rate_limit: float | None = None
    burst: int | None = None
    circuit: bool | None = None
    auto_disable: bool | None = None

    def fields(self) -> Fields:
        """The fields of an endpoint that were given, by their path."""
        if self.burst is not None and not self.rate_limit:
            raise UsageError("--burst needs --rate-limit")
        settings = "deliverySettings"
        policy = self.on_exhaustion
        return {
            **given(
                **{
                    "http.fallbackUrls": self.fallback_urls or None,
                    f"{settings}.exhaustionPolicy": policy and f"EXHAUSTION_POLICY_{policy.name}",
                }
            ),
            **({} if self.rate_limit is None else {f"{settings}.rateLimit": self._rate_limit()}),
            **({} if self.circuit is None else {f"{settings}.circuitBreaker": {"off": not self.circuit}}),
            **({} if self.auto_disable is None else {f"{settings}.autoDisable": {"off": not self.auto_disable}}),
        }

    def _rate_limit(self) -> dict[str, Any] | None:
        """None takes the limit away."""
        return {"perSecond": self.rate_limit, **given(burst=self.burst)} if self.rate_limit else None
