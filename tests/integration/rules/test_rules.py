"""Each alert on made-up series, by Prometheus' own promtool: it fires, does not fire below, and resolves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.promtool import RULE_FILES, Case, alerts, check, needs_promtool, run_promtool

pytestmark = needs_promtool

HOUR = 60
MIB = 2**20
DAY = 24 * HOUR
A, B = 'namespace="prod",job="dispatcher",instance="a"', 'namespace="prod",job="dispatcher",instance="b"'
HOME = {"namespace": "prod", "job": "dispatcher"}


def slo(result: str, values: str) -> tuple[str, str]:
    return f'dispatcher_slo_deliveries_total{{{A},dispatcher_slo_result="{result}"}}', values


def gauge(name: str, *phases: tuple[float, int], labels: str = A) -> tuple[str, str]:
    """A gauge that has each value for so many minutes."""
    return f"{name}{{{labels}}}", " ".join(f"{value}x{minutes - 1}" for value, minutes in phases)


def counter(name: str, *phases: tuple[float, int], labels: str = A) -> tuple[str, str]:
    """A counter that grows by so much a step, which is a minute unless told otherwise, for so many steps."""
    at, parts = 0.0, []
    for step, minutes in phases:
        parts.append(f"{at:g}+{step:g}x{minutes - 1}")
        at += step * minutes
    return f"{name}{{{labels}}}", " ".join(parts)


def labelled(name: str, value: str) -> str:
    return f'{A},{name}="{value}"'


LATE, GOOD = labelled("dispatcher_slo_result", "late"), labelled("dispatcher_slo_result", "good")
SLOW = labelled("dispatcher_slo_result", "slow")
SLO = "dispatcher_slo_deliveries_total"
CALLS = "rpc_server_call_duration_seconds_count"
BUCKETS = "db_client_operation_duration_seconds_bucket"
OTHER_OWNED = 'dispatcher_partitions_owned{namespace="test",job="dispatcher",instance="c"}'
ATTEMPTS = "dispatcher_attempt_duration_seconds_count"
OK, PROXY = (labelled("dispatcher_attempt_outcome", word) for word in ("succeeded", "egress_proxy_failed"))
DEAD = labelled("dispatcher_delivery_outcome", "dead_lettered")

CASES = (
    # 5 % late is below both burn rates that wake somebody, 20 % above.
    Case(
        "DispatcherDeliverySloBurnFast",
        dict([
            counter(SLO, (95, 2 * HOUR), (80, 2 * HOUR), (100, 8 * HOUR), labels=GOOD),
            counter(SLO, (5, 2 * HOUR), (20, 2 * HOUR), (0, 8 * HOUR), labels=LATE),
        ]),
        quiet=(20, 5 * HOUR, 11 * HOUR),
        fires=(3 * HOUR + 30,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherDeliverySloBurnSlow",
        dict([
            counter(SLO, (995, 2 * DAY // 10), (960, DAY // 10), (1000, DAY // 10), labels=GOOD),
            counter(SLO, (5, 2 * DAY // 10), (40, DAY // 10), (0, DAY // 10), labels=LATE),
        ]),
        quiet=(2 * DAY, 3 * DAY + 10 * HOUR),
        fires=(3 * DAY,),
        labels={"severity": "warning", **HOME},
        step_min=10,
    ),
    # One of twenty deliveries a day is no trend: never ten late ones in a day.
    Case(
        "DispatcherDeliverySloBurnSlow",
        dict([
            counter(SLO, (0.1, 3 * DAY // 10), labels=GOOD),
            counter(SLO, (0.05, 3 * DAY // 10), labels=LATE),
        ]),
        quiet=(2 * DAY, 3 * DAY),
        fires=(),
        labels={"severity": "warning", **HOME},
        step_min=10,
    ),
    Case(
        "DispatcherReceiversSlow",
        dict([
            counter(SLO, (95, 2 * HOUR), (80, 2 * HOUR), (100, 2 * HOUR), labels=GOOD),
            counter(SLO, (5, 2 * HOUR), (20, 2 * HOUR), (0, 2 * HOUR), labels=SLOW),
        ]),
        quiet=(HOUR, 2 * HOUR + 20, 5 * HOUR),
        fires=(4 * HOUR - 1,),
        labels={"severity": "warning", **HOME},
    ),
    # Two in forty minutes, of two, are no trend.
    Case(
        "DispatcherReceiversSlow",
        dict([
            counter(SLO, (0, 6 * HOUR // 10), labels=GOOD),
            counter(SLO, (0, 6), (1, 2), (0, 20), labels=SLOW),
        ]),
        quiet=(80, 90, 100, 110),
        fires=(),
        labels={"severity": "warning", **HOME},
        step_min=10,
    ),
    Case(
        "DispatcherDeliveriesStalled",
        dict([gauge("dispatcher_slo_late_age_seconds", (120, 20), (121, 20), (0, 20))]),
        quiet=(15, 22, 45),
        fires=(30,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherBacklogOld",
        dict([gauge("dispatcher_backlog_age_seconds", (3600, 20), (3700, 20), (0, 20))]),
        quiet=(19, 25, 45),
        fires=(35,),
        labels={"severity": "warning", **HOME},
    ),
    Case(
        "DispatcherEndpointHalted",
        dict([
            gauge("dispatcher_lanes_halted", (0, 10), (1, 10), (0, 10)),
            gauge("dispatcher_lanes_halted", (0, 30), labels=B),
        ]),
        quiet=(5, 25),
        fires=(15,),
        labels={"severity": "warning", **HOME},
    ),
    Case(
        "DispatcherDeadLetters",
        dict([counter("dispatcher_deliveries_total", (0, 20), (1, 3), (0, 37), labels=DEAD)]),
        quiet=(15, 45),
        fires=(24,),
        labels={"severity": "warning", **HOME},
    ),
    # A takeover gives a backlog up before its first scrape; a gap between two scrapes, later, is no start.
    Case(
        "DispatcherDeadLetters",
        {
            f"dispatcher_deliveries_total{{{DEAD}}}": "_x9 500x49 _x29 500x60",
            f'dispatcher_deliveries_total{{{B},dispatcher_delivery_outcome="dead_lettered"}}': "0x150",
        },
        quiet=(8, 30, 91, 104, 106, 140),
        fires=(12, 22),
        labels={"severity": "warning", **HOME},
    ),
    # Two hours without a scrape are no start either; a new pod is one, and so is one that began anew meanwhile.
    Case(
        "DispatcherDeadLetters",
        {
            f"dispatcher_deliveries_total{{{DEAD}}}": "500x60 _x120 500x180",
            f'dispatcher_deliveries_total{{{B},dispatcher_delivery_outcome="dead_lettered"}}': "_x240 2x120",
        },
        quiet=(30, 182, 190, 235, 270),
        fires=(5, 245),
        labels={"severity": "warning", **HOME},
    ),
    Case(
        "DispatcherDeadLetters",
        {f"dispatcher_deliveries_total{{{DEAD}}}": "500x60 _x120 2x120"},
        quiet=(30, 220),
        fires=(185,),
        labels={"severity": "warning", **HOME},
    ),
    Case(
        "DispatcherCircuitsOpen",
        dict([gauge("dispatcher_circuits_open", (0, 10), (2, 30), (0, 10))]),
        quiet=(9, 20, 45),
        fires=(35,),
        labels={"severity": "info", **HOME},
    ),
    # One of ten is what a few silent receivers may come to; and of five in all nothing follows.
    Case(
        "DispatcherEgressProxyFails",
        dict([
            counter(ATTEMPTS, (95, 30), (60, 30), (100, 30), (0, 60), labels=OK),
            counter(ATTEMPTS, (5, 30), (40, 30), (0, 30), (0, 60), labels=PROXY),
        ]),
        quiet=(25, 32, 80, 140),
        fires=(55,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherEgressProxyFails",
        dict([counter(ATTEMPTS, (0, 10), (0.4, 60), labels=PROXY)]),
        quiet=(30, 60),
        fires=(),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherFlushLag",
        dict([gauge("dispatcher_flush_lag_seconds", (0.9, 10), (1.2, 10), (0, 10))]),
        quiet=(9, 25),
        fires=(15,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherFlushDropped",
        dict([counter("dispatcher_flush_dropped_total", (0, 20), (1, 1), (0, 90))]),
        quiet=(15, 100),
        fires=(30,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherFlushDropped",
        {f"dispatcher_flush_dropped_total{{{A}}}": "_x9 500x110"},
        quiet=(8, 75),
        fires=(12, 65),
        labels={"severity": "critical", **HOME},
    ),
    # As above: a gap is no start, a new pod is one.
    Case(
        "DispatcherFlushDropped",
        {
            f"dispatcher_flush_dropped_total{{{A}}}": "3x120 _x180 3x300",
            f"dispatcher_flush_dropped_total{{{B}}}": "_x400 1x200",
        },
        quiet=(100, 302, 330, 359, 395, 470),
        fires=(30, 410, 455),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherAbsent",
        {f"dispatcher_partitions_owned{{{A}}}": "256x20 _x20 256x20", OTHER_OWNED: "256x60"},
        quiet=(15, 22, 55),
        fires=(35,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherAbsent",
        {f"dispatcher_partitions_owned{{{A}}}": "_x20 256x20"},
        quiet=(2, 30),
        fires=(15,),
        labels={"severity": "critical"},
    ),
    Case(
        "DispatcherPartitionsUnowned",
        dict([
            gauge("dispatcher_partitions_owned", (128, 60)),
            gauge("dispatcher_partitions_owned", (128, 20), (127, 20), (128, 20), labels=B),
        ]),
        quiet=(15, 21, 55),
        fires=(30,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherInstanceDown",
        {
            f"dispatcher_partitions_owned{{{A}}}": "256x20 _x20 256x20",
            f"up{{{A}}}": "1x20 0x20 1x20",
            'up{namespace="prod",job="another",instance="c"}': "0x60",
        },
        quiet=(15, 23, 55),
        fires=(35,),
        labels={"severity": "warning", "instance": "a", **HOME},
    ),
    Case(
        "DispatcherLeaseChurn",
        dict([
            counter("dispatcher_lease_changes_total", (0, 20), (3, 1), (0, 60), labels=labelled(
                "dispatcher_lease_change", "lost"
            )),
        ]),
        quiet=(15, 60),
        fires=(25,),
        labels={"severity": "warning", **HOME},
    ),
    Case(
        "DispatcherWorkersDying",
        dict([counter("dispatcher_workers_ended_total", (0, 20), (1, 1), (0, 30), (1, 5), (0, 60))]),
        quiet=(15, 25, 100),
        fires=(58,),
        labels={"severity": "warning", "instance": "a", **HOME},
    ),
    # One every 20 minutes, for ever: never three within 15. A roll-out's new pod counts from 0.
    Case(
        "DispatcherWorkersDying",
        {
            f"dispatcher_workers_ended_total{{{A}}}": " ".join(f"{died}x19" for died in range(30)) + " 30x400",
            f"dispatcher_workers_ended_total{{{B}}}": "_x100 0x900",
        },
        quiet=(15, 100, 599 + 380),
        fires=(200, 400, 599),
        labels={"severity": "warning", "instance": "a", **HOME},
    ),
    # A few in six hours are no trend.
    Case(
        "DispatcherWorkersDying",
        {f"dispatcher_workers_ended_total{{{A}}}": " ".join(f"{died}x89" for died in range(10))},
        quiet=(300, 600, 890),
        fires=(),
        labels={"severity": "warning", "instance": "a", **HOME},
    ),
    Case(
        "DispatcherPublishQueue",
        dict([gauge("dispatcher_publish_queue_events", (5000, 10), (5001, 10), (0, 10))]),
        quiet=(9, 11, 25),
        fires=(15,),
        labels={"severity": "warning", **HOME},
    ),
    # Large payloads: half of the bytes, few events.
    Case(
        "DispatcherPublishQueue",
        dict([
            gauge("dispatcher_publish_queue_events", (64, 30)),
            gauge("dispatcher_publish_queue_bytes", (32 * MIB, 10), (32 * MIB + 1, 10), (0, 10)),
        ]),
        quiet=(9, 11, 25),
        fires=(15,),
        labels={"severity": "warning", **HOME},
    ),
    Case(
        "DispatcherCallsFail",
        dict([
            counter(CALLS, (96, 30), (90, 30), (100, 30), labels=labelled("rpc_response_status_code", "OK")),
            counter(CALLS, (4, 30), (10, 30), (0, 30), labels=labelled("error_type", "UNAVAILABLE")),
        ]),
        quiet=(25, 31, 80),
        fires=(55,),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherCallsFail",
        dict([
            counter(CALLS, (1, 60), labels=labelled("rpc_response_status_code", "OK")),
            counter(CALLS, (1, 60), labels=labelled("error_type", "UNAVAILABLE")),
            counter(CALLS, (100, 60), labels=labelled("error_type", "UNIMPLEMENTED")),
        ]),
        quiet=(30, 55),
        fires=(),
        labels={"severity": "critical", **HOME},
    ),
    Case(
        "DispatcherDatabaseSlow",
        dict([
            counter(BUCKETS, (100, 30), (90, 30), (100, 30), labels=labelled("le", "0.1")),
            counter(BUCKETS, (100, 90), labels=labelled("le", "0.5")),
            counter(BUCKETS, (100, 90), labels=labelled("le", "+Inf")),
        ]),
        quiet=(25, 35, 80),
        fires=(55,),
        labels={"severity": "warning", **HOME},
    ),
    Case(
        "DispatcherXminHeld",
        dict([
            gauge("dispatcher_database_xmin_held_seconds", (3600, 20), (3700, 20), (0, 20), labels=labelled(
                "dispatcher_xmin_holder", "slot"
            )),
        ]),
        quiet=(19, 22, 45),
        fires=(35,),
        labels={"severity": "warning", "dispatcher_xmin_holder": "slot", **HOME},
    ),
    Case(
        "DispatcherRetentionBlocked",
        dict([
            gauge("dispatcher_retention_blocked", (0, HOUR), (1, 4 * HOUR), (0, HOUR), labels=labelled(
                "dispatcher_retention_reason", "in_use"
            )),
        ]),
        quiet=(50, 2 * HOUR, 5 * HOUR + 10),
        fires=(4 * HOUR,),
        labels={"severity": "warning", "dispatcher_retention_reason": "in_use", **HOME},
    ),
    # Within the last two hours, at any instance, is soon enough.
    Case(
        "DispatcherUpkeepFails",
        {
            f"dispatcher_upkeep_last_success_seconds{{{A}}}": f"0+60x{2 * HOUR} {2 * HOUR * 60}x{3 * HOUR} "
            f"{5 * HOUR * 60}+60x{2 * HOUR}",
            f"dispatcher_upkeep_last_success_seconds{{{B}}}": f"0x{7 * HOUR}",
        },
        quiet=(HOUR, 4 * HOUR + 20, 6 * HOUR),
        fires=(4 * HOUR + 40,),
        labels={"severity": "warning", **HOME},
    ),
    # One that has never gone through.
    Case(
        "DispatcherUpkeepFails",
        {f"dispatcher_upkeep_last_success_seconds{{{A}}}": f"_x{5 * HOUR} 0x{2 * HOUR}"},
        quiet=(5 * HOUR + 20,),
        fires=(5 * HOUR + 40,),
        labels={"severity": "warning", **HOME},
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_is_quiet_below_and_resolves(case: Case, tmp_path: Path) -> None:
    assert check(case, tmp_path) == ""


def test_every_alert_is_tried() -> None:
    assert {case.alert for case in CASES} == set(alerts())


def test_a_rule_that_never_fires_is_found_out(tmp_path: Path) -> None:
    """The tests above would pass nothing: with its threshold moved, the same case fails."""
    case = next(case for case in CASES if case.alert == "DispatcherFlushLag")
    moved = tmp_path / "moved.yaml"
    text = next(file for file in RULE_FILES if file.stem == "alerts").read_text()
    assert "dispatcher_flush_lag_seconds) > 1\n" in text
    moved.write_text(text.replace("dispatcher_flush_lag_seconds) > 1\n", "dispatcher_flush_lag_seconds) > 2\n"))
    assert "DispatcherFlushLag" in check(case, tmp_path, [moved])
    moved.write_text(text.replace("dispatcher_flush_lag_seconds) > 1\n", "dispatcher_flush_lag_seconds) > 0\n"))
    assert "DispatcherFlushLag" in check(case, tmp_path, [moved])


def test_a_crash_loop_is_churn_though_no_lease_is_lost(tmp_path: Path) -> None:
    acquired = labelled("dispatcher_lease_change", "acquired")
    case = Case(
        "DispatcherLeaseChurn",
        dict([counter("dispatcher_lease_changes_total", (10, 90), (30, 90), (0, 90), labels=acquired)]),
        quiet=(80, 260),
        fires=(170,),
        labels={"severity": "warning", **HOME},
    )
    assert check(case, tmp_path) == ""


def test_a_few_late_deliveries_of_few_wake_nobody(tmp_path: Path) -> None:
    """One of three in an hour is a third, and says nothing."""
    case = Case(
        "DispatcherDeliverySloBurnFast",
        dict([
            counter(SLO, (0, 70), (2, 3), (0, 60), labels=GOOD),
            counter(SLO, (0, 70), (1, 3), (0, 60), labels=LATE),
        ]),
        quiet=(74, 76, 80, 100),
        fires=(),
        labels={},
    )  # fmt: skip
    assert check(case, tmp_path) == ""


def test_what_is_excused_or_slow_spends_no_budget(tmp_path: Path) -> None:
    excused = labelled("dispatcher_slo_result", "excused")
    case = Case(
        "DispatcherDeliverySloBurnFast",
        dict([counter(SLO, (50, 3 * HOUR), labels=excused), counter(SLO, (50, 3 * HOUR), labels=SLOW),
              counter(SLO, (0, 3 * HOUR), labels=LATE)]),
        quiet=(HOUR, 2 * HOUR, 3 * HOUR - 1),
        fires=(),
        labels={},
    )  # fmt: skip
    assert check(case, tmp_path) == ""


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.name)
def test_promtool_finds_nothing_wrong_with_a_file(file: Path) -> None:
    done = run_promtool("check", "rules", file)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "SUCCESS" in done.stdout


def test_promtool_refuses_what_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    rule = {"alert": "Broken", "expr": "sum(x", "annotations": {"summary": "{{ $value | nosuch }}"}}
    broken.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))
    assert run_promtool("check", "rules", broken).returncode != 0
