"""A circuit opens on a failure ratio, costs no attempt while it is open, and one probe decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from hypothesis.stateful import initialize

from dispatcher.delivery.circuit import Circuit, CircuitPolicy, CircuitState, Transition
from tests.support.acting import ActingMachine, Choose, quickly

POLICY = CircuitPolicy(failure_ratio=0.5, window_s=10, attempts_min=4, open_s=5)


def end(circuit: Circuit, now: float, *results: bool) -> list[Transition | None]:
    found = []
    for failed in results:
        circuit.begin(now)
        found.append(circuit.ended(now, failed=failed))
    return found


def test_it_opens_when_enough_attempts_of_the_window_have_failed() -> None:
    circuit = Circuit(POLICY)
    assert end(circuit, 0, False, False, True, True) == [None, None, None, Transition.OPENED]
    assert circuit.state is CircuitState.OPEN
    assert circuit.opens_at(0) == 5


def test_few_attempts_open_nothing_and_old_ones_are_forgotten() -> None:
    circuit = Circuit(POLICY)
    assert end(circuit, 0, True, True, True) == [None] * 3
    assert end(circuit, 20, True) == [None]
    assert circuit.state is CircuitState.CLOSED


def test_a_success_never_opens_it() -> None:
    circuit = Circuit(POLICY)
    end(circuit, 0, True, True, True)
    assert end(circuit, 1, False) == [None]
    assert end(circuit, 1, True) == [Transition.OPENED]


def test_one_probe_decides() -> None:
    circuit = Circuit(POLICY)
    end(circuit, 0, True, True, True, True)
    circuit.begin(5)
    assert circuit.state is CircuitState.HALF_OPEN
    assert circuit.opens_at(5) == 10  # nobody else, until the probe has had its time
    assert circuit.ended(6, failed=True) is None
    assert (circuit.state, circuit.opens_at(6)) == (CircuitState.OPEN, 11)
    circuit.begin(11)
    assert circuit.ended(12, failed=False) is Transition.CLOSED
    assert end(circuit, 12, True, True, True) == [None] * 3  # it counts from nothing again


def test_what_began_before_it_opened_does_not_close_it() -> None:
    circuit = Circuit(POLICY)
    circuit.begin(0)
    end(circuit, 0, True, True, True, True)
    assert circuit.ended(1, failed=False) is None
    assert circuit.state is CircuitState.OPEN


def test_a_probe_that_never_ends_is_followed_by_another() -> None:
    circuit = Circuit(POLICY)
    end(circuit, 0, True, True, True, True)
    circuit.begin(5)
    assert circuit.opens_at(10) <= 10
    circuit.begin(10)
    assert circuit.ended(10, failed=False) is Transition.CLOSED


def test_switched_off_it_is_closed() -> None:
    circuit = Circuit(POLICY)
    end(circuit, 0, True, True, True, True)
    circuit.configure(CircuitPolicy(off=True))
    assert end(circuit, 1, *[True] * 20) == [None] * 20
    assert circuit.opens_at(1) == 1


class CircuitMachine(ActingMachine):
    """Against the sentence: in any open_s at most one attempt begins from OPENED to CLOSED, and they alternate."""

    ACTIONS: ClassVar[Mapping[str, int]] = {"begin": 10, "answer": 10, "time_passes": 6}

    @initialize()
    def start(self) -> None:
        self.circuit, self.now = Circuit(POLICY), 0.0
        self.flying = 0
        self.is_out = False
        self.begun_at: list[float] = []

    def begin(self, _: Choose) -> None:
        if self.circuit.opens_at(self.now) > self.now:
            return
        if self.is_out:
            assert not self.begun_at or self.now >= self.begun_at[-1] + POLICY.open_s
            self.begun_at.append(self.now)
        self.circuit.begin(self.now)
        self.flying += 1

    def answer(self, choose: Choose) -> None:
        if not self.flying:
            return
        self.flying -= 1
        failed = choose([True, True, False])
        transition = self.circuit.ended(self.now, failed=failed)
        if transition is Transition.OPENED:
            assert failed
            assert not self.is_out
            self.is_out, self.begun_at = True, [self.now]
        elif transition is Transition.CLOSED:
            assert not failed
            assert self.is_out
            self.is_out = False
        elif self.is_out and failed and self.circuit.state is CircuitState.OPEN:
            self.begun_at.append(self.now) if self.circuit.probe_at == self.now + POLICY.open_s else None

    def time_passes(self, choose: Choose) -> None:
        self.now += choose([0.1, 1.0, 5.0, 30.0])

    def check(self) -> None:
        assert (self.circuit.state is CircuitState.CLOSED) is not self.is_out


TestCircuit = CircuitMachine.TestCase
TestCircuit.settings = quickly(max_examples=100)
