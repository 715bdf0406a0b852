"""A call of every public operator, made from the names of its arguments.

An argument's name says its shape: `mu` is `[B, *latent]` in all operators. A new operator has
calls here without a new line, unless it has an argument of a new name or meaning.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cases
import torch
from torch import Tensor

import vaefast.ops


class Sizes(NamedTuple):
    """Each dimension that an operator has, all different, so that a result's shape tells them."""

    samples: int = 2
    batch: int = 5
    latent: int = 3
    data: int = 7
    hidden: int = 4
    components: int = 6


def _weigh(s: Sizes) -> Callable[[Tensor], Tensor]:
    return lambda z: -z.square().flatten(2).sum(2)


POSTERIOR = ("batch", "latent")
# The shape of each tensor argument; where an operator has its own, under "operator.argument".
SHAPES: dict[str, tuple[str, ...]] = {
    "mu": POSTERIOR,
    "scale": POSTERIOR,
    "prior_mu": ("latent",),
    "prior_scale": POSTERIOR,
    "z": ("samples", "batch", "latent"),
    "z_flow": ("samples", "batch", "latent"),
    "x": ("batch", "latent"),
    "y": ("components", "latent"),
    "tril": ("batch", "latent", "latent"),
    "params": ("samples", "batch", "data"),
    "target": ("batch", "data"),
    "h": ("samples", "batch", "hidden"),
    "bias": ("data",),
    "log_w": ("samples", "batch"),
    "log_det": ("samples", "batch"),
    "log_prior": ("samples", "batch"),
    "sample_weight": ("batch",),
    "mask": POSTERIOR,
    "weight": ("batch",),
    "tc_terms.z": POSTERIOR,
    "mixture_log_prob.z": POSTERIOR,
    "mixture_log_prob.mu": ("components", "latent"),
    "mixture_log_prob.scale": ("components", "latent"),
    "mixture_log_prob.log_weights": ("components",),
    "linear_nll.weight": ("data", "hidden"),
    "linear_nll.mask": ("batch", "data"),
    "nll.mask": ("batch", "data"),
    "elbo_loss.mask": ("batch", "data"),
    "log_weights.mask": ("batch", "data"),
    "elbo_loss.params": ("batch", "data"),
}
VALUES: dict[str, Callable[[Sizes], Any]] = {
    "likelihood": lambda s: "gaussian",
    "dataset_size": lambda s: 100,
    "num_samples": lambda s: max(s.samples, 1),
    "weigh": _weigh,
    "model_or_fn": lambda s: lambda x, k: x.new_zeros(k, len(x)),
}
# Arguments that may be left out are given where they are tensors of these names.
OPTIONAL = (
    *("mu", "scale", "prior_mu", "prior_scale", "mask", "weight", "sample_weight", "bias"),
    *("log_det", "z_flow", "log_weights"),
)
# Beside the first call, which has an operator's settings as they are.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sample_kl": [
        {"num_samples": 2},
        {"estimator": "monte_carlo", "num_samples": 2, "mask": None, "weight": None},
    ],
    "rsample": [{"num_samples": 2}],
    "tril_sample_kl": [{"num_samples": 2}],
    "elbo_loss": [{"capacity": 1.0, "weight": None}],
    "gaussian_kl": [{"free_bits": 0.25, "free_bits_per": per} for per in ("dim", "total")],
    "importance_loss": [{"bound": b} for b in ("dreg", "ciwae", "renyi")],
    "tc_terms": [{"method": "mws"}],
    "mmd": [{"kernel": "rbf", "unbiased": False}],
    "mixture_log_prob": [{"log_weights": None}],
    "monte_carlo_kl": [{"z_flow": None}, {"z_flow": None, "log_det": None}],
    "annealed_log_weights": [{"steps": 2, "leapfrog": 1, "return_acceptance": True}],
    "log_marginal": [{"return_error": True}],
}


class Call(NamedTuple):
    """An operator and the arguments of a call."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The floating-point tensors among the arguments."""
        return {
            name: value
            for name, value in self.arguments.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }

    def __call__(self, **changed: Any) -> tuple[Tensor, ...]:
        """The results."""
        result = self.function(**{**self.arguments, **changed})
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def __str__(self) -> str:
        settings = [f"{k}={v}" for k, v in self.arguments.items() if isinstance(v, (str, int))]
        return f"{self.name}({', '.join(settings)})"


def operators() -> dict[str, Callable[..., Any]]:
    """Every public operator by its name."""
    names = [m.name for m in pkgutil.iter_modules(vaefast.ops.__path__)]
    return {
        name: getattr(importlib.import_module(f"vaefast.ops.{name}"), name)
        for name in names
        if not name.startswith("_")
    }


def calls(
    name: str, sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[Call]:
    """An operator's calls: every reduction that it takes, under each of its other settings."""
    function = operators()[name]
    for settings in [{}, *SETTINGS.get(name, [])]:
        given = {**_arguments(name, sizes, device, dtype), **settings}
        yield Call(name, function, given)
        for reduction in _reductions(name, tuple(settings.items())):
            yield Call(name, function, {**given, "reduction": reduction})


@functools.cache
def _reductions(name: str, settings: tuple[tuple[str, Any], ...]) -> tuple[str, ...]:
    """Those that the operator takes under the settings."""
    function = operators()[name]
    if "reduction" not in inspect.signature(function).parameters:
        return ()
    arguments = {**_arguments(name, Sizes(), "cpu", torch.float32), **dict(settings)}
    found = []
    for reduction in ("none", "sample", "batchmean", "sum", "mean", "dim"):
        try:
            function(**arguments, reduction=reduction)
        except ValueError as error:
            if "reduction" not in str(error):
                raise
        else:
            found.append(reduction)
    return tuple(found)


def _arguments(name: str, sizes: Sizes, device: str, dtype: torch.dtype) -> dict[str, Any]:
    parameters = inspect.signature(operators()[name]).parameters
    arguments: dict[str, Any] = {"seed": 0} if "seed" in parameters else {}
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty
        shape = SHAPES.get(f"{name}.{key}", SHAPES.get(key))
        if shape is not None and (needed or key in OPTIONAL):
            arguments[key] = _tensor(name, key, shape, sizes).to(device)
            if arguments[key].is_floating_point():
                arguments[key] = arguments[key].to(dtype)
        elif needed:
            arguments[key] = VALUES[key](sizes)
    return arguments


def _tensor(name: str, key: str, shape: tuple[str, ...], sizes: Sizes) -> Tensor:
    rng = random.Random(f"{name}.{key}")
    values = cases.normal(tuple(getattr(sizes, dim) for dim in shape), rng, 0.5)
    if key == "mask":
        return values < 0.4
    return values + 2 * torch.eye(values.shape[-1], dtype=values.dtype) if key == "tril" else values
