"""Schedules for beta, capacity and free bits: a value per step, with a state to save.

Each is a function of the step, `schedule(step)`, and counts steps of its own: `schedule.step()`
gives the value of the current step and moves to the next.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from ._args import integer, number

__all__ = ["Capacity", "Cosine", "Cyclical", "FreeBits", "Linear", "Schedule"]


class Schedule(ABC):
    """A number that depends on the step.

    Subclasses give `__call__`. `load_state_dict` brings back the position and the settings, so a
    resumed run goes on as it was begun whatever the new one was constructed with.
    """

    def __init__(self) -> None:
        self.position = 0

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The value at `step`, from 0."""

    @property
    def value(self) -> float:
        """The value at the current step."""
        return self(self.position)

    def step(self) -> float:
        """The value at the current step; the next call gives the next step's."""
        value = self.value
        self.position += 1
        return value

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs, plain numbers."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over `state`, as `state_dict` of the same class gave it.

        Raises:
            ValueError: it is not of this class.
        """
        if set(state) != set(vars(self)):
            raise ValueError(
                f"state of {type(self).__name__} must have the keys {sorted(vars(self))}, got "
                f"{sorted(state)}"
            )
        vars(self).update(state)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Linear(Schedule):
    """From `start` to `stop` in `steps` steps after `delay`, and constant before and after.

    KL annealing, Bowman et al. 2016, section 3.1.

    Example:
        >>> beta = Linear(steps=4)
        >>> [beta.step() for _ in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self, start: float = 0.0, stop: float = 1.0, *, steps: int, delay: int = 0
    ) -> None:
        super().__init__()
        self.start, self.stop = number("start", start), number("stop", stop)
        self.steps = integer("steps", steps, least=1)
        self.delay = integer("delay", delay, least=0)

    def __call__(self, step: int) -> float:
        done = min(max(step - self.delay, 0) / self.steps, 1.0)
        return self.start + (self.stop - self.start) * self._shape(done)

    def _shape(self, done: float) -> float:
        return done


class Cosine(Linear):
    """As `Linear`, along half a cosine: flat at both ends.

    Example:
        >>> beta = Cosine(steps=2)
        >>> [round(beta(step), 6) for step in (0, 1, 2, 3)]
        [0.0, 0.5, 1.0, 1.0]
    """

    def _shape(self, done: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * done)


class Cyclical(Schedule):
    """Rises from `start` to `stop` in the first `ratio` of each of `cycles` equal parts of `steps`,
    stays there for the rest of the part, and after the last one.

    Fu et al. 2019, "Cyclical Annealing Schedule", equation 6, with R = `ratio`, M = `cycles`.

    Example:
        >>> beta = Cyclical(steps=8, cycles=2)
        >>> [beta(step) for step in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        start: float = 0.0,
        stop: float = 1.0,
        *,
        steps: int,
        cycles: int = 4,
        ratio: float = 0.5,
    ) -> None:
        super().__init__()
        self.start, self.stop = number("start", start), number("stop", stop)
        self.steps = integer("steps", steps, least=1)
        self.cycles = integer("cycles", cycles, least=1)
        self.ratio = ratio = number("ratio", ratio)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {ratio}")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.stop
        # In whole numbers: the cycle's fraction would jump a step early or late by rounding.
        done = max(step, 0) * self.cycles % self.steps / self.steps
        return self.start + (self.stop - self.start) * min(done / self.ratio, 1.0)


class Capacity(Linear):
    """C of `elbo_loss(capacity=C)`, in nats: from 0 to `stop` in `steps` steps.

    Burgess et al. 2018, "Understanding disentangling in beta-VAE", section 5.

    Example:
        >>> capacity = Capacity(25.0, steps=100)
        >>> capacity(0), capacity(50), capacity(1000)
        (0.0, 12.5, 25.0)
    """

    def __init__(self, stop: float, *, steps: int, delay: int = 0) -> None:
        super().__init__(0.0, stop, steps=steps, delay=delay)


class FreeBits(Linear):
    """`free_bits` of a KL, in nats: from `start` down to `stop` in `steps` steps after `delay`.

    A threshold keeps the posterior from collapsing early (Kingma et al. 2016, appendix C.8);
    taken away, the loss is the ELBO again.

    Example:
        >>> bits = FreeBits(0.5, steps=10)
        >>> bits(0), bits(5), bits(10)
        (0.5, 0.25, 0.0)
    """

    def __init__(self, start: float, stop: float = 0.0, *, steps: int, delay: int = 0) -> None:
        if start < 0 or stop < 0:
            raise ValueError(f"free bits must be at least 0, got {start} to {stop}")
        super().__init__(start, stop, steps=steps, delay=delay)
