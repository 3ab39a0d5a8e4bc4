"""The demo's events: the shop's file over and over with fresh ids, and what the publisher was told about each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dispatcher.cli.publishing import Stream
from dispatcher.cli.records import Batch, EventRecord, parse_event
from dispatcher.cli.status import Code
from dispatcher.cli.window import Answer

REQUESTS_PER_S = 200
BATCH_EVENTS_MAX = 50


def read_templates(file: Path) -> list[EventRecord]:
    """The events of a JSON Lines file, without ids."""
    lines = file.read_bytes().splitlines()
    return [parse_event(line, number, lambda: "") for number, line in enumerate(lines, start=1)]


def batch_events(rate: float | None) -> int:
    """Events per request: single ones at a modest rate, as a service would publish them; more where that is slow."""
    return BATCH_EVENTS_MAX if rate is None else max(1, min(BATCH_EVENTS_MAX, int(rate / REQUESTS_PER_S)))


def event_batches(
    templates: Sequence[EventRecord], new_id: Callable[[], str], *, events_max: int, count: int | None = None
) -> Iterator[Batch]:
    """The templates in turn, from the first again after the last, each with a new id; `count` in all, or for ever."""
    cycle = itertools.islice(itertools.cycle(templates), count)
    while chosen := list(itertools.islice(cycle, events_max)):
        records = tuple(replace(record, id=new_id()) for record in chosen)
        yield Batch(records, sum(len(record.data) for record in records))


class AcknowledgementLog(Protocol):
    """Whoever wants to know what was acknowledged; see ledger.OrderLedger."""

    def acknowledged(
        self, event_id: str, endpoints: Iterable[str], *, sent_s: float, ordering_key: str = ""
    ) -> None: ...


class Acknowledgements:
    """Tells the log, in the order of the answers, what the service has acknowledged. `watch` is put around each stream.

    An event that is sent again on a new stream counts from its first sending.
    """

    def __init__(
        self,
        log: AcknowledgementLog,
        owed_to: Callable[[str], Iterable[str]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.first_sent_s: float | None = None
        self._log = log
        self._owed_to = owed_to
        self._monotonic = monotonic
        self._unanswered: dict[str, float] = {}

    def watch(self, stream: Stream) -> WatchedStream:
        return WatchedStream(stream, self)

    def sent(self, records: Iterable[EventRecord]) -> None:
        now = self._monotonic()
        if self.first_sent_s is None:
            self.first_sent_s = now
        for record in records:
            self._unanswered.setdefault(record.id, now)

    def acknowledged(self, records: Iterable[EventRecord]) -> None:
        for record in records:
            sent_s = self._unanswered.pop(record.id)
            endpoints = self._owed_to(record.type)
            self._log.acknowledged(record.id, endpoints, sent_s=sent_s, ordering_key=record.ordering_key)


class WatchedStream:
    """A stream that tells `Acknowledgements` what passes."""

    def __init__(self, stream: Stream, book: Acknowledgements) -> None:
        self._stream = stream
        self._book = book
        self._sent: dict[int, tuple[EventRecord, ...]] = {}

    async def send(self, sequence: int, parent: str, records: Iterable[EventRecord]) -> None:
        """See publishing.Stream; noted before the write, for the answer may come before that returns."""
        self._sent[sequence] = tuple(records)
        self._book.sent(self._sent[sequence])
        await self._stream.send(sequence, parent, self._sent[sequence])

    async def finish(self) -> None:
        await self._stream.finish()

    async def receive(self) -> Answer | None:
        answer = await self._stream.receive()
        if answer is not None:
            records = self._sent.pop(answer.sequence, ())
            if answer.status.code is Code.OK:
                self._book.acknowledged(records)
        return answer

    def cancel(self) -> None:
        self._stream.cancel()
