"""`explain`: which backend and path serve a call, told by the code that decides.

Wherever a way is not taken, that place says so by `declined`, and whoever serves by `served`; both
do nothing but while `explain` listens, in its thread and task. The fast path itself says nothing:
`explain` puts plans that tell when they are found in the place of the kept ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.compiler import is_dynamo_compiling

Path = Literal["fast", "direct", "registered", "reference"]

# Why a call does not go a quicker way, by what the deciding places call it. What a reason says of
# the call at hand stands for the braces.
REASONS = {
    "argument": "the fast path does not take {}",
    "operator": "{} has no fast path",
    "learned": "the fast path takes one learned number of a likelihood, as a 0-dimensional tensor",
    "layout": "{}: what is made of it would lie so too, and no plan is kept of that",
    "copied": "the kernel reads or writes another dtype or layout than was given",
    "dtype": "the target asks for a gradient, for which the location in {} is widened first",
    "shape": "the fast path takes operands of one shape, got {}",
    "device": "the fast path is for the CPU and for CUDA, got {}",
    "backend": "the fast path is the native backend's, and {!r} serves",
    "settings": "a setting cannot be looked up by: {}",
    "class": "{} is no torch.Tensor or Parameter itself, and torch's dispatcher has to see it",
    "negated": "a tensor is a negated view, whose memory holds other numbers",
    "memory": "a tensor has no memory of its own",
    "mode": "a dispatch mode is active and has to see the operator",
    "graph": "torch's dispatcher was asked: by a compiled graph or torch.ops",
    "hooks": "hooks see what autograd saves (checkpointing, offloading)",
    "constant": "a gradient is asked for to what kernels take as constant (target, weight, noise)",
    "transform": "a transform of torch.func is active, under which plain PyTorch is right",
    "forward": "forward-mode differentiation is on, in which plain PyTorch is right",
    "trace": "torch.jit.trace records, which plain PyTorch can be in",
    "empty": "there are no elements, so that no kernel has an address to read",
    "form": "likelihood {!r} is your own, and {} has no kernel of it",
    "asked": "backend {!r} was asked for",
    "unavailable": "backend {!r} cannot serve: {}",
    "cost": "{} costs {:g} by 'native' and {:g} by 'triton' ({})",
}


@dataclass(frozen=True)
class Served:
    """One operator's part in a call.

    `operator` is its name in `torch.ops.vaefast` (`sample_kl` serves `rsample` and `gaussian_kl`
    too, `nll` `elbo_loss`). `path`: `"fast"`, by the plan of a call before; `"direct"` or
    `"registered"`, the slow path, past torch's dispatcher or by it; `"reference"`, plain PyTorch.
    `reasons`: why no quicker way.
    """

    operator: str
    backend: str
    path: Path
    reasons: tuple[str, ...] = ()

    @property
    def fast(self) -> bool:
        """Whether a plan was found for it."""
        return self.path == "fast"


@dataclass(frozen=True)
class Explanation:
    """What served a call, in order; as a string, in words."""

    calls: tuple[Served, ...]

    def __str__(self) -> str:
        if not self.calls:
            return "no operator of vaefast was called: plain PyTorch, or a graph that holds it"
        lines: list[str] = []
        for call, times in _runs(self.calls):
            how = {
                "fast": f"{call.backend}, fast path",
                "direct": f"{call.backend}, slow path, past torch's dispatcher",
                "registered": f"{call.backend}, slow path, by torch's dispatcher",
                "reference": "reference: plain PyTorch",
            }[call.path]
            lines.append(f"{call.operator}: {how}" + (f", {times} times" if times > 1 else ""))
            lines += [f"    {reason}" for reason in call.reasons]
        return "\n".join(lines)


def _runs(calls: Iterable[Served]) -> Iterator[tuple[Served, int]]:
    last, times = None, 0
    for call in calls:
        if call != last and last is not None:
            yield last, times
            times = 0
        last, times = call, times + 1
    if last is not None:
        yield last, times


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which backend and path serve `function(*args, **kwargs)`, and why not a quicker one.

    The call is made twice, as the first of its kind may only prepare the fast path, and the second
    is told of; its results are dropped. Random states are put back, those of the generators among
    the arguments too. Whatever else the function changes, it changes twice.

    Args:
        function: an operator, a module, or any function that calls some.
        *args, **kwargs: its arguments.

    Returns:
        An `Explanation`: `calls`, each with `operator`, `backend`, `path` and `reasons`.

    Raises:
        What the function raises.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> print(vf.explain(vf.nll, (mu, logvar[0]), mu, "gaussian"))
        nll: native, slow path, past torch's dispatcher
            the fast path takes operands of one shape, got [8, 2] and [2]
    """
    given = (*args, *kwargs.values())
    with _states_kept(g for g in given if isinstance(g, torch.Generator)):
        function(*args, **kwargs)
    with _states_kept(g for g in given if isinstance(g, torch.Generator)), _listening() as log:
        function(*args, **kwargs)
    return Explanation(tuple(log.calls))


@contextmanager
def _states_kept(generators: Iterable[torch.Generator]) -> Iterator[None]:
    before = [(g, g.get_state()) for g in generators]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield
    for generator, state in before:
        generator.set_state(state)


class _Log:
    """What the places that decide have said."""

    def __init__(self) -> None:
        self.calls: list[Served] = []
        # Of the call that is on its way.
        self.pending: list[tuple[str, str]] = []

    def declined(self, reason: str, about: tuple[object, ...]) -> None:
        self.pending.append((reason, REASONS[reason].format(*about)))

    def served(self, operator: str, backend: str, path: Path) -> None:
        seen = {"class", "negated", "memory", "mode"}
        if path == "registered" and not seen & {reason for reason, _ in self.pending}:
            self.declined("graph", ())
        if path in ("direct", "registered") and operator in UNPLANNED:
            self.declined("operator", (operator,))
        words = dict.fromkeys(words for _, words in self.pending)
        self.calls.append(Served(operator, backend, path, tuple(words)))
        self.pending = []


# The operators that no plans are kept of.
UNPLANNED = ("linear_nll",)

_log: ContextVar[_Log | None] = ContextVar("vaefast.explain", default=None)


def declined(reason: str, *about: object) -> None:
    """Says, if `explain` listens, why the way that was thought of is not taken."""
    if is_dynamo_compiling():
        return
    log = _log.get()
    if log is not None:
        log.declined(reason, about)


def listening() -> bool:
    """Whether `explain` listens: what takes time to find out is found out for it alone."""
    return _log.get() is not None


def served(operator: str, backend: str, path: Path) -> None:
    """Says, if `explain` listens, who serves."""
    if is_dynamo_compiling():
        return
    log = _log.get()
    if log is not None:
        log.served(operator, backend, path)


@contextmanager
def _listening() -> Iterator[_Log]:
    from .ops import _plans

    log = _Log()
    token = _log.set(log)
    try:
        with _plans.watched():
            yield log
    finally:
        _log.reset(token)
