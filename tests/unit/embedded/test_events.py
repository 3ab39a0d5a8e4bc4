"""The shipped events: within the limits of the API, and worth looking at."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import pytest

from dispatcher.embedded import EVENTS_FILE

TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
FIELDS = {"type", "ordering_key", "source", "subject", "attributes", "data"}
LIFE = ["order.created", "order.paid", "invoice.finalized", "order.shipped", "order.delivered"]


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return [json.loads(line) for line in EVENTS_FILE.read_text(encoding="utf-8").splitlines()]


def test_there_are_500_and_each_is_valid_for_publish(events: list[dict[str, Any]]) -> None:
    assert len(events) == 500
    for event in events:
        assert set(event) == FIELDS
        assert TYPE.fullmatch(event["type"])
        assert len(event["type"]) <= 128
        assert re.fullmatch(r"[\x20-\x7e]{1,128}", event["ordering_key"])
        assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in event["attributes"])
        assert isinstance(event["data"], dict)
        assert event["data"]


def test_they_are_of_many_kinds_and_sizes_and_not_only_ascii(events: list[dict[str, Any]]) -> None:
    assert len({event["type"] for event in events}) >= 10
    assert len({event["ordering_key"] for event in events}) >= 100
    sizes = [len(json.dumps(event["data"], ensure_ascii=False).encode()) for event in events]
    assert min(sizes) < 200
    assert max(sizes) > 600
    assert not EVENTS_FILE.read_text(encoding="utf-8").isascii()


def test_each_order_lives_its_life_in_order(events: list[dict[str, Any]]) -> None:
    lives = defaultdict(list)
    for event in events:
        if event["type"] in LIFE:
            lives[event["ordering_key"]].append(event["type"])
    assert all(life == LIFE[: len(life)] for life in lives.values())


def test_no_address_leads_to_a_real_host(events: list[dict[str, Any]]) -> None:
    text = EVENTS_FILE.read_text(encoding="utf-8")
    hosts = re.findall(r"(?:@|https?://)([\w.-]+)", text)
    assert hosts
    assert all(re.search(r"(^|\.)example\.(com|net|org)$", host) for host in hosts)
