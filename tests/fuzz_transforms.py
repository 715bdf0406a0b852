"""The cases of `fuzz.py` under what changes how a function is differentiated or run: torch.func,
double backward, forward mode, checkpointing, batched gradients, functionalisation, fake and meta
tensors, torch.compile."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from fuzz_cases import CALLS, Case
from fuzz_check import (
    Failure,
    Prepared,
    Refused,
    Upstream,
    compared,
    fresh,
    leaves_of,
    precision,
    prepare,
    true_values,
    upstreams,
)
from fuzz_operators import OPERATORS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

Tensors = dict[str, Tensor]
Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]


class _Call:
    """Call `i` of a case as a function of what takes a gradient (or of what is given)."""

    def __init__(self, case: Case, data: Prepared, i: int, names: list[str]) -> None:
        self.case, self.data, self.i, self.names = case, data, i, names
        self.rest = {n: t.detach() for n, t in data.calls[i].items()}
        self.leaves = [data.calls[i][n].detach() for n in names]

    def __call__(self, *leaves: Tensor) -> Outputs:
        tensors = {**self.rest, **dict(zip(self.names, leaves, strict=True))}
        self.data.before[self.i]()
        given = dict(fresh(self.data.noise[self.i]))
        if "noise" in given:
            given["noise"] = tensors["noise"]
        return OPERATORS[self.case.op].call(self.case, tensors, given)

    def loss(self, upstream: Upstream) -> Callable[..., Tensor]:
        def value(*leaves: Tensor) -> Tensor:
            return _scalar(self(*leaves), upstream)

        return value


def _scalar(outputs: Outputs, upstream: Upstream) -> Tensor:
    """What has the gradient that autograd gives for this upstream gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for out, u in zip(outputs, upstream, strict=True):
        if u is not None:
            total = total + (out.double() * u.double()).sum()
    return total


def _by_grad(call: _Call, upstream: Upstream) -> list[Tensor]:
    return list(torch.func.grad(call.loss(upstream), tuple(range(len(call.names))))(*call.leaves))


def _by_jacrev(call: _Call, upstream: Upstream) -> list[Tensor]:
    return list(torch.func.jacrev(call.loss(upstream), tuple(range(len(call.names))))(*call.leaves))


def _by_vjp(call: _Call, upstream: Upstream) -> list[Tensor]:
    outputs, transposed = torch.func.vjp(call, *call.leaves)
    given = tuple(
        torch.zeros_like(o) if u is None else u for o, u in zip(outputs, upstream, strict=True)
    )
    return list(transposed(given))


def _by_functional(call: _Call, upstream: Upstream) -> list[Tensor]:
    loss = call.loss(upstream)
    return list(torch.autograd.functional.jacobian(loss, tuple(call.leaves)))


def _by_reentrant(call: _Call, upstream: Upstream) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in call.leaves]
    loss = checkpoint(call.loss(upstream), *leaves, use_reentrant=True)
    loss.backward()
    return _zeros([t.grad for t in leaves], leaves)


def _by_batches(call: _Call, upstream: Upstream) -> list[Tensor]:
    """Two upstream gradients at once, the second half the first: twice may overflow float16."""
    leaves = [t.clone().requires_grad_() for t in call.leaves]
    chosen = [
        (o, torch.stack([u, 0.5 * u]))
        for o, u in zip(call(*leaves), upstream, strict=True)
        if u is not None and o.requires_grad
    ]
    if not chosen:
        return [torch.zeros_like(t) for t in leaves]
    found = torch.autograd.grad(
        [o for o, _ in chosen], leaves, [u for _, u in chosen], allow_unused=True,
        is_grads_batched=True,
    )  # fmt: skip
    which = call.case.seed % 2
    return _zeros([None if f is None else f[which] * (1 + which) for f in found], leaves)


def _by_compile(call: _Call, upstream: Upstream) -> list[Tensor]:
    torch._dynamo.reset()
    leaves = [t.clone().requires_grad_() for t in call.leaves]
    compiled = torch.compile(
        call.loss(upstream), fullgraph=True, backend="aot_eager", dynamic=call.case.seed % 2 == 0
    )
    grads = torch.autograd.grad(compiled(*leaves), leaves, allow_unused=True)
    torch._dynamo.reset()
    return _zeros(grads, leaves)


def _by_functionalize(call: _Call, upstream: Upstream) -> list[Tensor]:
    loss = torch.func.functionalize(
        torch.func.grad(call.loss(upstream), tuple(range(len(call.names))))
    )
    return list(loss(*call.leaves))


def _zeros(grads: Any, leaves: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]


GRADIENTS: dict[str, Callable[[_Call, Upstream], list[Tensor]]] = {
    "grad": _by_grad,
    "jacrev": _by_jacrev,
    "vjp": _by_vjp,
    "functional": _by_functional,
    "reentrant": _by_reentrant,
    "batched": _by_batches,
    "functionalize": _by_functionalize,
    "compile": _by_compile,
}
OTHERS = ("jvp", "forward", "second", "vmap", "fake", "meta")
_WAYS = (*GRADIENTS, *OTHERS)
# Compilation takes a hundred times as long as any other.
_SHARES = {"compile": 0.1}


def choose(case: Case, rng: random.Random) -> None:
    """Makes a case one of a transform."""
    way = rng.choices(_WAYS, [_SHARES.get(w, 1.0) for w in _WAYS])[0]
    case.backward = f"transform {way}"
    if case.op == "importance_loss":
        case.settings.pop("z", None)
    # The upstream gradient is the transform's own.
    case.hidden = tuple(n for n in case.hidden if n != "upstream")
    if way not in ("forward", "second", "reentrant", "batched"):
        # torch.func and the tracers take no CSR tensors.
        case.settings.pop("sparse", None)
    if way in ("vmap", "fake", "meta", "compile", "functionalize"):
        if case.noise and case.noise != "noise":
            case.noise = "seed" if way != "vmap" else ""
        if way == "vmap":
            _without_noise(case)
    if case.noise.startswith("generator"):
        case.noise = "seed"
    for operand in case.operands.values():
        overlaps = ("expanded batch", "expanded row", "one number", "windows")
        # torch cannot give an operand whose elements share memory a tangent.
        if operand.layout == "negated" or (
            way in ("jvp", "forward") and operand.layout in overlaps
        ):
            operand.layout = "dense"
        operand.leaf = True
        # Of a derivative along a direction nothing is known better than its terms.
        if way in ("jvp", "forward", "second") and operand.dtype in (torch.float16, torch.bfloat16):
            operand.dtype = torch.float32


def _without_noise(case: Case) -> None:
    """vmap takes no stream per element: the noise itself is given, or there is none."""
    if case.model is not None:
        case.model[1].pop("binarize", None)
    elif "mu" in case.operands and case.op in ("rsample", "sample_kl", "tril_sample_kl"):
        from fuzz_cases import Operand

        lead = ("K",) if "num_samples" in case.settings else ()
        shape = (*lead, *case.operands["mu"].shape)
        case.operands["noise"] = Operand(shape, "normal", case.operands["mu"].dtype)
        case.noise = "noise"
        case.settings.pop("offset", None)
    if case.noise != "noise":
        case.settings.pop("offset", None)


def check(case: Case) -> list[Failure]:
    """As `fuzz_check.check`."""
    way = case.backward.removeprefix("transform ")
    data = prepare(case)
    names = leaves_of(case)
    truth = OPERATORS[case.op].truth(case, data.wide)
    first = _Call(case, data, 0, names)
    try:
        outputs = first(*first.leaves)
    except (ValueError, TypeError) as error:
        raise Refused(str(error)) from None
    except Exception as error:
        return [_raised(error, "eager")]
    rows = upstreams(case, outputs, [o.shape[1:] for o in truth])
    calls = [_Call(case, data, i, names) for i in range(CALLS)]
    try:
        if way in GRADIENTS:
            return _gradients(case, data, rows, calls, GRADIENTS[way]) if names else []
        return _OTHERS[way](case, data, rows, calls)
    except Exception as error:
        return [_raised(error, way)]


def _raised(error: Exception, way: str) -> Failure:
    text = f"{type(error).__name__}: {error}"
    stem = "".join("#" if c.isdigit() else c for c in text.strip().split("\n")[0])[:100]
    return Failure(stem, f"exception under {way}", (0,), text[:1500])


def _gradients(
    case: Case,
    data: Prepared,
    rows: list[Upstream],
    calls: list[_Call],
    way: Callable[[_Call, Upstream], list[Tensor]],
) -> list[Failure]:
    each = calls[:1] if way is _by_compile else calls
    ours = [way(c, rows[c.i]) for c in each]
    ours += [ours[0]] * (CALLS - len(each))
    want = true_values(case, data.wide, rows).gradients
    pairs = []
    for k, name in enumerate(leaves_of(case)):
        truth = want.get(name)
        truth = torch.zeros_like(data.wide[name]) if truth is None else truth
        if len(each) == 1:
            truth = truth[:1].expand_as(truth)
        pairs.append((f"gradient of {name}", [g[k] for g in ours], truth))
    return compared(case, data, rows, pairs)


def _second(case: Case, data: Prepared, rows: list[Upstream], calls: list[_Call]) -> list[Failure]:
    """The gradient of the gradients' sum with random factors."""
    names = leaves_of(case)
    g = torch.Generator().manual_seed(case.seed)
    factors = {n: torch.randn(data.wide[n].shape, generator=g, dtype=torch.float64) for n in names}

    def twice(outputs: Outputs, row: Upstream, leaves: list[Tensor], of: list[Tensor]) -> Any:
        chosen = [
            (o, u) for o, u in zip(outputs, row, strict=True) if u is not None and o.requires_grad
        ]
        if not chosen or not leaves:
            return [torch.zeros_like(t) for t in leaves]
        first = torch.autograd.grad(
            [o for o, _ in chosen], leaves, [u for _, u in chosen], create_graph=True,
            allow_unused=True,
        )  # fmt: skip
        total = [
            (f.double() * c).sum()
            for f, c in zip(first, of, strict=True)
            if f is not None and f.requires_grad
        ]
        if not total:
            return [torch.zeros_like(t) for t in leaves]
        return _zeros(torch.autograd.grad(sum(total), leaves, allow_unused=True), leaves)

    ours = []
    for call in calls:
        leaves = [t.clone().requires_grad_() for t in call.leaves]
        of = [factors[n][call.i] for n in names]
        ours.append(twice(call(*leaves), rows[call.i], leaves, of))

    def truth(wide: Tensors) -> Tensors:
        stacked: Upstream = []
        for i in range(len(rows[0])):
            each = [row[i] for row in rows]
            some = each[0] is None
            stacked.append(
                None if some else torch.stack([e for e in each if e is not None]).double()
            )
        leaves = [wide[n] for n in names]
        found = twice(OPERATORS[case.op].truth(case, wide), stacked, leaves, list(factors.values()))
        return {f"second in {n}": f for n, f in zip(names, found, strict=True)}

    want = truth(data.wide)
    pairs = [
        (f"second in {n}", [o[k] for o in ours], want[f"second in {n}"])
        for k, n in enumerate(names)
    ]
    return compared(case, data, rows, pairs, truth)


def _along(
    case: Case, data: Prepared, rows: list[Upstream], calls: list[_Call], push: Any
) -> list[Failure]:
    """The derivative along random tangents, of the sum that the upstream gradients make."""
    names = leaves_of(case)
    if not names:
        return []
    g, own = torch.Generator().manual_seed(case.seed), precision(case)
    tangents = {
        n: torch.randn(data.wide[n].shape, generator=g, dtype=torch.float64).to(
            case.operands[n].dtype
        )
        for n in names
    }
    ours = [
        push(c.loss(rows[c.i]), c.leaves, [tangents[n][c.i] for n in names]).to(own) for c in calls
    ]

    def truth(wide: Tensors) -> Tensors:
        found = true_values(case, wide, rows).gradients
        parts = [(found[n] * tangents[n].double()).reshape(CALLS, -1) for n in names if n in found]
        if not parts:
            return {"tangent": torch.zeros(CALLS, dtype=torch.float64)}
        return {"tangent": torch.cat(parts, 1).sum(1), "size": torch.cat(parts, 1).abs().sum(1)}

    want = truth(data.wide)
    size = float(want.get("size", torch.zeros(())).max())
    pairs = [("tangent", ours, want["tangent"])]
    return compared(case, data, rows, pairs, truth, extra=size)


def _jvp(case: Case, data: Prepared, rows: list[Upstream], calls: list[_Call]) -> list[Failure]:
    def push(loss: Any, leaves: list[Tensor], tangents: list[Tensor]) -> Tensor:
        return torch.func.jvp(loss, tuple(leaves), tuple(tangents))[1]

    return _along(case, data, rows, calls, push)


def _forward(case: Case, data: Prepared, rows: list[Upstream], calls: list[_Call]) -> list[Failure]:
    def push(loss: Any, leaves: list[Tensor], tangents: list[Tensor]) -> Tensor:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(a, t) for a, t in zip(leaves, tangents, strict=True)]
            found = forward_ad.unpack_dual(loss(*duals)).tangent
        return torch.zeros(()) if found is None else found

    return _along(case, data, rows, calls, push)


def _vmap(case: Case, data: Prepared, rows: list[Upstream], calls: list[_Call]) -> list[Failure]:
    """All calls as one, over every tensor."""
    every = list(data.calls[0])
    whole = [_Call(case, data, i, every) for i in range(CALLS)]
    stacked = [torch.stack([w.leaves[k] for w in whole]) for k in range(len(every))]
    outputs = torch.vmap(whole[0])(*stacked)
    want = true_values(case, data.wide, rows)
    pairs = [
        (f"value {i}", list(o.unbind(0)), t)
        for i, (o, t) in enumerate(zip(outputs, want.outputs, strict=True))
    ]
    names = leaves_of(case)
    if names:
        at = tuple(every.index(n) for n in names)
        shared = [None if rows[0][i] is None else torch.stack([r[i] for r in rows])
                  for i in range(len(rows[0]))]  # fmt: skip

        def each(given: list[Tensor], *tensors: Tensor) -> Any:
            filled = iter(given)
            upstream = [None if s is None else next(filled) for s in shared]
            return torch.func.grad(whole[0].loss(upstream), at)(*tensors)

        present = [s for s in shared if s is not None]
        found = torch.vmap(each)(present, *stacked)
        for name, grads in zip(names, found, strict=True):
            truth = want.gradients.get(name)
            truth = torch.zeros_like(data.wide[name]) if truth is None else truth
            pairs.append((f"gradient of {name}", list(grads.unbind(0)), truth))
    return compared(case, data, rows, pairs)


def _steps(t: Tensor) -> list[int]:
    """The strides that are ever taken."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def _shapes(real: Outputs, other: Outputs, way: str, strides: bool = True) -> list[Failure]:
    for i, (a, b) in enumerate(zip(real, other, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype or (strides and _steps(a) != _steps(b)):
            text = (
                f"{list(b.shape)} {b.dtype} strides {b.stride()}, real {list(a.shape)} {a.dtype} "
                f"{a.stride()}"
            )
            return [Failure(f"value {i}", f"shape under {way}", (0,), text)]
    return []


def _fake(case: Case, data: Prepared, rows: list[Upstream], calls: list[_Call]) -> list[Failure]:
    call = calls[0]
    every = _Call(case, data, 0, list(data.calls[0]))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        outputs = every(*[mode.from_tensor(t) for t in every.leaves])
    return _shapes(call(*call.leaves), outputs, "fake tensors")


def _meta(case: Case, data: Prepared, rows: list[Upstream], calls: list[_Call]) -> list[Failure]:
    call = calls[0]
    every = _Call(case, data, 0, list(data.calls[0]))
    if "seed" in data.noise[0] and isinstance(data.noise[0]["seed"], Tensor):
        data.noise[0]["seed"] = data.noise[0]["seed"].to("meta")
    outputs = every(*[t.to("meta") for t in every.leaves])
    if "seed" in data.noise[0] and isinstance(data.noise[0]["seed"], Tensor):
        return []
    real = call(*call.leaves)
    return _shapes(real, outputs, "meta tensors", strides=False)


_OTHERS = {
    "jvp": _jvp,
    "forward": _forward,
    "second": _second,
    "vmap": _vmap,
    "fake": _fake,
    "meta": _meta,
}
