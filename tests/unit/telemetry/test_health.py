"""What health promises: it turns after the grace, and draining is for good."""

from __future__ import annotations

from dispatcher.telemetry.health import Health


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_instance_is_not_ready_before_it_has_started() -> None:
    health = Health(database_away_s=5)
    assert not health.is_ready
    assert [problem.check for problem in health.problems()] == ["starting"]
    health.started()
    assert health.is_ready


def test_a_lost_database_counts_only_after_its_grace() -> None:
    clock = Clock()
    health = Health(database_away_s=5, clock=clock)
    health.started()
    health.database_lost("connection refused")
    clock.now += 4.9
    health.database_lost("still refused")
    assert health.is_ready
    clock.now += 0.1
    (problem,) = health.problems()
    assert (problem.check, problem.text, round(problem.age_s, 3)) == ("database", "still refused", 5.0)
    assert not health.is_ready
    health.database_seen()
    assert health.is_ready


def test_the_grace_starts_anew_after_the_database_was_seen() -> None:
    clock = Clock()
    health = Health(database_away_s=5, clock=clock)
    health.started()
    health.database_lost("x")
    clock.now += 4
    health.database_seen()
    health.database_lost("x")
    clock.now += 4
    assert health.is_ready


def test_draining_counts_at_once_and_never_ends() -> None:
    health = Health(database_away_s=5)
    health.started()
    assert not health.is_draining
    health.start_draining()
    health.clear("draining")
    health.started()
    assert health.is_draining
    assert not health.is_ready
