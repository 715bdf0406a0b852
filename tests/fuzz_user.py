"""A likelihood that the library has no kernel of, registered as a user does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vaefast import likelihoods


def rayleigh(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    (sigma,), (power,) = params, numbers
    return power * (0.5 * (x / sigma) ** 2 + 2 * torch.log(sigma) - torch.log(x))


@likelihoods.register("fuzz_rayleigh", rayleigh)
@dataclass(frozen=True, eq=False)
class Rayleigh(likelihoods.Likelihood):
    power: float = 1.0
    param_names: ClassVar[tuple[str, ...]] = ("sigma",)

    def positive_params(self) -> frozenset[str]:
        return frozenset({"sigma"})

    def draw(self, params: tuple[Tensor, ...], noise: likelihoods.Noise) -> Tensor:
        return params[0] * torch.sqrt(-2 * torch.log(noise("uniform")))
