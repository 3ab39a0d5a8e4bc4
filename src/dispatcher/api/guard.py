"""What stands before every call: who is it, may they, how often, and a record of what they change.

    credentials ──▶ caller ──▶ rate ──▶ permission ──▶ audit BEGUN ──▶ the call ──▶ audit ENDED
        └── UNAUTHENTICATED  └── RESOURCE_EXHAUSTED  └── PERMISSION_DENIED

Nothing of a request is looked at but its resource's name before its caller may.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from opentelemetry import trace
from uuid_utils.compat import uuid7

from dispatcher.api import errors
from dispatcher.api.permissions import RULES, MethodRule, require, require_types, resource_of, tenant_of
from dispatcher.bucket import TokenBucket
from dispatcher.errors import (
    DispatcherError,
    FieldViolation,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from dispatcher.security.access import Access
from dispatcher.security.authentication import Credentials
from dispatcher.security.callers import ANONYMOUS, AuthMode, Caller
from dispatcher.store.audit import AuditCall

CALLERS_MAX = 4096
"""Callers whose rate is known; of more, those that called least recently begin anew."""
AUTHENTICATED_FOR_S = 10.0
"""A stream's caller is asked for again after this: a token expires, a policy changes, a certificate is replaced."""
REFUSALS_LOGGED_PER_S = 10.0
AUDIT_WAIT_S = 5.0
RESOURCE_CHARACTERS_MAX = 512
REQUEST_ID = "x-request-id"

_log = logging.getLogger(__name__)
_audit_log = logging.getLogger("dispatcher.audit")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Malformed:
    """In place of a request whose bytes are no message of its method: told after it is known who sends such a thing."""


MALFORMED = Malformed()


def tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """grpc answers UNKNOWN to what it can't read, before anything of ours sees it; with this we see it."""

    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return MALFORMED

    return read


def refuse_malformed(request: Any) -> None:
    """Raises InvalidRequestError."""
    if request is MALFORMED:
        raise InvalidRequestError([FieldViolation("", "the request is no message of this method")], reason="MALFORMED")


class AuditTrail(Protocol):
    """Where records go."""

    async def begun(self, call: AuditCall) -> None:
        """Raises UnavailableError, and then the call must not be carried out."""

    async def ended(self, call: AuditCall, status: str) -> None:
        """Raises UnavailableError."""


class Rates:
    """A bucket per caller."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, principal: str) -> None:
        """One call. Raises OverloadedError."""
        wait_s = self._wait_s(principal)
        if wait_s > 0:
            raise OverloadedError(
                f"{principal} calls more often than {self._per_second:g} times a second",
                retry_after_s=wait_s,
                reason="CALLER_RATE_EXCEEDED",
            )
        self._buckets[principal].take(self._clock())

    async def turn(self, principal: str) -> None:
        """Wait for one: a stream that is too fast is read more slowly."""
        while (wait_s := self._wait_s(principal)) > 0:  # noqa: ASYNC110 - waits for time to pass, not for an event
            await asyncio.sleep(wait_s)
        self._buckets[principal].take(self._clock())

    def _wait_s(self, principal: str) -> float:
        now = self._clock()
        bucket = self._buckets.get(principal)
        if bucket is None:
            bucket = self._buckets[principal] = TokenBucket(self._per_second, self._burst, now)
        self._buckets.move_to_end(principal)
        while len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
        return max(0.0, bucket.opens_at(now) - now)


def _rule_of(method: str, rules: Mapping[str, MethodRule]) -> MethodRule:
    """What the table says; PermissionDeniedError where it says nothing."""
    rule = rules.get(method)
    if rule is None:
        raise PermissionDeniedError(f"{method} is open to nobody")
    return rule


@dataclass(slots=True)
class Admission:
    """A call that has been let in."""

    guard: Guard
    caller: Caller
    credentials: Credentials
    identified_at: float

    def publishes(self, parent: str, types: Collection[str]) -> None:
        """That events of these types may be published for `parent`. Raises PermissionDeniedError."""
        self.guard.check_publish(self.caller, parent, types)

    async def next_of_stream(self) -> None:
        """Before each request of a stream: it takes a turn like any call, and its caller must still be who they were.
        Where nobody is known there is nothing to ask. Raises UnauthenticatedError."""
        if self.caller.mode is AuthMode.NONE:
            return
        await self.guard.rates.turn(self.caller.principal)
        if self.guard.clock() - self.identified_at >= AUTHENTICATED_FOR_S:
            self.caller = await self.guard.access.authenticator.caller_of(self.credentials)
            self.identified_at = self.guard.clock()


_admission: ContextVar[Admission | None] = ContextVar("admission", default=None)


def admission() -> Admission:
    """Of the call that runs. Raises RuntimeError outside one, a bug."""
    found = _admission.get()
    if found is None:
        raise RuntimeError("no call runs here")
    return found


def actor() -> str:
    """Who is on record for what the running call causes."""
    found = _admission.get()
    return ANONYMOUS if found is None else found.caller.principal


class Guard:
    """One per server. Without `trail` nothing is put on record here: whoever carries the call out does that."""

    def __init__(
        self,
        access: Access,
        rates: Rates,
        trail: AuditTrail | None,
        *,
        rules: Mapping[str, MethodRule] = RULES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self.rates = rates
        self.clock = clock
        self._trail = trail
        self._rules = rules
        self._writing: set[asyncio.Future[None]] = set()
        self._refusals = TokenBucket(REFUSALS_LOGGED_PER_S, REFUSALS_LOGGED_PER_S, clock())

    @contextlib.asynccontextmanager
    async def admitted(self, method: str, request: Any, context: Any) -> AsyncIterator[Admission]:
        """Around a call of ours. `method` is `webhooks.v1.Service/Method`; of a stream `request` is not looked at.

        Raises UnauthenticatedError, PermissionDeniedError, OverloadedError, UnavailableError, and what the call does.
        """
        resource = ""
        try:
            found = await self.identify(context)
            rule = _rule_of(method, self._rules)
            refuse_malformed(request)
            if not rule.asks_each:
                resource = resource_of(rule, request)
                self._check(found.caller, rule, resource)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            self._refuse(method, context, error)
            raise
        token = _admission.set(found)
        try:
            if rule.is_change and not is_rehearsal(request):
                async with self._on_record(method, resource, found, context):
                    yield found
            else:
                yield found
        finally:
            _admission.reset(token)

    @contextlib.asynccontextmanager
    async def identified(self, context: Any) -> AsyncIterator[Admission]:
        """Around a call that only asks who calls. Raises as `identify`."""
        yield await self.identify(context)

    async def identify(self, context: Any) -> Admission:
        """Who calls, within their rate. Raises UnauthenticatedError, OverloadedError."""
        properties = context.auth_context()
        credentials = Credentials(tuple(context.invocation_metadata() or ()), context.peer(), properties)
        caller = await self.access.authenticator.caller_of(credentials)
        if caller.mode is not AuthMode.NONE:
            self.rates.take(caller.principal)
        return Admission(self, caller, credentials, self.clock())

    def check_publish(self, caller: Caller, parent: str, types: Collection[str]) -> None:
        """Raises PermissionDeniedError."""
        if self.access.policy is None:
            return
        policy = self.access.policy()
        require(policy, caller, RULES["webhooks.v1.PublisherService/Publish"], parent)
        require_types(policy, caller, tenant_of(parent), frozenset(types))

    def _check(self, caller: Caller, rule: MethodRule, resource: str) -> None:
        if self.access.policy is not None:
            require(self.access.policy(), caller, rule, resource)

    def _refuse(self, method: str, context: Any, error: DispatcherError) -> None:
        """A line per refusal, but no flood of them."""
        if self._refusals.opens_at(self.clock()) <= self.clock():
            self._refusals.take(self.clock())
            facts = {"rpc_method": method, "peer": context.peer(), "reason": error.reason, "problem": error.message}
            _audit_log.warning("a call was refused", extra=facts)

    @contextlib.asynccontextmanager
    async def _on_record(self, method: str, resource: str, found: Admission, context: Any) -> AsyncIterator[None]:
        call = _audit_call(method, resource, found, context)
        if self._trail is not None:
            await self._trail.begun(call)
        status = "CANCELLED"
        try:
            yield
            status = "OK"
        except DispatcherError as error:
            status = errors.code_of(error).name
            raise
        except Exception:
            status = "INTERNAL"
            raise
        finally:
            await self._end(call, status)

    async def _end(self, call: AuditCall, status: str) -> None:
        """To the log always; to the database even where the caller has gone, and not at the price of the answer."""
        facts = {name: getattr(call, name) for name in ("audit_id", "principal", "resource", "peer", "request_id")}
        _audit_log.info("a change was asked for", extra=facts | {"rpc_method": call.method, "status": status})
        if self._trail is None:
            return
        writing = asyncio.ensure_future(_within(self._trail.ended(call, status)))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.shield(writing)


async def _within(writing: Any) -> None:
    try:
        async with asyncio.timeout(AUDIT_WAIT_S):
            await writing
    except Exception as error:  # noqa: BLE001 - whatever it is, the call has been carried out and is to be answered
        _log.error("the end of a call is not on record", extra={"problem": str(error) or type(error).__name__})


def _audit_call(method: str, resource: str, found: Admission, context: Any) -> AuditCall:
    span = trace.get_current_span().get_span_context()
    shown = resource.encode("ascii", "backslashreplace").decode()[:RESOURCE_CHARACTERS_MAX].replace("\0", "")
    return AuditCall(
        audit_id=uuid7(),
        tenant=(tenant_of(shown) or "")[:RESOURCE_CHARACTERS_MAX],
        principal=found.caller.principal,
        auth_mode=found.caller.mode.value,
        method=method,
        resource=shown,
        peer=context.peer(),
        request_id=_request_id(found.credentials),
        trace_id=trace.format_trace_id(span.trace_id) if span.is_valid else "",
    )


def _request_id(credentials: Credentials) -> str:
    """The caller's own, if it is one that can stand in a log."""
    found = next((value for key, value in credentials.metadata if key == REQUEST_ID), "")
    return found if isinstance(found, str) and _REQUEST_ID.fullmatch(found) else ""


def is_rehearsal(request: Any) -> bool:
    """Whether the request only asks what would be."""
    return bool(getattr(request, "validate_only", False) or getattr(request, "dry_run", False))
