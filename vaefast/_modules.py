"""What the modules share: a likelihood that owns its tensors, and a repr of settings."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from . import likelihoods
from .likelihoods import Likelihood


class LikelihoodModule(nn.Module):
    """A likelihood whose tensors are parameters and buffers; call it for the likelihood."""

    def __init__(self, likelihood: Likelihood | str) -> None:
        super().__init__()
        self._fixed = likelihoods.resolve(likelihood)
        self._names: list[str] = []
        for field in dataclasses.fields(self._fixed):
            value = getattr(self._fixed, field.name)
            if isinstance(value, nn.Parameter):
                self.register_parameter(field.name, value)
            elif isinstance(value, Tensor):
                self.register_buffer(field.name, value)
            else:
                continue
            self._names.append(field.name)

    def forward(self) -> Likelihood:
        """The likelihood, with the tensors that this module holds now.

        They need not be those of the constructor: a move to another device, `functional_call` or
        a wrapper that shards parameters may have put others in their place.
        """
        if not self._names:
            return self._fixed
        return dataclasses.replace(
            self._fixed, **{name: getattr(self, name) for name in self._names}
        )

    def extra_repr(self) -> str:
        values = ((f.name, getattr(self._fixed, f.name)) for f in dataclasses.fields(self._fixed))
        shown = (
            f"{name}={type(value).__name__ if isinstance(value, Tensor) else repr(value)}"
            for name, value in values
        )
        return ", ".join([repr(self._fixed.name), *shown])


def settings(module: nn.Module, **defaults: object) -> str:
    """The settings of `module` that differ from their defaults, for its repr."""
    now = {name: getattr(module, name) for name in defaults}
    return ", ".join(
        f"{name}={value!r}"
        for name, value in now.items()
        if isinstance(value, Tensor) or value != defaults[name]
    )
