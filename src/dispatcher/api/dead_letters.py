"""DeadLetterService."""

from __future__ import annotations

from webhooks.v1 import dead_letter_pb2, dead_letter_pb2_grpc, replay_pb2

from dispatcher.api.convert import dead_letters as convert
from dispatcher.api.convert import replays as convert_replays
from dispatcher.api.convert.checks import Violations, text
from dispatcher.api.convert.deliveries import delivery_message
from dispatcher.api.convert.names import ANY, new_id, parse_name, read_name
from dispatcher.api.guard import actor
from dispatcher.api.interceptors import Context
from dispatcher.api.ports import RowListener
from dispatcher.api.replays import Replays
from dispatcher.store import dead_letters, deliveries, endpoints, filters
from dispatcher.store.database import Database
from dispatcher.store.filters import Operator
from dispatcher.store.paging import PageRequest, page_size
from dispatcher.store.replay_counts import Wanted
from dispatcher.store.replays import ReplayKind

PATTERN = "tenants/{tenant}/endpoints/{endpoint}/deadLetters/{dead_letter}"
ENDPOINT = "tenants/{tenant}/endpoints/{endpoint}"
REASON_CHARS_MAX = 256


class DeadLetterServicer(dead_letter_pb2_grpc.DeadLetterServiceServicer):
    """What was given up. `on_row` is told of each delivery that is appended here."""

    def __init__(self, database: Database, starting: Replays, on_row: RowListener, *, page_size_max: int) -> None:
        self._database = database
        self._starting = starting
        self._on_row = on_row
        self._page_size_max = page_size_max

    async def GetDeadLetter(
        self, request: dead_letter_pb2.GetDeadLetterRequest, context: Context
    ) -> dead_letter_pb2.DeadLetter:
        tenant, endpoint, seq = parse_name(request.name, PATTERN)
        return convert.letter_message(tenant, await dead_letters.get(self._database, tenant, endpoint, int(seq)))

    async def ListDeadLetters(
        self, request: dead_letter_pb2.ListDeadLettersRequest, context: Context
    ) -> dead_letter_pb2.ListDeadLettersResponse:
        tenant, endpoint = parse_name(request.parent, ENDPOINT, field="parent", wild=True)
        size = page_size(request.page_size, maximum=self._page_size_max)
        page = await dead_letters.list_page(
            self._database,
            tenant,
            None if endpoint == ANY else endpoint,
            PageRequest(size, request.page_token, request.filter),
        )
        return dead_letter_pb2.ListDeadLettersResponse(
            dead_letters=[convert.letter_message(tenant, letter) for letter in page.items],
            next_page_token=page.next_token,
        )

    async def RedriveDeadLetter(
        self, request: dead_letter_pb2.RedriveDeadLetterRequest, context: Context
    ) -> dead_letter_pb2.RedriveDeadLetterResponse:
        tenant, endpoint, seq = parse_name(request.name, PATTERN)
        key, new_seq = await dead_letters.redrive(self._database, tenant, endpoint, int(seq), actor())
        self._on_row(key, new_seq)
        letter = convert.letter_message(tenant, await dead_letters.get(self._database, tenant, endpoint, int(seq)))
        letter.ClearField("payload")
        delivery = await deliveries.get(self._database, tenant, endpoint, new_seq)
        return dead_letter_pb2.RedriveDeadLetterResponse(
            dead_letter=letter, delivery=delivery_message(tenant, delivery)
        )

    async def RedriveDeadLetters(
        self, request: dead_letter_pb2.RedriveDeadLettersRequest, context: Context
    ) -> replay_pb2.Replay:
        violations = Violations()
        tenant, endpoint = read_name(request.parent, ENDPOINT, violations, field="parent")
        name = new_id(request.replay_id, "replay_id", violations)
        rate = convert_replays.read_rate(request.max_per_second, "max_per_second", violations)
        violations.raise_if_any()
        wanted = read_letters(request.filter)
        found = await endpoints.get(self._database, tenant, endpoint)
        planned = await self._starting.plan(found, wanted)
        started = await self._starting.start(tenant, name, found, wanted, planned, rate)
        return convert_replays.replay_message(tenant, started)

    async def DiscardDeadLetter(
        self, request: dead_letter_pb2.DiscardDeadLetterRequest, context: Context
    ) -> dead_letter_pb2.DeadLetter:
        violations = Violations()
        tenant, endpoint, seq = read_name(request.name, PATTERN, violations)
        reason = text(request.reason, "reason", violations, chars_max=REASON_CHARS_MAX)
        if not reason:
            violations.add("reason", "must be given: it stays on record")
        violations.raise_if_any()
        letter = await dead_letters.discard(self._database, tenant, endpoint, int(seq), reason, actor())
        return convert.letter_message(tenant, letter)


def read_letters(text_filter: str) -> Wanted:
    """The OPEN dead letters that a filter names. Errors: InvalidRequestError."""
    wanted = filters.parse(text_filter, dead_letters.LETTER_RULES)
    names = ("event_type", "ordering_key", "reason")
    said = {name: value for name in names if (value := wanted.text(name)) is not None}
    start = wanted.time("create_time", Operator.FROM)
    end = wanted.time("create_time", Operator.BEFORE)
    return Wanted(ReplayKind.REDRIVE_DEAD_LETTERS, start, end, letters={**said, "filter": text_filter})
