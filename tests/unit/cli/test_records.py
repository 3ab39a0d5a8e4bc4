"""Reading events from JSON Lines."""

from __future__ import annotations

import io
import itertools
import json
from datetime import UTC, datetime

import pytest

from dispatcher.cli import records
from dispatcher.cli.records import BadEventError, BadLine, Batch, EventRecord, parse_event, read_items


def parse(**fields: object) -> EventRecord:
    return parse_event(json.dumps({"type": "t", **fields}).encode(), 1, lambda: "made")


def items(
    text: bytes, *, read_bytes: int | None = None, events_max: int = 100, start_line: int = 1
) -> list[Batch | BadLine]:
    source = io.BytesIO(text)
    ids = map(str, itertools.count(1))
    read = source.read if read_bytes is None else lambda _n: source.read(read_bytes)
    return list(read_items(read, events_max=events_max, new_id=lambda: next(ids), start_line=start_line))


def lines_of(found: list[Batch | BadLine]) -> list[int]:
    return [record.line for item in found if isinstance(item, Batch) for record in item.records]


def test_every_field_is_read():
    record = parse(
        id="e1",
        data={"a": [1, "é"]},
        data_content_type="application/json",
        ordering_key="k",
        attributes={"a": "b"},
        source="s",
        subject="u",
        time="2030-01-31T12:00:00Z",
    )
    assert record == EventRecord(
        1,
        "e1",
        "t",
        '{"a":[1,"é"]}'.encode(),
        "application/json",
        "k",
        {"a": "b"},
        "s",
        "u",
        datetime(2030, 1, 31, 12, tzinfo=UTC),
    )


def test_large_integers_and_null_survive():
    assert parse(data=2**80).data == str(2**80).encode()
    assert parse(data=None).data == b"null"


def test_an_event_without_an_id_gets_one():
    assert parse(data=1).id == "made"
    assert parse(data=1, id=None).id == "made"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[1]", "is not a JSON object"),
        (b'{"type": "t", "data": NaN}', "NaN is no value"),
        (b'{"type": ', "is not JSON: Expecting value at column"),
        (b"\xff", "is not UTF-8"),
        (b'{"data": 1}', "`type` is missing"),
        (b'{"type": "t"}', "exactly one of"),
        (b'{"type": "t", "data": 1, "data_text": "x"}', "exactly one of"),
        (b'{"type": "t", "data_text": 1}', "`data_text` must be a string"),
        (b'{"type": "t", "data_base64": "?"}', "not base64"),
        (b'{"type": "t", "data": "\\ud800"}', "surrogate"),
        (b'{"type": 1, "data": 1}', "`type` must be a string"),
        (b'{"type": "t", "data": 1, "attributes": {"a": 1}}', "object of strings"),
        (b'{"type": "t", "data": 1, "time": "2030-01-31T12:00:00"}', "with an offset"),
        (b'{"type": "t", "data": 1, "time": 5}', "with an offset"),
        (b'{"type": "t", "data": 1, "ordering-key": "k"}', "did you mean `ordering_key`?"),
        (b'{"type":"t","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_bad_line_says_what_is_wrong(line: bytes, problem: str):
    with pytest.raises(BadEventError, match=problem.replace("?", r"\?")):
        parse_event(line, 1, lambda: "made")


@pytest.mark.parametrize("read_bytes", [None, 1, 7])
def test_lines_are_numbered_whatever_one_read_brings(read_bytes: int | None):
    text = b'\xef\xbb\xbf{"type":"t","data":1}\r\n\n  \n{"type":"t","data":2}\n{"type":"t","data":3}'
    assert lines_of(items(text, read_bytes=read_bytes)) == [1, 4, 5]


def test_batches_are_bounded_in_events_and_bytes():
    text = b"".join(b'{"type":"t","data":%d}\n' % n for n in range(25))
    assert [len(item.records) for item in items(text, events_max=10) if isinstance(item, Batch)] == [10, 10, 5]
    large = b'{"type":"t","data_text":"%s"}\n' % (b"x" * 700_000)
    assert [len(item.records) for item in items(large * 3) if isinstance(item, Batch)] == [1, 1, 1]


def test_the_bytes_of_all_batches_are_those_of_the_file():
    text = b'{"type":"t","data":1}\n\n{"type":"t","data":2}\n' * 50
    found = items(text, events_max=7)
    assert sum(item.line_bytes for item in found if isinstance(item, Batch)) == len(text)


def test_a_bad_line_keeps_its_place_between_the_others():
    found = items(b'{"type":"t","data":1}\nnonsense\n{"type":"t","data":3}\n')
    assert [type(item).__name__ for item in found] == ["Batch", "BadLine", "Batch"]
    assert found[1] == BadLine(2, "is not JSON: Expecting value at column 1")
    assert lines_of(found) == [1, 3]


def test_lines_before_the_start_are_not_looked_at():
    found = items(b'nonsense\n{"type":"t","data":2}\n', start_line=2)
    assert lines_of(found) == [2]


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "LINE_BYTES_MAX", 1000)
    reads = 0

    def read(size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 10, "it goes on reading"
        return b"x" * size

    found = list(read_items(read, events_max=10, new_id=lambda: "i"))
    assert found == [BadLine(1, "longer than 1000 bytes", final=True)]
