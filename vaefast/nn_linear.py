"""A decoder's last linear layer with its likelihood as a module; `vaefast.nn` has its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._args import REDUCTIONS, Reduction, one_of
from ._modules import LikelihoodModule, settings
from .backends.reference.linear_nll import linked
from .likelihoods import Likelihood
from .ops.linear_nll import Link, linear_nll, links_for


class LinearNLL(nn.Module):
    """A decoder's last linear layer and -log p(target | its output): `vf.linear_nll`.

    One `torch.nn.Linear` per parameter of the likelihood, in `heads`.

    Args:
        in_features, out_features, bias: of each layer.
        likelihood, validate: as in `NLL`.
        heads: how many parameters, for a likelihood that takes one or two; None: the fewest.
        shared: names of parameters that all rows share, one number per output and no layer, as
            scvi-tools' dispersion: `("theta",)`.
        link, reduction, memory: as in `linear_nll`.

    Shape:
        h `[B, *, in_features]`, target `[B, *, out_features]`.

    Raises:
        TypeError, ValueError: a setting is unknown.

    Example:
        >>> loss = LinearNLL(20, 50000, "multinomial")
        >>> loss(torch.randn(8, 20), torch.zeros(8, 50000)).shape
        torch.Size([])
        >>> genes = LinearNLL(20, 300, "negative_binomial", shared=("theta",))
        >>> mu, theta = genes.params(torch.randn(8, 20))
        >>> mu.shape, theta.shape
        (torch.Size([8, 300]), torch.Size([300]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        likelihood: Likelihood | str,
        *,
        heads: int | None = None,
        shared: Sequence[str] = (),
        bias: bool = True,
        link: Link | Sequence[Link] | None = None,
        reduction: Reduction = "batchmean",
        memory: int | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__()
        one_of("reduction", reduction, REDUCTIONS)
        self.likelihood = LikelihoodModule(likelihood)
        model = self.likelihood()
        count = model.fewest_params() if heads is None else heads
        names = model.param_names[:count]
        for name in shared:
            one_of("shared", name, names)
        self.links = links_for(link, model, count)
        self.heads = nn.ModuleList(
            _Shared(out_features) if name in shared else nn.Linear(in_features, out_features, bias)
            for name in names
        )
        self.reduction: Reduction = reduction
        self.memory, self.validate = memory, validate

    def forward(
        self,
        h: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss; arguments as in `linear_nll`."""
        heads: list[Any] = [*self.heads]
        return linear_nll(
            h,
            [head.weight for head in heads],
            [head.bias for head in heads],
            target,
            self.likelihood(),
            link=self.links,
            mask=mask,
            sample_weight=sample_weight,
            reduction=self.reduction,
            memory=self.memory,
            validate=self.validate and not torch.compiler.is_compiling(),
        )

    def params(self, h: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The likelihood's parameters, stored whole: for its `sample` and `mean`."""
        heads = zip(self.heads, self.links, strict=True)
        found = tuple(linked(head(h), link) for head, link in heads)
        return found[0] if len(found) == 1 else found

    def extra_repr(self) -> str:
        return settings(self, reduction="batchmean", memory=None, validate=True)


class _Shared(nn.Module):
    """A head that is its bias."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = None
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, h: Tensor) -> Tensor:
        return self.bias
