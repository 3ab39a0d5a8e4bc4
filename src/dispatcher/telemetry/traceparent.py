"""The `traceparent` header: https://www.w3.org/TR/trace-context/#traceparent-header."""

from __future__ import annotations

import re

from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags

# Later versions may append fields; version ff is invalid.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?")


def parse_traceparent(text: str | None) -> SpanContext | None:
    """The remote context that a `traceparent` names; None for anything that is not valid by the W3C's rules."""
    found = _TRACEPARENT.fullmatch(text) if text else None
    if found is None or (found[1] == "00" and found[5]):
        return None
    context = SpanContext(
        trace_id=int(found[2], 16),
        span_id=int(found[3], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(found[4], 16) & TraceFlags.SAMPLED),
    )
    return context if context.is_valid else None


def format_traceparent(context: SpanContext) -> str | None:
    """`00-<trace id>-<span id>-<flags>`; None where there is no valid context."""
    if not context.is_valid:
        return None
    trace_id, span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return f"00-{trace_id}-{span_id}-{context.trace_flags & TraceFlags.SAMPLED:02x}"
