"""What every objective is, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .. import InputError
from ..models import Model
from ..registry import Registry


class Loss(NamedTuple):
    """`loss` to minimise, and its parts `nll` and `kl` to log, in nats per sample, without a
    gradient."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


class Step(NamedTuple):
    """Where the training is.

    `seed`: of the step's noise; None: torch's generator. `offset`: how many rows of the batch
    other processes have before this one's. `warm`: from 0 to 1 during the warm-up, 1 after it.
    `dataset_size`: training samples in all. `gather`: True where the batch is spread over
    processes.
    """

    seed: int | None = None
    offset: int = 0
    warm: float = 1.0
    dataset_size: int = 1
    gather: bool = False


# An objective's settings are the fields of its dataclass.
OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective", lambda cls: (field.name for field in fields(cls))
)
register, registered = OBJECTIVES.register, OBJECTIVES.registered


def build(name: str = "elbo", **settings: Any) -> Objective:
    """An objective by its name.

    Raises:
        InputError: there is no such objective, or a setting is unknown or out of range.

    Example:
        >>> build("elbo", beta=4.0)
        ELBO(beta=4.0, capacity=None, free_bits=0.0, free_bits_per='dim')
    """
    return OBJECTIVES.build(name, settings)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Objective(ABC):
    """A loss of a model on a batch; a subclass's fields are its settings."""

    name: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        """The loss on x `[B, *shape]`."""

    def check(self, model: Model) -> None:
        """Raises InputError where the objective cannot be had of this model; takes any here."""
        return

    def held_out(self, model: Model, x: Tensor, step: Step, *, samples: int = 1) -> Loss:
        """What is measured on held-out x: -ELBO at beta = 1, the same for all objectives, unless
        the objective trains no posterior."""
        z, kl = model.draw(x, num_samples=samples, seed=step.seed, offset=step.offset)
        data, kl = mean(model.nll(z, x, seed=step.seed, offset=step.offset)), mean(kl)
        return Loss(data + kl, data, kl)


def at_least(name: str, value: float, least: float) -> None:
    """Raises InputError where a setting is below `least`, or no number."""
    if not value >= least or value == float("inf"):
        raise InputError(f"{name} must be at least {least:g} and finite, got {value}")


def mean(values: Tensor) -> Tensor:
    """The mean over the batch; 0 of an empty one."""
    return values.sum() / max(1, values.numel())
