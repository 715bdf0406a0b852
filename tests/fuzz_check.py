"""Runs a case three times by the library and once in float64, and says where the two part."""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import fuzz_cases
import torch
from fuzz_cases import CALLS, Case, Operand
from fuzz_likelihoods import nll_size
from fuzz_operators import OPERATORS
from fuzz_pairs import pair_gradient, pair_log_density
from fuzz_posteriors import densities_size
from fuzz_truth import aligned, rounded
from tolerances import TABLE
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vaefast as vf
from vaefast import backends
from vaefast import random as noise_of
from vaefast.backends.reference.noise import sample_noise

Tensors = dict[str, Tensor]
Upstream = list[Tensor | None]
_GENERATOR = torch.Generator()
# What is no argument of the arithmetic, or is rounded on purpose.
_NO_PRECISION = {"x", "mask", "weight", "sample_weight", "noise"}
# Values between which nothing lies.
_DISCRETE = ("bits", "bytes", "mask", "counts", "below", "levels")
_EPS = torch.finfo(torch.float64).eps
# Of the arithmetic's tolerance: sums whose terms are larger than the result.
_SLACK = 4.0


class Failure(NamedTuple):
    """What was wrong ("value 0", "gradient of mu", an exception's text), how, in which calls."""

    what: str
    how: str
    calls: tuple[int, ...]
    detail: str

    def signature(self) -> tuple[str, str, bool]:
        return self.what, self.how, 0 in self.calls


class Prepared(NamedTuple):
    """The arguments of every call, and all of them in float64."""

    calls: list[Tensors]
    noise: list[dict[str, Any]]
    # Called before a call: what sets the default generator.
    before: list[Callable[[], None]]
    wide: Tensors
    # What the mask keeps, `[CALLS, *elements]`, where what it leaves out is spoilt.
    keep: Tensor | None


def prepare(case: Case) -> Prepared:
    """The data of a case, from its seed alone."""
    g = _GENERATOR.manual_seed(case.seed)
    calls: list[Tensors] = [{} for _ in range(CALLS)]
    wide: Tensors = {}
    for name, operand in case.operands.items():
        made = fuzz_cases.make(case, operand, g)
        for call, tensor in zip(calls, made.tensors, strict=True):
            call[name] = tensor
        wide[name] = made.wide
    keep = _kept(case, wide) if case.hidden and "mask" in wide else None
    if keep is not None:
        for name in case.hidden:
            if name in case.operands:
                _hide(case, calls, keep, name)
    if case.settings.get("sparse"):
        for call in calls:
            call["x"] = call["x"].contiguous().to_sparse_csr()
    arguments, before = _noise(case, calls, wide, g)
    return Prepared(calls, arguments, before, wide, keep)


def _masked(case: Case) -> tuple[str | int, ...]:
    """The dimensions of the elements that a mask is of."""
    shape = case.operands["x" if case.model is not None else "mu"].shape
    return tuple(d for d in shape if d not in ("C", "channels"))


def _kept(case: Case, wide: Tensors) -> Tensor:
    """`[CALLS, *elements]`"""
    sizes = case.sizes(_masked(case))
    return aligned(wide["mask"], len(sizes), sizes[0]).expand(CALLS, *sizes)


def _hide(case: Case, calls: list[Tensors], keep: Tensor, name: str) -> None:
    """Spoils what enters no element that the mask keeps."""
    operand, dims = case.operands[name], _masked(case)
    shape = operand.shape
    per_sample = len(shape) == 1 < len(dims) and case.sizes(shape) == case.sizes(dims[:1])
    if per_sample and name in ("weight", "sample_weight"):
        shape = dims[:1]
    bad = _bad(operand, case.seed)
    if bad is None:
        return
    for call, keeps in zip(calls, _over(keep, dims, shape).unbind(0), strict=True):
        call[name].detach().masked_fill_(~keeps, bad)


def _over(keep: Tensor, dims: tuple[str | int, ...], shape: tuple[str | int, ...]) -> Tensor:
    """Where a tensor of `shape` enters an element that is kept, to broadcast to it."""
    for i, d in enumerate(dims):
        if d not in shape:
            keep = keep.any(i + 1, keepdim=True)
    left = [keep.shape[i + 1] for i, d in enumerate(dims) if d in shape]
    sizes = [left.pop(0) if d in dims else 1 for d in shape]
    return keep.reshape(CALLS, *sizes)


def _bad(operand: Operand, seed: int) -> float | None:
    if operand.floating():
        return (math.nan, math.inf, -math.inf)[seed % 3]
    if operand.dtype == torch.uint8:
        return 255 if operand.kind.startswith("below") else None
    return None if operand.dtype == torch.bool else -100


def spoilt(case: Case, data: Prepared, row: Upstream, index: int) -> Upstream:
    """The upstream gradients of a call, NaN for what the mask leaves out."""
    reduction = case.settings.get("reduction")
    if data.keep is None or "upstream" not in case.hidden or reduction not in ("none", "sample"):
        return row
    dims = _masked(case)
    keep = _over(data.keep, dims, dims if reduction == "none" else dims[:1])[index]
    at = 1 if case.op == "sample_kl" else 0
    return [
        torch.where(keep, u, math.nan) if u is not None and i == at else u
        for i, u in enumerate(row)
    ]


def _noise(
    case: Case, calls: list[Tensors], wide: Tensors, g: torch.Generator
) -> tuple[list[dict[str, Any]], list[Callable[[], None]]]:
    how = case.noise
    arguments: list[dict[str, Any]] = [{} for _ in range(CALLS)]
    before: list[Callable[[], None]] = [_nothing] * CALLS
    if not how:
        return arguments, before
    if how == "noise":
        for call, given in zip(calls, arguments, strict=True):
            given["noise"] = call["noise"]
        wide["eps"] = wide["noise"]
        return arguments, before
    binarize = "mu" not in case.operands
    first = case.operands["x" if binarize else "mu"]
    shape = case.sizes(first.shape)
    batch = shape[0]
    rng = random.Random(case.seed)
    states = []
    for i in range(CALLS):
        many = how not in _ONE_STREAM
        numbers = [rng.getrandbits(63) for _ in range(max(1, batch if many else 1))]
        start = rng.choice((0, 0, 3, 1000))
        if how == "seed":
            arguments[i]["seed"] = numbers[0]
            state = [numbers[0], 0]
        elif how == "state":
            state = [numbers[0], start]
            arguments[i]["seed"] = torch.tensor(state)
        elif how == "drawn":
            before[i] = functools.partial(torch.default_generator.manual_seed, numbers[0])
            state = [_drawn(numbers[0]), 0]
        elif how == "generator":
            arguments[i]["generator"] = Seeded(numbers[0])
            state = [_drawn(numbers[0]), 0]
        elif how == "seeds":
            arguments[i]["seed"] = numbers[:batch]
            state = [[n, 0] for n in numbers[:batch]]
        elif how == "generators":
            arguments[i]["generator"] = [Seeded(n) for n in numbers[:batch]]
            state = [[_drawn(n), 0] for n in numbers[:batch]]
        else:
            state = [[n, start] for n in numbers[:batch]]
            arguments[i]["seed"] = torch.tensor(state, dtype=torch.int64).reshape(-1, 2)
        states.append(state)
    # Of all calls: every call, or every sample of every call, a row with a stream of its own.
    packed = torch.tensor(states, dtype=torch.int64).reshape(-1, 2)
    rows = (CALLS, *shape) if packed.shape[0] == CALLS and how in _ONE_STREAM else (
        CALLS * batch, *shape[1:]
    )  # fmt: skip
    offset = case.settings.get("offset", 0)
    whole = (CALLS, *shape)
    if binarize:
        names = tuple(n for n in case.operands if n.startswith("p") or n == "scalar")
        make = backends.load("native", "noise").noise
        u = make(packed, rows, case.compute(*names), "uniform", noise_of.BINARIZE, offset)
        wide["u"] = u.reshape(whole).double()
        return arguments, before
    dtype = case.compute("mu", "scale", "prior_mu", "prior_scale", "tril")
    count = case.settings.get("num_samples")
    make = backends.load("native", "noise").noise
    draws = [make(packed, rows, dtype, "normal", noise_of.POSTERIOR, offset).reshape(whole)]
    for k in range(1, count or 1):
        eps = sample_noise(packed, rows, dtype, "normal", noise_of.POSTERIOR, offset, k)
        draws.append(eps.reshape(whole))
    wide["eps"] = (draws[0] if count is None else torch.stack(draws, 1)).double()
    return arguments, before


_ONE_STREAM = {"seed", "state", "drawn", "generator"}


class Seeded(NamedTuple):
    """A generator to be made anew for each run of a call."""

    seed: int


def _nothing() -> None:
    return None


def _drawn(seed: int) -> int:
    g = _DRAWS.manual_seed(seed)
    return int(torch.empty(2, dtype=torch.int64).random_(generator=g)[0])


_DRAWS = torch.Generator()


def fresh(given: dict[str, Any]) -> dict[str, Any]:
    """Noise arguments, with generators at their beginning."""
    found = given.get("generator")
    if found is None:
        return given
    if isinstance(found, Seeded):
        return {"generator": torch.Generator().manual_seed(found.seed)}
    return {"generator": [torch.Generator().manual_seed(s.seed) for s in found]}


class Found(NamedTuple):
    """Outputs and gradients by name, of one call or, in float64, of all; which need a gradient."""

    outputs: tuple[Tensor, ...]
    gradients: Tensors


def leaves_of(case: Case) -> list[str]:
    return [n for n, o in case.operands.items() if o.grad]


def upstreams(case: Case, outputs: tuple[Tensor, ...], shapes: list[Any]) -> list[Upstream]:
    """For each call the gradient of each output, None where it has none."""
    g = _GENERATOR
    found: list[Upstream] = [[] for _ in range(CALLS)]
    for style, out, shape in zip(case.upstream, outputs, shapes, strict=False):
        if style == "ones":
            each = [torch.ones(shape, dtype=out.dtype)] * CALLS
        elif style == "none":
            each = [None] * CALLS
        elif style == "expanded":
            numbers = torch.randn(CALLS, generator=g, dtype=torch.float64).to(out.dtype)
            each = [n.expand(shape) for n in numbers.unbind(0)]
        else:
            twice = (2,) if style == "strided" else ()
            values = torch.randn((CALLS, *shape, *twice), generator=g, dtype=torch.float64)
            values = values.to(out.dtype)
            each = list((values[..., 0] if twice else values).unbind(0))
        for row, one in zip(found, each, strict=True):
            row.append(one)
    for row in found:
        # What is only for logging, as elbo_loss's parts.
        row += [None] * (len(outputs) - len(row))
    return found


def differentiate(
    outputs: tuple[Tensor, ...], upstream: Upstream, leaves: list[Tensor], again: bool = False
) -> list[Tensor | None]:
    chosen = [
        (o, u) for o, u in zip(outputs, upstream, strict=True) if u is not None and o.requires_grad
    ]
    if not chosen or not leaves:
        return [None] * len(leaves)
    return list(
        torch.autograd.grad(
            [o for o, _ in chosen],
            leaves,
            [u for _, u in chosen],
            retain_graph=again or None,
            allow_unused=True,
        )
    )


def call_once(
    case: Case, tensors: Tensors, given: dict[str, Any], upstream: Callable[..., Upstream]
) -> Found:
    """One call and its gradients, differentiated as the case says."""
    operator, names = OPERATORS[case.op], leaves_of(case)
    leaves = [tensors[n] for n in names]
    given = fresh(given)
    how = case.backward if leaves else "plain"
    if how == "hooks":
        with torch.autograd.graph.saved_tensors_hooks(_densely, _as_it_is):
            outputs = operator.call(case, tensors, given)
    elif how == "checkpoint":

        def body(*inner: Tensor) -> tuple[Tensor, ...]:
            return operator.call(case, {**tensors, **dict(zip(names, inner, strict=True))}, given)

        outputs = checkpoint(body, *leaves, use_reentrant=False)
    else:
        outputs = operator.call(case, tensors, given)
    row = upstream(outputs)
    grads = differentiate(outputs, row, leaves, again=how == "twice")
    if how == "twice":
        # The first pass must leave nothing behind.
        grads = differentiate(outputs, row, leaves)
    found = {n: g for n, g in zip(names, grads, strict=True) if g is not None}
    return Found(outputs, found)


def _densely(t: Tensor) -> Tensor:
    """As what moves tensors away and back: a view comes back dense."""
    return t.clone(memory_format=torch.contiguous_format) if t.layout == torch.strided else t


def _as_it_is(t: Tensor) -> Tensor:
    return t


def true_values(case: Case, wide: Tensors, rows: list[Upstream]) -> Found:
    """Outputs and gradients of all calls in float64."""
    return _true_gradients(case, wide, OPERATORS[case.op].truth(case, wide), rows)


def _true_gradients(
    case: Case, wide: Tensors, outputs: tuple[Tensor, ...], rows: list[Upstream]
) -> Found:
    names = leaves_of(case)
    stacked: Upstream = []
    for i in range(len(outputs)):
        each = [row[i] for row in rows]
        stacked.append(
            None if each[0] is None else torch.stack([e for e in each if e is not None]).double()
        )
    grads = differentiate(outputs, stacked, [wide[n] for n in names])
    return Found(outputs, {n: g for n, g in zip(names, grads, strict=True) if g is not None})


def check(case: Case) -> list[Failure]:
    """Everything that is wrong with a case; an empty list where nothing is."""
    data = prepare(case)
    outputs = OPERATORS[case.op].truth(case, data.wide)
    shapes = [o.shape[1:] for o in outputs]
    rows: list[Upstream] = []
    got: list[Found] = []
    for i in range(CALLS):
        # Of the outputs' own dtype, which the first call tells.
        def upstream(ours: tuple[Tensor, ...], i: int = i) -> Upstream:
            if not rows:
                rows.extend(upstreams(case, ours, shapes))
            return spoilt(case, data, rows[i], i)

        data.before[i]()
        try:
            got.append(call_once(case, data.calls[i], data.noise[i], upstream))
        except Exception as error:
            return _raised(case, data, error, i)
        wrong = [tuple(o.shape) for o in got[-1].outputs] != [tuple(s) for s in shapes]
        if wrong:
            text = f"{[list(o.shape) for o in got[-1].outputs]}, wanted {[list(s) for s in shapes]}"
            return [Failure("shapes", "shape", (i,), text)]
    want = _true_gradients(case, data.wide, outputs, rows)
    return _compare(case, data, rows, got, want)


class Refused(Exception):
    """The arguments are not what the operator takes, and every backend says so."""


def _raised(case: Case, data: Prepared, error: Exception, index: int) -> list[Failure]:
    if isinstance(error, (ValueError, TypeError)) and index == 0:
        try:
            with vf.backend("reference"):
                OPERATORS[case.op].call(case, data.calls[0], fresh(data.noise[0]))
        except type(error) as other:
            raise Refused(str(other)) from None
        except Exception:
            pass
    text = f"{type(error).__name__}: {error}"
    stem = text.split("\n")[0]
    stem = "".join("#" if c.isdigit() else c for c in stem)[:100]
    return [Failure(stem, "exception", (index,), text[:500])]


def precision(case: Case) -> torch.dtype:
    """float64 where every argument of the arithmetic is."""
    for name, operand in case.operands.items():
        # The x of mmd is no target.
        aside = name in _NO_PRECISION and case.op != "mmd"
        if not aside and operand.dtype != torch.float64:
            return torch.float32
    return torch.float64


def _bound(want: Tensor, own: torch.dtype, arithmetic: float) -> Tensor:
    store, tiny, _ = TABLE[own]
    size = want.abs()
    return size * store + (_top(size) * (_SLACK * arithmetic) + tiny)


def _top(size: Tensor) -> Tensor:
    """The largest of each call, to broadcast."""
    if not size.numel():
        return size
    return size.reshape(CALLS, -1).amax(1).reshape(-1, *[1] * (size.dim() - 1))


def _compare(
    case: Case, data: Prepared, rows: list[Upstream], got: list[Found], want: Found
) -> list[Failure]:
    arithmetic = TABLE[precision(case)].arithmetic
    suspects: list[tuple[str, Tensor, Tensor]] = []
    failures: list[Failure] = []
    for i, truth in enumerate(want.outputs):
        needs = [f.outputs[i].requires_grad for f in got]
        if any(n != truth.requires_grad for n in needs):
            text = f"requires_grad {needs}, wanted {truth.requires_grad}"
            failures.append(Failure(f"value {i}", "requires_grad", _where(needs, truth), text))
        _suspect(suspects, f"value {i}", [f.outputs[i].detach() for f in got], truth, arithmetic)
    for name in leaves_of(case):
        ours = [f.gradients.get(name) for f in got]
        truth = want.gradients.get(name)
        if truth is None and all(g is None for g in ours):
            continue
        operand = case.operands[name]
        truth = torch.zeros(CALLS, *case.sizes(operand.shape)) if truth is None else truth
        given = [
            torch.zeros(case.sizes(operand.shape), dtype=operand.dtype) if g is None else g
            for g in ours
        ]
        if any(g.dtype != operand.dtype for g in given):
            failures.append(Failure(f"gradient of {name}", "dtype", (0,), str(given[0].dtype)))
        _suspect(suspects, f"gradient of {name}", given, truth.double(), arithmetic)
    if suspects:
        failures += _judge(case, data, rows, suspects)
    return failures


def _where(needs: list[bool], truth: Tensor) -> tuple[int, ...]:
    return tuple(i for i, n in enumerate(needs) if n != truth.requires_grad)


def _suspect(
    suspects: list[tuple[str, Tensor, Tensor]],
    name: str,
    given: list[Tensor],
    truth: Tensor,
    arithmetic: float,
) -> None:
    ours, truth = torch.stack(given), truth.detach()
    error = (ours.double() - truth).abs_()
    # NaN is not at most anything.
    if not bool((error <= _bound(truth, ours.dtype, arithmetic)).all()):
        suspects.append((name, ours, truth))


Truth = Callable[[Tensors], Tensors]


def compared(
    case: Case,
    data: Prepared,
    rows: list[Upstream],
    pairs: list[tuple[str, list[Tensor], Tensor]],
    truth: Truth | None = None,
    extra: float = 0.0,
) -> list[Failure]:
    """Failures of results by name, one per call, against float64; `truth` where those are other
    than the outputs and their gradients, `extra` the size of the terms that they are sums of."""
    suspects: list[tuple[str, Tensor, Tensor]] = []
    for name, given, want in pairs:
        _suspect(suspects, name, given, want, TABLE[precision(case)].arithmetic)
    return _judge(case, data, rows, suspects, truth, extra) if suspects else []


def _judge(
    case: Case,
    data: Prepared,
    rows: list[Upstream],
    suspects: list[tuple[str, Tensor, Tensor]],
    of: Truth | None = None,
    extra: float = 0.0,
) -> list[Failure]:
    """Of what is beyond the table: is it also beyond what eager torch gets wrong in this dtype, and
    what the rounding of the inputs does?"""

    def results(wide: Tensors) -> Tensors:
        return _named(true_values(case, wide, rows))

    moved = _moved(case, data, of or results)
    eager = _eager(case, data, rows) if of is None else {}
    arithmetic = TABLE[precision(case)].arithmetic
    failures = []
    for name, ours, truth in suspects:
        own, got = ours.dtype, ours.double()
        largest = torch.finfo(own).max
        finite = torch.where(truth.isfinite(), truth, 0.0)
        allowed = _bound(finite, own, arithmetic)
        allowed = allowed + _FLOOR[precision(case)]
        if name in moved:
            allowed = allowed + moved[name]
        if case.op in ("tc_terms", "mixture_log_prob"):
            # Weights of pairs are exponentials: as right, relatively, as what is in the exponent.
            pairs = pair_log_density(case, data.wide)
            parts = pair_gradient(case, data.wide, name)
            if name.startswith("second"):
                # The variance of first derivatives.
                parts = max(
                    pair_gradient(case, data.wide, f"gradient of {n}") for n in ("z", "scale")
                )
                parts *= parts
            parts *= _largest(rows)
            # Without a dimension the weights' own logarithms are left.
            allowed = allowed + arithmetic * (1 + pairs) * (1 + _top(finite.abs()) + parts)
        elif case.model is not None and case.model[0] == "discretized_logistic_mixture":
            # The components' weights are: of two alike, to the rounding of what they cost.
            cost = torch.finfo(precision(case)).eps * nll_size(case, data.wide)
            allowed = allowed + _terms(case, data, rows, name) * arithmetic
            allowed = allowed + cost * (1 + _top(finite.abs()))
            # A pixel's own rounding, in units of the steepest logistic: once in a value, and once
            # more in a gradient.
            steepest = _steepest(case, data.wide)
            allowed = allowed + _EPS * steepest**2 * _largest(rows)
        elif not _relative(case, name):
            allowed = allowed + _terms(case, data, rows, name) * arithmetic
        allowed = allowed + extra * arithmetic
        # Doubles are added one by one: of equal ones each rounding goes the same way.
        allowed = allowed + _EPS * _count(case) * finite.abs()
        if name == "gradient of scalar":
            # And of terms that cancel, each as large as one is.
            allowed = allowed + _EPS * _count(case) * _terms(case, data, rows, name)
        if name in eager:
            theirs = (eager[name].double() - truth).abs()
            theirs = torch.where(theirs.isfinite(), theirs, 0.0)
            # Up to what a formula in plain torch may lose; where it is wrong it excuses nothing.
            most = 100 * _bound(finite, own, arithmetic)
            allowed = allowed + torch.minimum(2 * _top(theirs), most)
        error = (got - truth).abs()
        right = error <= allowed
        # What float64 holds and this dtype does not is infinite; at its edge either is right.
        edge = truth.abs() + allowed > largest
        right |= edge & ~got.isfinite()
        right |= truth.isnan() & got.isnan()
        right |= truth.isinf() & (got == truth)
        if case.op == "linear_nll" and case.model and case.model[0] == "laplace" and name in eager:
            # The rounding of a logit decides on which side of the kink it lies.
            right |= (got - eager[name].double()).abs() <= allowed
        calls = tuple(i for i in range(CALLS) if not bool(right[i].all()))
        if not calls:
            continue
        lost = (~got.isfinite() & truth.isfinite() & ~right).any()
        how = "not finite" if lost else "wrong"
        i = calls[0]
        bad = (~right[i]).reshape(-1).nonzero()[0, 0]
        one, two, most = (
            float(t[i].reshape(-1)[bad]) for t in (got, truth, allowed.expand_as(truth))
        )
        text = f"call {i}: {one:.9g}, wanted {two:.9g}, allowed {most:.3g}"
        failures.append(Failure(name, how, calls, text))
    return failures


def _count(case: Case) -> int:
    """As many elements as a sum may have."""
    return max(math.prod(case.sizes(o.shape)) for o in case.operands.values())


def _relative(case: Case, name: str) -> bool:
    """Of an estimated KL and of second derivatives too, terms cancel."""
    cancels = "estimator" in case.settings or name.startswith("second")
    return case.op in _RELATIVE and not cancels


# Right to the last digits however small; of the others, terms may cancel.
_RELATIVE = {"rsample", "gaussian_kl", "sample_kl", "tril_sample_kl"}
# What is less beside 1 counts as nothing.
_FLOOR = {torch.float32: 1e-30, torch.float64: 1e-100}


def _terms(case: Case, data: Prepared, rows: list[Upstream], name: str) -> float:
    """The size of the terms that a result is the sum of: a nat, or as many as a target counts."""
    x = data.wide.get("x") if case.model is not None else None
    terms = 1.0 + (float(x.detach().abs().max()) if x is not None and x.numel() else 0.0)
    if case.op == "mmd":
        terms += math.prod(case.shape("x")[1:])
    if case.op in ("log_weights", "monte_carlo_kl"):
        terms += densities_size(case, data.wide)
    if name.startswith("value"):
        return terms
    if name.startswith("second") and case.settings.get("param") in ("std", "var"):
        # Of log sigma, whose derivatives of both orders cancel in sigma itself.
        scale = data.wide["scale"].detach()
        terms *= max(1.0, 1 / float(scale.min())) ** 2 if scale.numel() else 1.0
    return terms * _largest(rows)


def _steepest(case: Case, wide: Tensors) -> float:
    """1 / scale of a mixture's logistics: of its least parameter, up to where log-scales end."""
    assert case.model is not None
    floor = vf.DiscretizedLogisticMixture(**case.model[1]).min_log_scale
    least = float(wide["p0"].min()) if wide["p0"].numel() else 0.0
    return math.exp(-max(floor, min(0.0, least)))


def _largest(rows: list[Upstream]) -> float:
    """Of the upstream gradients."""
    given = [float(u.abs().max()) for row in rows for u in row if u is not None and u.numel()]
    return max(given, default=0.0)


def _named(found: Found) -> Tensors:
    values = {f"value {i}": o.detach() for i, o in enumerate(found.outputs)}
    return values | {f"gradient of {n}": g.detach() for n, g in found.gradients.items()}


def _moved(case: Case, data: Prepared, results: Truth) -> Tensors:
    """How far the results move where every input, and log sigma^2, moves by its rounding."""
    here = results(data.wide)
    eps = torch.finfo(precision(case)).eps
    if case.op == "linear_nll":
        # Its logits are of the layer's dtype.
        eps = torch.finfo(case.operands["h"].dtype).eps
    g = torch.Generator().manual_seed(case.seed)

    def rounding(size: Tensor) -> Tensor:
        # In double: times an integer tensor eps would be a float32 number, and beside 1 nothing.
        sign = torch.randint(0, 2, size.shape, generator=g).double() * 2 - 1
        return eps * sign * size

    most: Tensors = {}
    for _ in range(3):
        shaken = dict(data.wide)
        for name, t in data.wide.items():
            operand = case.operands.get(name)
            if operand is not None and operand.kind.split()[0] in _DISCRETE:
                continue
            moved = t.detach() + rounding(t.detach())
            shaken[name] = moved.requires_grad_(t.requires_grad)
        with rounded(rounding):
            there = results(shaken)
        for name, value in here.items():
            if name not in there:
                continue
            change = (there[name] - value).abs()
            change = torch.where(change.isfinite(), change, 0.0)
            most[name] = torch.maximum(most[name], change) if name in most else change
    return {name: 8 * _top(change) for name, change in most.items()}


def _eager(case: Case, data: Prepared, rows: list[Upstream]) -> Tensors:
    """The same calls by plain torch, in the same dtypes."""
    found: list[Tensors] = []
    plain = {**vars(case), "backward": "plain"}
    calm = Case(**plain)
    try:
        with vf.backend("reference"):
            for i in range(CALLS):
                tensors = {
                    n: t if t.layout != torch.strided else _dense(t, case.operands[n])
                    for n, t in data.calls[i].items()
                }
                given = dict(data.noise[i])
                if "noise" in given:
                    given["noise"] = tensors["noise"]
                data.before[i]()
                row = spoilt(case, data, rows[i], i)
                found.append(_named(call_once(calm, tensors, given, lambda out, row=row: row)))
    except Exception:
        return {}
    return {
        name: torch.stack([f[name] for f in found])
        for name in found[0]
        if all(name in f for f in found)
    }


def _dense(t: Tensor, operand: Operand) -> Tensor:
    return t.detach().clone(memory_format=torch.contiguous_format).requires_grad_(operand.grad)


@contextlib.contextmanager
def quiet():
    """Warnings that say nothing about an error."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
