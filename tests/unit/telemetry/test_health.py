"""What health promises: it turns after the grace, and draining is for good."""

from __future__ import annotations

from dispatcher.telemetry.health import Health


class Database:
    away_s = 0.0


def ready_health(database: Database) -> Health:
    health = Health(database_away_s=5)
    health.follow_database(lambda: database.away_s)
    health.started()
    return health


def test_an_instance_is_not_ready_before_it_has_started() -> None:
    health = Health(database_away_s=5)
    assert not health.is_ready
    assert [problem.check for problem in health.problems()] == ["starting"]
    health.started()
    assert health.is_ready


def test_a_lost_database_counts_only_after_its_grace_and_no_longer_than_it_is_away() -> None:
    database = Database()
    health = ready_health(database)
    database.away_s = 4.9
    assert health.is_ready
    database.away_s = 5.0
    (problem,) = health.problems()
    assert (problem.check, problem.text, problem.age_s) == ("database", "does not answer", 5.0)
    assert not health.is_ready
    database.away_s = 0.0
    assert health.is_ready


def test_a_database_that_answers_is_no_problem_even_without_grace() -> None:
    health = Health(database_away_s=0)
    health.started()
    assert health.is_ready


def test_a_check_counts_from_its_first_failure_in_a_row() -> None:
    now = [10.0]
    health = Health(database_away_s=5, clock=lambda: now[0])
    health.started()
    health.fail("leases", "none")
    now[0] = 13.0
    health.fail("leases", "still none")
    (problem,) = health.problems()
    assert (problem.text, problem.age_s) == ("still none", 3.0)
    health.clear("leases")
    assert health.is_ready


def test_draining_counts_at_once_and_never_ends() -> None:
    health = ready_health(Database())
    assert not health.is_draining
    health.start_draining()
    health.clear("draining")
    health.started()
    assert health.is_draining
    assert not health.is_ready
