"""Likelihoods whose parameters have a class dimension: one value per position, not per element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _args, random
from ._base import Likelihood, Noise, Params, as_tuple, register_rows

__all__ = ["Categorical", "Multinomial"]

_INDICES = (torch.uint8, torch.int32, torch.int64)
_COUNTS = (*_args.FLOAT_DTYPES, *_INDICES)


class Rows(NamedTuple):
    """The kernel's form and numbers, and what it reads.

    `params` is [R, C, S]. `target`: ([T, S] or [T, channels or C, S],), or a CSR matrix's
    (row starts, columns, values). `positions` is the shape that the loss has per position, whose
    first `lead` dimensions index samples; `segments` of the R rows are one sample.
    """

    form: str
    numbers: tuple[float, ...]
    params: Tensor
    target: tuple[Tensor, ...]
    positions: torch.Size
    lead: int
    segments: int


@dataclass(frozen=True, eq=False)
class RowLikelihood(Likelihood):
    """Base of the likelihoods with a class dimension; a subclass gives `rows`."""

    takes_sparse: ClassVar[bool] = False

    @property
    def class_dim(self) -> int:
        """The class dimension of params `[B, ...]`, as the user counts it."""
        return -1

    def rows(self, params: Params, target: Tensor) -> Rows:
        """What the kernel reads.

        Raises:
            ValueError: the shapes do not fit.
            TypeError: the target's dtype does not.
        """
        raise NotImplementedError

    def inside(self, params: Params, target: Tensor) -> Tensor:
        """As `support`, where that depends on the number of classes."""
        return self.support(target)

    def _one(self, params: Params) -> Tensor:
        tensors = as_tuple(params)
        if len(tensors) != 1:
            raise ValueError(f"likelihood {self.name} takes 1 parameter tensor, got {len(tensors)}")
        _args.float_tensor("params", tensors[0])
        return tensors[0]

    def _dim(self, params: Tensor, lead: int) -> int:
        """The class dimension among those of `params`, which may have a leading K."""
        dim = self.class_dim
        at = dim + params.dim() if dim < 0 else dim + lead - 1
        if not lead <= at < params.dim():
            raise ValueError(
                f"dim of likelihood {self.name} must be a dimension of params behind the batch, "
                f"got {dim} for params {list(params.shape)}"
            )
        return at

    def _fitted(
        self,
        params: Tensor,
        target: Tensor,
        form: str,
        numbers: tuple[float, ...],
        inside: Sequence[int],
    ) -> Rows:
        """Checks that the target is params with the class dimension replaced by `inside`."""
        if target.dtype not in self.target_dtypes:
            raise TypeError(
                f"target of likelihood {self.name!r} must be one of "
                f"{', '.join(map(str, self.target_dtypes))}, got {target.dtype}"
            )
        lead = self.lead(params, target)
        if target.dim() < 1 or lead not in (1, 2):
            at, want = 0, None
        else:
            at = self._dim(params, lead)
            want = (*params.shape[lead - 1 : at], *inside, *params.shape[at + 1 :])
        if want is None or tuple(target.shape) != want:
            raise ValueError(
                f"target of likelihood {self.name!r} does not fit params {list(params.shape)}: "
                f"must be {'of fewer dimensions' if want is None else list(want)}, got "
                f"{list(target.shape)}"
            )
        _args.same_device("params", params, target=target)
        shape = params.shape
        outer, inner = _args.count(shape[:at]), _args.count(shape[at + 1 :])
        target_rows = _args.count(shape[lead - 1 : at])
        segments = _args.count(shape[lead:at])
        if inner != 1 and _classes_last(params, at):
            # As channels_last: a position's classes are a row.
            params = params.movedim(at, -1)
            if inside:
                target = target.movedim(at - lead + 1, -1)
            outer, target_rows, segments = outer * inner, target_rows * inner, segments * inner
            inner = 1
        parts: tuple[Tensor, ...]
        if target.layout == torch.sparse_csr:
            parts = (target.crow_indices(), target.col_indices(), target.values())
        else:
            parts = (target.reshape(target_rows, *inside, inner),)
        return Rows(
            form,
            numbers,
            params.reshape(outer, shape[at], inner),
            parts,
            torch.Size((*shape[:at], *shape[at + 1 :])),
            lead,
            segments,
        )

    def _noise(
        self, params: Tensor, seed: random.Seed | None, generator: random.Generator | None
    ) -> tuple[Tensor, Noise]:
        """The parameters [R, C, S] in the compute dtype, and noise [R, S]."""
        at = self._dim(params, 1)
        outer, inner = _args.count(params.shape[:at]), _args.count(params.shape[at + 1 :])
        dtype = _args.compute_dtype(params)
        state = random.make_state(params, params.shape[0], seed, generator)
        if state.dim() > 1 and params.shape[0]:
            state = state.repeat_interleave(outer // params.shape[0], 0)
            # A row's own part of its sample's stream.
            part = torch.arange(outer, device=state.device) % (outer // params.shape[0])
            state = state + torch.stack([torch.zeros_like(part), part * inner], 1)
        noise = Noise(state, torch.Size((outer, inner)), dtype)
        return params.to(dtype).reshape(outer, params.shape[at], inner), noise


def _classes_last(params: Tensor, at: int) -> bool:
    """True where the dimension `at` is the innermost in memory. A compiler would take that for a
    constant."""
    if is_compiling() or params.is_contiguous():
        return False
    return params.movedim(at, -1).is_contiguous()


@register_rows("categorical")
@dataclass(frozen=True, eq=False)
class Categorical(RowLikelihood):
    """x ~ Categorical(softmax(logits)); -log p = logsumexp(logits) - logits[x], per position.

    Args:
        dim: the class dimension of the logits `[B, C, ...]`, or -1 for `[B, ..., C]`.

    The target holds class indices (int64, int32 or uint8), of the logits' shape without `dim`. An
    "element" of `reduction`, `mask` and `weight` is such a position. An index that is no class
    gives NaN.

    Example:
        >>> import torch, vaefast as vf
        >>> logits = torch.zeros(4, 8, 3, 3)  # 8 classes in dimension 1
        >>> labels = torch.zeros(4, 3, 3, dtype=torch.int64)
        >>> loss = vf.nll(logits, labels, "categorical", reduction="mean")
        >>> round(float(loss), 4)  # log 8 a position
        2.0794
    """

    dim: int = 1
    param_names: ClassVar[tuple[str, ...]] = ("logits",)
    target_dtypes: ClassVar[tuple[torch.dtype, ...]] = _INDICES

    @property
    def class_dim(self) -> int:
        return self.dim

    def lead(self, params: Tensor, target: Tensor) -> int:
        return params.dim() - target.dim()

    def rows(self, params: Params, target: Tensor) -> Rows:
        return self._fitted(self._one(params), target, "categorical", (), ())

    def inside(self, params: Params, target: Tensor) -> Tensor:
        logits = self._one(params)
        classes = logits.shape[self._dim(logits, self.lead(logits, target))]
        return (target >= 0) & (target < classes)

    def support(self, target: Tensor) -> Tensor:
        return target >= 0

    def mean(self, params: Params) -> Tensor:
        """E[x], the index taken as a number: for classes that are levels."""
        logits = self._one(params)
        at = self._dim(logits, 1)
        shape = [-1 if d == at else 1 for d in range(logits.dim())]
        index = torch.arange(logits.shape[at], device=logits.device, dtype=logits.dtype)
        return (torch.softmax(logits, at) * index.view(shape)).sum(at)

    @torch.no_grad()
    def sample(
        self,
        params: Params,
        *,
        seed: random.Seed | None = None,
        generator: random.Generator | None = None,
    ) -> Tensor:
        """Class indices in int64."""
        logits = self._one(params)
        rows, noise = self._noise(logits, seed, generator)
        at = self._dim(logits, 1)
        return drawn_class(rows, noise("uniform")).view(*logits.shape[:at], *logits.shape[at + 1 :])


@register_rows("multinomial")
@dataclass(frozen=True, eq=False)
class Multinomial(RowLikelihood):
    """Counts x ~ Multinomial(N, softmax(logits)), N = sum x, per row of logits `[B, V]`.

    -log p = N logsumexp(logits) - sum x logits - log(N! / prod x!).

    Args:
        const: False drops log(N! / prod x!), as Mult-VAE does (Liang et al. 2018, equation 2).

    The target is `[B, V]`, dense or `torch.sparse_csr`, in any dtype. An "element" of `reduction`,
    `mask` and `weight` is a row: `"none"` gives `[B]`.

    Example:
        >>> import torch, vaefast as vf
        >>> logits, clicks = torch.zeros(4, 8), torch.eye(4, 8)
        >>> round(float(vf.nll(logits, clicks, "multinomial")), 4)  # log 8: one click a user
        2.0794
    """

    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("logits",)
    target_dtypes: ClassVar[tuple[torch.dtype, ...]] = _COUNTS
    takes_sparse: ClassVar[bool] = True
    uint8_scale: ClassVar[float] = 1.0

    def rows(self, params: Params, target: Tensor) -> Rows:
        logits = self._one(params)
        numbers = (float(self.const),)
        return self._fitted(logits, target, "multinomial", numbers, logits.shape[-1:])

    def elements(self, target: Tensor) -> torch.Size:
        return target.shape[:-1]

    def support(self, target: Tensor) -> Tensor:
        values = target.values() if target.layout == torch.sparse_csr else target
        if not values.is_floating_point():
            return values >= 0
        return (values >= 0) & (values == torch.floor(values)) & torch.isfinite(values)

    def mean(self, params: Params, total: int | Tensor = 1) -> Tensor:
        """E[x] for `total` draws per row, a number or `[B]`."""
        probs = torch.softmax(self._one(params), -1)
        return probs * (total.unsqueeze(-1) if isinstance(total, Tensor) else total)

    @torch.no_grad()
    def sample(
        self,
        params: Params,
        *,
        total: int = 1,
        seed: random.Seed | None = None,
        generator: random.Generator | None = None,
    ) -> Tensor:
        """Counts of `total` draws per row, of the logits' shape and dtype."""
        logits = self._one(params)
        rows, noise = self._noise(logits, seed, generator)
        counts = torch.zeros_like(rows)
        for draw in range(total):
            chosen = drawn_class(rows, noise("uniform", draw)).unsqueeze(1)
            counts = counts.scatter_add(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))
        return counts.view_as(logits).to(logits.dtype)


def drawn_class(logits: Tensor, u: Tensor) -> Tensor:
    """The class of logits [R, C, S] at the quantile u [R, S]."""
    below = torch.softmax(logits.double(), 1).cumsum(1)
    threshold = u.double().unsqueeze(1) * below[:, -1:]
    return (below < threshold).sum(1).clamp(max=logits.shape[1] - 1)
