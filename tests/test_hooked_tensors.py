"""What a hook on a saved tensor brings back, of whatever operator: a kernel reads by address, so
that another dtype or other strides are read as those that were saved, and another shape or device
is an error."""

import itertools

import operator_calls
import pytest
import torch
import tracer_cases

import vaefast as vf
from vaefast.ops import _plans

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="the reference saves nothing for a kernel"
)

# What kernels take no gradient to.
CONSTANTS = {"target", "weight", "sample_weight"}
OTHER = {
    torch.float64: torch.float32,
    torch.float32: torch.float64,
    torch.int64: torch.int32,
    torch.bool: torch.uint8,
    torch.uint8: torch.float32,
}
BRING = {
    "shape": lambda t: t[..., :-1] if t.dim() else t.expand(2),
    "rank": lambda t: t.reshape(-1)[0],
    "device": lambda t: t.to("meta"),
}


def of_call(call):
    """A function of its leaves, and these."""
    constants = CONSTANTS - ({"weight"} if call.name == "linear_nll" else set())
    names = [name for name in call.leaves if name not in constants]
    leaves = [call.arguments[name].clone().requires_grad_() for name in names]
    return lambda: call(**dict(zip(names, leaves, strict=True))), leaves


def of_case(case):
    tensors = case.tensors(6)
    leaves, rest = tensors[: case.leaves], tensors[case.leaves :]
    leaves = [t.requires_grad_() for t in leaves]
    return lambda: tracer_cases.outputs(case.call(*leaves, *rest)), leaves


def of_rows(case):
    """A likelihood with a class dimension."""
    name, reduction, beside = case
    params, target = tracer_cases.LIKELIHOODS[f"nll, {name}"].tensors(6)
    positions = vf.nll(params, target, name, reduction="none").shape
    given = {"mask": torch.rand(positions) < 0.6, "weight": torch.rand(positions)} if beside else {}
    leaf = params.requires_grad_()
    return lambda: (vf.nll(leaf, target, name, reduction=reduction, **given),), [leaf]


CASES = [
    *(
        pytest.param(of_rows, case, id=" ".join(case))
        for case in itertools.product(
            vf.likelihoods.registered_rows(),
            ("none", "sample", "batchmean", "sum", "mean"),
            ("", "mask, weight"),
        )
    ),
    *(
        pytest.param(of_call, call, id=str(call))
        for name in operator_calls.operators()
        if name not in tracer_cases.LOOPS
        for call in operator_calls.calls(name, operator_calls.Sizes())
    ),
    *(pytest.param(of_case, r, id=name) for name, r in tracer_cases.ALL.items()),
]


@pytest.fixture(autouse=True)
def no_plans(monkeypatch):
    monkeypatch.setattr(_plans, "kept", _plans.Kept())
    torch.manual_seed(0)
    with vf.backend("native"):
        yield


def graph(outputs):
    """The library's nodes of autograd behind the outputs, and the functions that they are of."""
    seen, left = {}, [o.grad_fn for o in outputs]
    while left:
        node = left.pop()
        if node not in seen:
            seen[node] = getattr(type(node), "_forward_cls", None)
            left += [n for n, _ in node.next_functions if n is not None]
    return {n: of for n, of in seen.items() if of and of.__module__.startswith("vaefast.")}


def saved(outputs):
    """By its place, each saved tensor that is there, to be hooked."""
    return {
        (number, index): tensor
        for number, node in enumerate(graph(outputs))
        for index, tensor in enumerate(node._raw_saved_tensors)
        if node.saved_tensors[index] is not None
    }


def outputs_of(call):
    torch.manual_seed(3)
    return [o for o in call() if o.grad_fn is not None]


def gradients(call, leaves, place=None, bring=None):
    outputs = outputs_of(call)
    if place is not None:
        saved(outputs)[place].register_hooks(lambda t: t, bring)
    # Of each output another, or sums that cancel in the whole hide what is wrong in the parts.
    upstream = [
        torch.linspace(-1, 1 + number, o.numel()).view(o.shape).to(o.dtype)
        for number, o in enumerate(outputs)
    ]
    return torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)


def same(got, want):
    return all(
        a is b is None or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(got, want, strict=True)
    )


def close(got, want):
    return all(
        a is b is None or torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(got, want, strict=True)
    )


@pytest.mark.parametrize(("of", "case"), CASES)
def test_another_dtype_is_read_as_it_was(of, case):
    call, leaves = of(case)
    places = saved(outputs_of(call))
    want = gradients(call, leaves)
    for place in places:
        assert same(gradients(call, leaves, place, lambda t: t.to(OTHER[t.dtype])), want), place


LAYOUTS = {
    "every other": lambda t: torch.stack([t, t + 1], -1)[..., 0] if t.is_floating_point() else t,
    "backwards": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
}


@pytest.mark.parametrize(("of", "case"), CASES)
def test_other_strides_are_read_as_they_were(of, case):
    """Of each tensor that is saved, and where a hook sees all that is, what is made for the
    backward pass among them. Of sums of other strides the order may be another."""
    call, leaves = of(case)
    places = saved(outputs_of(call))
    want = gradients(call, leaves)
    for name, bring in LAYOUTS.items():
        for place in places:
            assert close(gradients(call, leaves, place, bring), want), (name, place)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, bring):
            assert close(gradients(call, leaves), want), name


@pytest.mark.parametrize(("of", "case"), CASES)
def test_another_shape_or_device_is_an_error(of, case):
    """Of what a kernel would read; what no gradient is made of does not matter."""
    call, leaves = of(case)
    places = saved(outputs_of(call))
    want = gradients(call, leaves)
    for place, other in itertools.product(places, BRING):
        try:
            got = gradients(call, leaves, place, BRING[other])
        except RuntimeError:
            continue
        assert same(got, want), (place, other)


def test_no_autograd_function_is_left_out():
    """DReG's calls no kernel."""
    every = {f for f in torch.autograd.Function.__subclasses__() if "vaefast.ops" in f.__module__}
    every = {f for f in every if f.__name__ != "_WeighingZ"}
    met = set()
    for of, case in (case.values for case in CASES):
        for _ in range(2):
            met |= set(graph(outputs_of(of(case)[0])).values())
    assert {f.__name__ for f in every - met} == set()
