"""`linear_nll` is the linear layer followed by `nll`, in any chunks and on every backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import Target
from torch import Tensor

import vaefast as vf
from vaefast.likelihoods import Likelihood

B, H, V = 7, 5, 41
LINKS = {"identity": lambda a: a, "exp": torch.exp, "softplus": F.softplus}


class Layer(NamedTuple):
    """Leaves of a linear layer with several heads, and what it is asked for."""

    model: Likelihood
    h: Tensor
    weights: list[Tensor | None]
    biases: list[Tensor | None]
    target: Tensor

    def leaves(self) -> list[Tensor]:
        own = getattr(self.model, "std", None)
        found = [self.h, *self.weights, *self.biases, own]
        return [t for t in found if isinstance(t, Tensor) and t.requires_grad]

    def fused(self, **settings: object) -> Tensor:
        return vf.linear_nll(self.h, self.weights, self.biases, self.target, self.model, **settings)

    def eager(self, links: list[str] | None = None, **settings: object) -> Tensor:
        """By the logits, stored whole, in float64 and plain PyTorch."""
        positive = self.model.positive_params()
        names = self.model.param_names[: len(self.weights)]
        links = links or ["exp" if name in positive else "identity" for name in names]
        params = []
        for w, b, link in zip(self.weights, self.biases, links, strict=True):
            wide = None if b is None else b.double()
            rows, h = self.h.shape[:-1], self.h.double()
            out = wide.expand(*rows, -1) if w is None else F.linear(h, w.double(), wide)
            params.append(LINKS[link](out))
        x = self.target.to_dense() if self.target.layout == torch.sparse_csr else self.target
        model = vf.Categorical(-1) if self.model.name == "categorical" else self.model
        weight = settings.pop("sample_weight", None)
        given = params[0] if len(params) == 1 else tuple(params)
        with vf.backend("reference"):
            return vf.nll(given, x, model, weight=weight, **settings)


def layer(
    likelihood: str | Likelihood,
    heads: int = 1,
    *,
    samples: int | None = None,
    sparse: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Layer:
    lead = () if samples is None else (samples,)
    make = {"device": device, "dtype": dtype}
    h = torch.randn(*lead, B, H, **make).requires_grad_()
    weights = [(torch.randn(V, H, **make) * 0.3).requires_grad_() for _ in range(heads)]
    biases = [(torch.randn(V, **make) * 0.1).requires_grad_() for _ in range(heads)]
    model = vf.likelihoods.resolve(likelihood)
    counts = torch.poisson(torch.ones(B, V, device=device))
    targets = {
        "bernoulli": counts.clamp(max=1),
        "categorical": torch.randint(0, V, (B,), device=device),
        "gaussian": torch.randn(B, V, device=device),
    }
    target = targets.get(model.name, counts)
    return Layer(model, h, weights, biases, target.to_sparse_csr() if sparse else target)


CASES = [
    ("bernoulli", 1, False),
    ("gaussian", 1, False),
    ("gaussian", 2, False),
    ("categorical", 1, False),
    *((name, heads, sparse) for sparse in (False, True) for name, heads in (
        ("multinomial", 1),
        ("poisson", 1),
        ("negative_binomial", 2),
        ("zero_inflated_negative_binomial", 3),
    )),
]  # fmt: skip


def agree(got: Tensor, want: Tensor, one: Layer, rtol: float = 1e-4) -> None:
    upstream = torch.rand_like(got)
    first = torch.autograd.grad(got, one.leaves(), upstream)
    second = torch.autograd.grad(want, one.leaves(), upstream.double())
    for a, b in zip((got, *first), (want, *second), strict=True):
        scale = float(b.detach().abs().max())
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=0.1 * rtol * scale)


@pytest.mark.each(3)
@pytest.mark.parametrize(("name", "heads", "sparse"), CASES)
def test_it_is_the_layer_and_the_likelihood(
    backend: Target, name: str, heads: int, sparse: bool
) -> None:
    for samples, chunk in ((None, V * 8 * heads), (3, None)):
        check_layer(backend, name, heads, sparse, samples, chunk, SETTINGS)


# A reduction, and whether a mask and weights stand beside the target.
SETTINGS = (
    *(("batchmean", False), ("sum", False), ("mean", False)),
    *(("sample", True), ("mean", True)),
)


def check_layer(
    backend: Target,
    name: str,
    heads: int,
    sparse: bool,
    samples: int | None,
    chunk: int | None,
    settings: Iterable[tuple[str, bool]],
) -> None:
    one = layer(name, heads, samples=samples, sparse=sparse, device=backend.device)
    width = () if name in ("multinomial", "categorical") else (V,)
    over = {
        "mask": torch.rand(B, *width, device=backend.device) < 0.8,
        "sample_weight": torch.rand(B, device=backend.device),
    }
    for reduction, beside in settings:
        given = over if beside else {}
        got = one.fused(reduction=reduction, memory=chunk, **given)
        agree(got, one.eager(reduction=reduction, **given), one)


def test_a_learned_scalar_and_a_shared_head(backend: Target) -> None:
    std = torch.tensor(0.7, requires_grad=True, device=backend.device)
    one = layer(vf.Gaussian(std=std), device=backend.device)
    for reduction in ("sample", "mean"):
        agree(one.fused(reduction=reduction, memory=500), one.eager(reduction=reduction), one)
    # scvi-tools' dispersion per gene.
    one = layer("negative_binomial", 2, device=backend.device)
    one.weights[1] = None
    for links in (None, ["softplus", "exp"], ["exp", "softplus"]):
        agree(one.fused(link=links, memory=500), one.eager(links=links), one)


def test_rows_of_sequences_and_images(backend: Target) -> None:
    """[B, T, H] hidden states: a class or a row of counts at each position."""
    h = torch.randn(3, 4, H, device=backend.device, requires_grad=True)
    w = torch.randn(V, H, device=backend.device, requires_grad=True)
    classes = torch.randint(0, V, (3, 4), device=backend.device)
    counts = torch.randint(0, 5, (3, 4, V), device=backend.device)
    for model, x in ((vf.Categorical(-1), classes), (vf.Multinomial(), counts)):
        for reduction in ("none", "sample", "mean"):
            got = vf.linear_nll(h, w, None, x, model, reduction=reduction, memory=999)
            want = vf.nll(F.linear(h, w), x, model, reduction=reduction)
            upstream = torch.rand_like(want)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
            first, second = (torch.autograd.grad(o, (h, w), upstream) for o in (got, want))
            for a, b in zip(first, second, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast(backend: Target, dtype: torch.dtype) -> None:
    """Sixteen bits in the GEMMs; the loss and the sums of the gradients in float32."""
    widths = {"multinomial": 1, "bernoulli": 1, "zero_inflated_negative_binomial": 3}
    for name, heads in widths.items():
        wide = layer(name, heads, device=backend.device)
        exact = wide.eager()
        truth = torch.autograd.grad(exact, wide.leaves())
        with torch.autocast(backend.device, dtype):
            got = wide.fused(memory=500)
        assert got.dtype == torch.float32
        grads = torch.autograd.grad(got, wide.leaves())
        step = torch.finfo(dtype).eps
        torch.testing.assert_close(got.double(), exact, rtol=4 * step, atol=0)
        for a, b in zip(grads, truth, strict=True):
            assert a.dtype == torch.float32
            bound = 8 * step * float(b.abs().max())
            torch.testing.assert_close(a.double(), b.double(), rtol=8 * step, atol=bound)
        narrow = layer(name, heads, dtype=dtype, device=backend.device)
        loss = narrow.fused(memory=500)
        scaled = torch.autograd.grad(loss * 1024, narrow.leaves())
        assert all(g.dtype == dtype and torch.isfinite(g).all() for g in scaled)


def test_gradcheck(backend: Target) -> None:
    for name, heads in (("multinomial", 1), ("categorical", 1), ("negative_binomial", 2)):
        one = layer(name, heads, dtype=torch.float64, device=backend.device)
        h, w, b = one.h[:3, :2], one.weights, one.biases
        small = [t[:4].detach().requires_grad_() for t in b]
        leaves = [h.detach().requires_grad_(), *[t[:4, :2].detach().requires_grad_() for t in w]]
        x = one.target[:3] % 4 if name == "categorical" else one.target[:3, :4]

        def loss(
            *given: Tensor, reduction: str, x: Tensor = x, name: str = name, n: int = heads
        ) -> Tensor:
            heads = given[1 : 1 + n], given[1 + n :]
            return vf.linear_nll(given[0], *heads, x, name, reduction=reduction, memory=40)

        for reduction in ("sample", "batchmean"):
            assert torch.autograd.gradcheck(
                lambda *t, r=reduction: loss(*t, reduction=r), (*leaves, *small)
            )
        assert torch.autograd.gradgradcheck(
            lambda *t: loss(*t, reduction="batchmean"), (*leaves, *small)
        )


def test_only_what_is_asked_for(backend: Target) -> None:
    """One leaf at a time, none at all, and a second backward over the same graph."""
    one = layer("multinomial", device=backend.device)
    want = torch.autograd.grad(one.fused(), one.leaves())
    for index, leaf in enumerate(one.leaves()):
        for other in one.leaves():
            other.requires_grad_(other is leaf)
        (got,) = torch.autograd.grad(one.fused(memory=500), leaf)
        torch.testing.assert_close(got, want[index], rtol=1e-4, atol=1e-6)
        for other in (one.h, *one.weights, *one.biases):
            other.requires_grad_()
    with torch.no_grad():
        assert not one.fused().requires_grad
    loss = one.fused() * 3
    first = torch.autograd.grad(loss, one.leaves(), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, one.leaves())
    assert all(map(torch.equal, kept, first)) and all(map(torch.equal, kept, second))


def test_operator_and_compile(kernels: Target) -> None:
    one = layer("negative_binomial", 2, device=kernels.device)

    def step(h: Tensor, *rest: Tensor) -> Tensor:
        return vf.linear_nll(h.tanh(), rest[:2], rest[2:], one.target, one.model, memory=999)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    leaves = one.leaves()
    got, want = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, step))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    h, w, b = (t.detach() for t in layer("multinomial", device=kernels.device).leaves())
    x = [torch.ones(B, V, 1, device=kernels.device)]
    settings = ((1.0,), True, -1, 1.0, ["identity"], torch.float32, 3, 1.0, [True] * 3 + [False])
    torch.library.opcheck(
        torch.ops.vaefast.linear_nll.default,
        (h, [w], [b], None, x, None, None, "multinomial", *settings, None, kernels.name),
    )


def test_logits_are_never_stored_whole() -> None:
    """1 MiB a chunk where the logits take 40 MB: nothing that large is allocated."""
    h, w = torch.randn(500, 8), torch.randn(20000, 8)
    x = torch.zeros(500, 20000, dtype=torch.uint8)
    leaves = h.requires_grad_(), w.requires_grad_()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        vf.linear_nll(*leaves, None, x, "bernoulli", memory=1 << 20).backward()
    events = profile.profiler.kineto_results.events()
    assert max(e.nbytes() for e in events if e.name() == "[memory]") <= 1 << 20


def test_module() -> None:
    counts = torch.poisson(torch.ones(B, V))
    module = vf.nn.LinearNLL(H, V, "negative_binomial", shared=("theta",))
    h = torch.randn(B, H)
    loss = module(h, counts)
    torch.testing.assert_close(loss, vf.nll(module.params(h), counts, "negative_binomial"))
    loss.backward()
    assert {n for n, p in module.named_parameters() if p.grad is not None} == {
        "heads.0.weight", "heads.0.bias", "heads.1.bias",
    }  # fmt: skip
    gaussian = vf.nn.LinearNLL(H, V, "gaussian", heads=2)
    x = torch.randn(B, V)
    torch.testing.assert_close(gaussian(h, x), vf.nll(gaussian.params(h), x, "gaussian"))
    with pytest.raises(ValueError, match="support"):
        module(h, -counts - 1)
    with pytest.raises(ValueError, match="shared"):
        vf.nn.LinearNLL(H, V, "poisson", shared=("theta",))


def test_bad_inputs() -> None:
    h, w, b, x = torch.zeros(B, H), torch.zeros(V, H), torch.zeros(V), torch.zeros(B, V)
    wrong = [
        ((h, w[:, 1:], b, x, "poisson"), {}, "weight"),
        ((h, w, b[1:], x, "poisson"), {}, "bias"),
        ((h, (w, w), (b,), x, "negative_binomial"), {}, "one per head"),
        ((h, (w, None), None, x, "negative_binomial"), {}, "neither"),
        ((h, w, b, x[:, 1:], "poisson"), {}, "target"),
        ((h[0], w, b, x, "poisson"), {}, "h must be"),
        ((h, w, b, x, "poisson"), {"link": "log"}, "link"),
        ((h, w, b, x, "poisson"), {"memory": 0}, "memory"),
        ((h, w, b, x, "poisson"), {"reduction": "none"}, "none"),
        ((h, w, b, x, vf.Gaussian("optimal")), {}, "std"),
        ((h, w, b, x, vf.Bernoulli(binarize=True)), {}, "binarize"),
        ((h, w, b, x - 1, "poisson"), {"validate": True}, "support"),
    ]
    for given, settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            vf.linear_nll(*given, **settings)
    empty = vf.linear_nll(h[:0].requires_grad_(), w, b, x[:0], "poisson", reduction="sum")
    assert float(empty.detach()) == 0
