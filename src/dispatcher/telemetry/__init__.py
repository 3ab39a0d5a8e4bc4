"""OpenTelemetry set-up, every instrument in one table (`catalog`), spans, logs and the state of health."""

from dispatcher.telemetry.attempt_spans import AttemptTrace
from dispatcher.telemetry.export import ExportPlan
from dispatcher.telemetry.health import Health
from dispatcher.telemetry.instruments import Instruments
from dispatcher.telemetry.logs import configure_logging
from dispatcher.telemetry.setup import Telemetry, start_telemetry
from dispatcher.telemetry.tracing import Tracing, current_traceparent

__all__ = [
    "AttemptTrace",
    "ExportPlan",
    "Health",
    "Instruments",
    "Telemetry",
    "Tracing",
    "configure_logging",
    "current_traceparent",
    "start_telemetry",
]
