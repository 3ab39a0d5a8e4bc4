"""Dead letters as the API shows them. Pure."""

from __future__ import annotations

from webhooks.v1 import attempt_pb2, dead_letter_pb2

from dispatcher.api.convert.attempts import delivery_name
from dispatcher.api.convert.deliveries import decision_message
from dispatcher.api.convert.times import timestamp
from dispatcher.store.dead_letters import StoredLetter, letter_name


def letter_message(tenant: str, letter: StoredLetter) -> dead_letter_pb2.DeadLetter:
    """A dead letter; with its payload where it was read."""
    message = dead_letter_pb2.DeadLetter(
        name=letter_name(tenant, letter.endpoint_name, letter.seq),
        delivery=delivery_name(tenant, letter.endpoint_name, letter.seq),
        event=f"tenants/{tenant}/events/{letter.event_id}",
        event_type=letter.type,
        ordering_key=letter.ordering_key or "",
        data_content_type=letter.content_type,
        state=dead_letter_pb2.DeadLetter.State.Value(f"STATE_{letter.state.value}"),
        decision=decision_message(letter.decision),
        attempt_count=letter.attempts,
        last_status_code=letter.last_status_code or 0,
        last_error=letter.last_error or "",
        create_time=timestamp(letter.create_time),
        close_reason=letter.close_reason or "",
        close_actor=letter.close_actor or "",
    )
    if letter.last_outcome is not None:
        message.last_outcome = attempt_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{letter.last_outcome.name}")
    if letter.close_time is not None:
        message.close_time.CopyFrom(timestamp(letter.close_time))
    if letter.redrive_seq is not None:
        message.redelivery = delivery_name(tenant, letter.endpoint_name, letter.redrive_seq)
    _add_payload(message, letter.data)
    return message


def _add_payload(message: dead_letter_pb2.DeadLetter, data: bytes | None) -> None:
    if data is None:
        return
    try:
        message.data_text = data.decode()
    except UnicodeDecodeError:
        message.data = data
