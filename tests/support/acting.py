"""State machines that get deep: hypothesis alone spends most of its steps on what does nothing.

A machine lists its actions with weights. `act` takes one, drawn by hypothesis; `churn` takes many, drawn
from a seed, and checks after each of them what must always hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hypothesis import Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

Choose = Callable[[Sequence[Any]], Any]
"""Picks one of a non-empty sequence."""


def quickly(max_examples: int) -> settings:
    """Few long runs. Not shrunk, which takes minutes with long ones: a failure notes each action instead."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=max_examples, stateful_step_count=10, deadline=None, phases=phases)


class ActingMachine(RuleBasedStateMachine):
    """`ACTIONS` are names of methods that take a `Choose`, and pass when there is nothing for them to do."""

    ACTIONS: ClassVar[Mapping[str, int]] = {}

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.ACTIONS)))
        getattr(self, name)(lambda options: data.draw(st.sampled_from(options)))

    @rule(seed=st.integers(0, 2**32), steps=st.sampled_from([5, 40, 200]))
    def churn(self, seed: int, steps: int) -> None:
        rng = random.Random(seed)
        for name in rng.choices(list(self.ACTIONS), list(self.ACTIONS.values()), k=steps):
            note(name)
            getattr(self, name)(rng.choice)
            self.check()

    @invariant()
    def check(self) -> None:
        """What must hold after every action."""
