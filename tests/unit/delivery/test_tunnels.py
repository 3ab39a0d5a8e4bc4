"""Whose fault it is when a proxy gives no reason: never more is counted than the receiver has failed while the proxy
was at work, and nothing while it was not."""

from __future__ import annotations

import random

import pytest

from dispatcher.delivery.client.tunnels import PROVEN_S, REACHED_S, Asked, Target, Tunnels

DEAD, OTHER, THIRD = Target("192.0.2.1", 443), Target("192.0.2.2", 443), Target("192.0.2.2", 8443)
INSIDE, BY_V6 = Target("10.0.0.1", 443), Target("2001:db8::1", 443)
NAMED = Target("check.example", 443)
GLOBAL = Target("8.8.8.8", 443)


def fail(tunnels: Tunnels, began_at: float, ended_at: float, target: Target = DEAD, receiver: str = "dead") -> bool:
    return tunnels.failed(tunnels.ask(receiver, target, began_at), ended_at)


def between(tunnels: Tunnels, other: Target, count: int = 4) -> list[bool]:
    """Failures of the dead one, with a tunnel to another before each."""
    found = []
    for at in range(0, 10 * count, 10):
        tunnels.opened(other, at, "other")
        found.append(fail(tunnels, at + 1, at + 2))
    return found


def test_a_receiver_that_fails_while_others_are_reached_before_and_after_is_counted_from_the_second_time_on() -> None:
    assert between(Tunnels(60), OTHER) == [False, True, True, True]
    assert between(Tunnels(60), THIRD) == [False, True, True, True]


def test_where_no_tunnel_is_opened_to_another_nothing_is_counted() -> None:
    tunnels = Tunnels(60)
    assert [fail(tunnels, at, at + 1) for at in range(0, 100, 2)] == [False] * 50
    assert between(Tunnels(60), DEAD) == [False] * 4, "its own address is no other's"


def test_a_proxy_that_breaks_down_and_comes_back_has_cost_a_healthy_receiver_nothing() -> None:
    tunnels = Tunnels(60)
    tunnels.opened(DEAD, 0, "dead")
    tunnels.opened(OTHER, 0, "other")
    assert [fail(tunnels, at, at + 1) for at in range(1, 50, 2)] == [False] * 25
    tunnels.opened(OTHER, 51, "other")
    tunnels.opened(DEAD, 52, "dead")
    assert not fail(tunnels, 53, 54), "nor does the next one find it there"


def test_a_receiver_that_answers_by_a_tunnel_it_had_begins_afresh() -> None:
    tunnels = Tunnels(60)
    found = []
    for at in range(0, 40, 10):
        tunnels.opened(OTHER, at, "other")
        found.append(fail(tunnels, at + 1, at + 2))
        tunnels.answered(DEAD, "dead")
    assert found == [False] * 4


def test_a_failure_with_no_tunnel_to_another_before_it_is_not_proven_by_one_after_it() -> None:
    tunnels = Tunnels(60)
    found = [fail(tunnels, 1, 2)]
    tunnels.opened(OTHER, 3, "other")
    found.append(fail(tunnels, 4, 5))
    assert found == [False] * 2


def test_a_tunnel_to_the_address_that_failed_last_proves_nothing_of_the_receivers_former_address_either() -> None:
    """A name may have a new address each time, and another name the same."""
    tunnels, moved = Tunnels(60), Target("192.0.2.3", 443)
    tunnels.opened(OTHER, 1, "other")
    found = [fail(tunnels, 2, 2.5, DEAD), fail(tunnels, 3, 3.5, moved)]
    tunnels.opened(moved, 4, "another name")
    found += [fail(tunnels, 5, 5.5, moved), fail(tunnels, 6, 6.5, moved)]
    assert found == [False] * 4


def test_what_another_way_out_opens_tells_nothing() -> None:
    for other in (INSIDE, BY_V6):
        tunnels = Tunnels(60)
        found = []
        for at in range(0, 40, 10):
            tunnels.opened(other, at, "other")
            found.append(fail(tunnels, at + 1, at + 2, GLOBAL))
        assert found == [False] * 4


def test_what_was_opened_too_long_before_or_after_tells_nothing() -> None:
    assert between(Tunnels(0.5), OTHER) == [False] * 4
    only_before = Tunnels(5)
    assert between(only_before, OTHER) == [False] * 4, "the next tunnel comes 8 s after"


def test_a_tunnel_to_what_the_settings_name_tells_of_every_way_out() -> None:
    for target in (GLOBAL, INSIDE, BY_V6):
        tunnels = Tunnels(60, NAMED)
        found = []
        for at in range(0, 40, 10):
            tunnels.opened(NAMED, at)
            found.append(fail(tunnels, at + 1, at + 2, target))
        assert found == [False, True, True, True]


def test_a_receiver_is_known_by_its_name_whatever_address_it_has_today() -> None:
    tunnels = Tunnels(60)
    found = []
    for at in range(0, 40, 10):
        tunnels.opened(OTHER, at, "other")
        found.append(fail(tunnels, at + 1, at + 2, Target(f"192.0.2.{at + 10}", 443)))
    assert found == [False, True, True, True]


def test_attempts_side_by_side_are_proven_together_and_counted_one_by_one() -> None:
    tunnels = Tunnels(60)
    tunnels.opened(OTHER, 0, "other")
    asked = [tunnels.ask("dead", DEAD, 1) for _ in range(3)]
    assert [tunnels.failed(one, 2 + i) for i, one in enumerate(asked)] == [False] * 3
    tunnels.opened(OTHER, 9, "other")
    asked = [tunnels.ask("dead", DEAD, 10) for _ in range(5)]
    assert [tunnels.failed(one, 11 + i) for i, one in enumerate(asked)] == [True] * 3 + [False] * 2


def test_failures_that_come_faster_than_tunnels_to_others_are_proven_by_the_next_of_those() -> None:
    tunnels = Tunnels(60, answer_s=4)
    tunnels.opened(OTHER, 0, "other")
    assert [fail(tunnels, at, at + 0.1) for at in (1, 2, 3)] == [False] * 3
    tunnels.opened(OTHER, 3.5, "other")
    assert [fail(tunnels, at, at + 0.1) for at in (4, 4.2, 4.4, 4.6)] == [True] * 3 + [False]
    assert not fail(tunnels, 8.5, 8.6), "where none has come for long, only the last failure may be proven"
    tunnels.opened(OTHER, 9, "other")
    assert [fail(tunnels, at, at + 0.1) for at in (10, 10.2)] == [True, False]


def test_each_endpoint_of_a_receiver_uses_up_its_attempts_however_many_there_are() -> None:
    """All of them fail between one tunnel and the next."""
    tunnels, found = Tunnels(60), []
    for round_ in range(5):
        tunnels.opened(OTHER, 10 * round_, "other")
        found.append({fail(tunnels, 10 * round_ + 1 + i / 1000, 10 * round_ + 8, DEAD, f"e{i}") for i in range(1000)})
    assert found == [{False}] + [{True}] * 4


def test_what_an_endpoint_has_failed_at_is_held_against_no_other_one_of_the_same_receiver() -> None:
    tunnels = Tunnels(60)
    tunnels.opened(OTHER, 0, "other")
    asked = [tunnels.ask("hasty", DEAD, 1) for _ in range(20)]
    assert [tunnels.failed(one, 2) for one in asked] == [False] * 20
    tunnels.opened(OTHER, 3, "other")
    assert fail(tunnels, 4, 5, DEAD, "hasty")
    assert [fail(tunnels, at, at + 1, DEAD, "patient") for at in range(6, 60, 2)] == [False] * 27


def test_what_was_proven_counts_for_nothing_where_nothing_was_opened_for_long_or_it_was_long_ago() -> None:
    for began_at, is_working in ((100, False), (PROVEN_S + 3, True), (PROVEN_S, True)):
        tunnels = Tunnels(60)
        tunnels.opened(OTHER, 0, "other")
        assert not fail(tunnels, 1, 2)
        tunnels.opened(OTHER, 3, "other")
        if is_working:
            tunnels.opened(OTHER, began_at - 1, "other")
        assert fail(tunnels, began_at, began_at + 1) is (began_at == PROVEN_S)


def test_the_named_one_is_asked_for_first_until_it_is_not_opened_and_then_whoever_was_reached_last() -> None:
    tunnels = Tunnels(60, NAMED)
    tunnels.opened(OTHER, 1, "other")
    tunnels.opened(THIRD, 2, "third")
    tunnels.opened(DEAD, 3, "dead")
    assert tunnels.others(DEAD, 3) == [NAMED, THIRD, OTHER]
    tunnels.not_opened(NAMED, 3)
    tunnels.not_opened(THIRD, 3)
    assert tunnels.others(DEAD, 3) == [OTHER, THIRD, NAMED]
    tunnels.opened(NAMED, 4)
    assert tunnels.others(DEAD, 4) == [NAMED, OTHER, THIRD]


def test_a_probe_that_was_not_opened_takes_back_what_its_receiver_had_told() -> None:
    tunnels = Tunnels(60)
    tunnels.opened(OTHER, 0, "other")
    tunnels.not_opened(OTHER, 1)
    assert not fail(tunnels, 2, 3)
    tunnels.opened(OTHER, 4, "other")
    assert not fail(tunnels, 5, 6)


def test_a_probe_that_was_not_opened_hides_no_other_tunnel() -> None:
    tunnels = Tunnels(60)
    tunnels.opened(OTHER, 1, "other")
    tunnels.opened(THIRD, 2, "third")
    tunnels.not_opened(THIRD, 3)
    assert tunnels.ask("dead", DEAD, 4).was_working


def test_those_that_were_reached_are_asked_for_in_turn_and_no_longer_than_a_day_after_a_webhook() -> None:
    tunnels, at = Tunnels(60), 10.0
    reached = [Target(f"192.0.2.{i}", 443) for i in range(2, 7)]
    for target in reached:
        tunnels.opened(target, at, "other")
    asked = []
    for _ in range(10):
        at += 1
        asked.append(tunnels.others(DEAD, at)[0])
        tunnels.opened(asked[-1], at)
    assert asked == 2 * reached[::-1]
    assert len(tunnels.others(DEAD, 10 + REACHED_S)) == 5
    assert tunnels.others(DEAD, 11 + REACHED_S) == [], "a tunnel to learn whether the proxy works is no reason"


def test_a_target_reads_and_writes_as_connect_has_it() -> None:
    for text in ("check.example:443", "192.0.2.1:8443", "[2001:db8::1]:443"):
        assert Target.parse(text).authority == text


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.delivery.client.tunnels.DOUBTS_MAX", 1000)
    tunnels = Tunnels(60)
    for number in range(1100):
        tunnels.opened(Target("192.0.2.9", number), number, f"r{number}")
        fail(tunnels, number, number, DEAD, f"d{number}")
    (way,) = tunnels._ways.values()
    assert (len(way.doubts), len(way.opened)) == (1000, 256)
    assert sum(map(len, way.unanswered.values())) <= 1000


def test_what_is_over_is_in_doubt_no_more_and_a_failure_at_a_new_address_takes_the_place_of_that_at_the_former() -> (
    None
):
    tunnels = Tunnels(60)
    fail(tunnels, 1, 2)
    fail(tunnels, 3, 4, THIRD)
    tunnels.answered(THIRD, "dead")
    assert not tunnels.is_in_doubt(DEAD)


def test_an_attempt_that_has_begun_in_an_outage_and_ends_after_it_is_not_counted() -> None:
    tunnels = Tunnels(60)
    tunnels.opened(OTHER, 0, "other")
    assert not fail(tunnels, 1, 16)
    straddling = tunnels.ask("dead", DEAD, 17)
    tunnels.opened(OTHER, 20, "other")
    assert not tunnels.failed(straddling, 32)


def test_by_any_course_of_things_an_outage_is_counted_against_nobody_who_is_reached_before_and_after() -> None:
    """A proxy that is up and down; receivers that always answer, and are all tried while it is up; attempts overlap."""
    counted = sum(failures_counted(random.Random(seed)) for seed in range(300))
    assert counted == 0


RECEIVERS = [Target(f"192.0.2.{i}", 443) for i in range(4)]
TIMEOUT_S = 3.0


def failures_counted(chance: random.Random) -> int:
    """Up and down in turn for 5 to 60 s; each receiver is tried again within 2 s. An attempt that begins while the
    proxy is down, or just before, is answered at once or never."""
    tunnels, counted, up_until, down_until = Tunnels(20), 0, 10.0, 30.0
    events: list[tuple[float, int, Asked | None, bool]] = [(chance.random(), i, None, False) for i in range(4)]
    now = 0.0
    while now < 400:
        events.sort(key=lambda event: event[0])
        now, i, asked, is_opened = events.pop(0)
        if now >= down_until:
            up_until = now + chance.uniform(8, 60)
            down_until = up_until + chance.uniform(5, 60)
        if asked is None:
            asked = tunnels.ask(str(i), RECEIVERS[i], now)
            took_s = chance.random() * 0.2
            is_opened = now + took_s < up_until
            lost_s = chance.choice([took_s, TIMEOUT_S])
            events.append((now + (took_s if is_opened else lost_s), i, asked, is_opened))
            continue
        if is_opened:
            tunnels.opened(RECEIVERS[i], now, str(i))
        else:
            counted += tunnels.failed(asked, now)
        events.append((now + chance.random() * 2, i, None, False))
    return counted
