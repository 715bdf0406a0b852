"""Every likelihood in the registry with parameters and targets that it takes."""

from __future__ import annotations

import random
from typing import NamedTuple

import cases
import reference64
import torch
from torch import Tensor

from vaefast import likelihoods
from vaefast.backends.reference.likelihoods import FORMULAS
from vaefast.likelihoods import Domain, Likelihood

# Settings beside the defaults. A tensor is a learned scalar.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "bernoulli": [{"logits": False}],
    "gaussian": [{"std": 0.3}, {"std": torch.tensor(0.7)}],
    "laplace": [{"scale": 0.3}, {"scale": torch.tensor(0.7)}],
    "poisson": [{"log": False}],
    "discretized_logistic": [{"bits": 3, "low": 0.0}],
}


def kind(domain: Domain) -> str:
    """What a parameter of that domain is: "real", "positive" or a "probability"."""
    if bool(domain.inside(torch.tensor(-1.0))):
        return "real"
    return "positive" if bool(domain.inside(torch.tensor(2.0))) else "probability"


class LikelihoodCase(NamedTuple):
    """A likelihood's settings, and how many parameter tensors it is given."""

    name: str
    settings: dict[str, object]
    count: int
    form: str

    def __str__(self) -> str:
        return self.form if not self.settings else f"{self.form}-{sorted(self.settings)[0]}"

    def build(self, scalar: Tensor | None = None) -> Likelihood:
        """The likelihood; a learned scalar's tensor is `scalar` where that is given."""
        made = {
            key: scalar if isinstance(value, Tensor) and scalar is not None else value
            for key, value in self.settings.items()
        }
        return likelihoods.registered()[self.name](**made)

    @property
    def scalar(self) -> Tensor | None:
        """A learned scalar's value, a tensor of one's own at every call."""
        found = (v for v in self.settings.values() if isinstance(v, Tensor))
        return next((v.clone() for v in found), None)

    def params(
        self, shape: tuple[int, ...], rng: random.Random, scale: float = 1.0
    ) -> list[Tensor]:
        """Parameters in float64."""
        names = likelihoods.registered()[self.name].param_names
        return [self.param(names[index], shape, rng, scale) for index in range(self.count)]

    def param(
        self, name: str, shape: tuple[int, ...], rng: random.Random, scale: float = 1.0
    ) -> Tensor:
        """One parameter in float64, of values that it may have."""
        what = kind(self.build().domain(name))
        if what == "probability":
            return cases.uniform(shape, rng).mul(0.98).add(0.01)
        values = cases.normal(shape, rng, scale)
        return values.exp() if what == "positive" else values

    def target(self, shape: tuple[int, ...], rng: random.Random) -> Tensor:
        """A target in float64 that the likelihood gives mass to."""
        values = self.build().sample(tuple(self.params(shape, rng)), seed=rng.getrandbits(40))
        if self.name == "bernoulli":
            # Intensities too, not only what can be drawn.
            values = torch.where(values > 0.5, cases.uniform(shape, rng), values)
        return values

    def truth(self, target: Tensor, params: list[Tensor]) -> Tensor:
        """-log p(target) per element in float64: by an independent formula where there is one,
        else by this library's own."""
        model = self.build()
        x = target.to(params[0].dtype)
        if target.dtype == torch.uint8:
            x = x / model.uint8_scale
        if self.form in reference64.DENSITIES:
            return reference64.density(self.form, x, params, model)
        form = model.form_for(tuple(params[: self.count]), target)
        return FORMULAS[self.form](x, tuple(params), form.numbers)

    def levels(self) -> list[float] | None:
        """The values that x can take, or None for a continuous one."""
        model = self.build()
        if hasattr(model, "bits"):
            return torch.linspace(
                model.low, model.high, 2**model.bits, dtype=torch.float64
            ).tolist()
        if self.name == "bernoulli":
            return [0.0, 1.0]
        return None if bool(model.support(torch.tensor(0.5))) else [float(k) for k in range(2000)]


def _found() -> list[LikelihoodCase]:
    found = []
    for name, cls in likelihoods.registered().items():
        for settings in [{}, *VARIANTS.get(name, [])]:
            for count in range(1, len(cls.param_names) + 1):
                try:
                    form = cls(**settings).form(tuple(torch.zeros(2, 3) for _ in range(count)))
                except ValueError:
                    continue
                if not settings or count == 1:
                    found.append(LikelihoodCase(name, settings, count, form.name))
    return found


ALL = _found()
EVERY_FORM = [*FORMULAS]
