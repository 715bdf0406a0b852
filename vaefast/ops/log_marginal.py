"""log p(x) by importance sampling with any number of samples, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol, overload, runtime_checkable

import torch
from torch import Tensor, nn

from .. import _args


@runtime_checkable
class HasLogWeights(Protocol):
    """A model that can weigh samples of its posterior."""

    def log_weights(self, x: Tensor, num_samples: int, /) -> Tensor:
        """Log weights `[num_samples, B]` of fresh samples for data x `[B, ...]`."""
        ...


class LogMarginal(NamedTuple):
    """`estimate` of log p(x), its `standard_error`, and the `effective_samples`, each `[B]`."""

    estimate: Tensor
    standard_error: Tensor
    effective_samples: Tensor


Model = HasLogWeights | Callable[[Tensor, int], Tensor]


@overload
def log_marginal(
    model_or_fn: Model,
    x: Tensor,
    num_samples: int = 5000,
    chunk: int = 100,
    *,
    batch_size: int | None = None,
    return_error: Literal[False] = False,
    progress: bool = False,
) -> Tensor: ...


@overload
def log_marginal(
    model_or_fn: Model,
    x: Tensor,
    num_samples: int = 5000,
    chunk: int = 100,
    *,
    batch_size: int | None = None,
    return_error: Literal[True],
    progress: bool = False,
) -> LogMarginal: ...


@torch.no_grad()
def log_marginal(
    model_or_fn: Model,
    x: Tensor,
    num_samples: int = 5000,
    chunk: int = 100,
    *,
    batch_size: int | None = None,
    return_error: bool = False,
    progress: bool = False,
) -> Tensor | LogMarginal:
    """log p(x) = log E_q[p(x, z) / q(z|x)], estimated by the log of K weights' mean, in nats.

    The weights of a chunk are folded into running sums, so memory does not grow with K. The
    estimate is IWAE's bound: at most log p(x) on average, and consistent.

    Args:
        model_or_fn: a function `(x, k) -> log weights [k, B]` of k fresh samples, as
            `log_weights` gives them, or a model with such a method `log_weights`. A module is
            put in evaluation mode for the time of the call.
        x: the data, `[N, ...]`.
        num_samples: K.
        chunk: how many samples at a time.
        batch_size: how many rows of x at a time; None for all.
        return_error: return a `LogMarginal` with the standard error (of the estimate, by the
            delta method, from the spread of the weights) and the effective number of samples,
            (sum w)^2 / sum w^2. Where the latter is small, trust neither.
        progress: show a progress bar (needs rich).

    Returns:
        `[N]`, float64, without a gradient; or a `LogMarginal`.

    Raises:
        TypeError: the model can do neither.
        ValueError: a number is out of range, or the weights have the wrong shape.
        ImportError: a progress bar was asked for and rich is not installed.

    Example:
        >>> import torch, vaefast as vf
        >>> x = torch.zeros(3, 2)
        >>> vf.log_marginal(lambda x, k: torch.full((k, len(x)), -2.0), x, num_samples=10)
        tensor([-2., -2., -2.], dtype=torch.float64)

    Source: Burda et al. 2016, section 5; Rezende, Mohamed & Wierstra 2014, appendix E.
    """
    num_samples = _args.integer("num_samples", num_samples, least=1)
    chunk = _args.integer("chunk", chunk, least=1)
    if batch_size is not None:
        batch_size = _args.integer("batch_size", batch_size, least=1)
    weigh = model_or_fn.log_weights if isinstance(model_or_fn, HasLogWeights) else model_or_fn
    if not callable(weigh):
        raise TypeError(
            "model_or_fn must be a function (x, k) -> log weights or have a method log_weights, "
            f"got {type(model_or_fn).__name__}"
        )
    batches = [x] if batch_size is None or not len(x) else list(x.split(batch_size))
    counts = [min(chunk, num_samples - k) for k in range(0, num_samples, chunk)]
    found = []
    with _evaluating(model_or_fn), _bar(progress, len(batches) * len(counts)) as advance:
        for batch in batches:
            sums = _Sums()
            for count in counts:
                log_w = weigh(batch, count)
                if log_w.shape != (count, len(batch)):
                    raise ValueError(
                        f"model_or_fn must give log weights {[count, len(batch)]}, got "
                        f"{list(log_w.shape)}"
                    )
                sums.add(log_w.double())
                advance()
            found.append(sums.result(num_samples))
    result = LogMarginal(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return result if return_error else result.estimate


class _Sums:
    """Running sums of w / exp(top) and its square, where top is the largest log w so far."""

    def __init__(self) -> None:
        self.top: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        top = log_w.amax(0)
        if self.top is None:
            self.top = torch.full_like(top, -torch.inf)
            self.first = torch.zeros_like(top)
            self.second = torch.zeros_like(top)
        top = torch.maximum(top, self.top)
        # Where all weights so far are 0, exp(-inf - -inf) would be no number.
        shift = torch.where(torch.isneginf(top), 0.0, top)
        old, weights = torch.exp(self.top - shift), torch.exp(log_w - shift)
        self.first = self.first * old + weights.sum(0)
        self.second = self.second * old**2 + weights.square().sum(0)
        self.top = top

    def result(self, count: int) -> LogMarginal:
        assert self.top is not None
        estimate = self.top + torch.log(self.first / count)
        effective = self.first**2 / self.second
        # Of the mean of w, relative to it: (E w^2 / (E w)^2 - 1) / (count - 1).
        spread = (count / effective - 1).clamp(min=0) / (count - 1) if count > 1 else torch.nan
        return LogMarginal(estimate, torch.sqrt(spread * torch.ones_like(effective)), effective)


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    modules = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


@contextmanager
def _bar(show: bool, total: int) -> Iterator[Callable[[], None]]:
    if not show:
        yield lambda: None
        return
    try:
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError("progress=True needs rich; pip install rich") from error
    with Progress() as progress:
        task = progress.add_task("log p(x)", total=total)
        yield lambda: progress.advance(task)
