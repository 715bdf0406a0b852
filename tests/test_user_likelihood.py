"""A likelihood that the library does not know, registered by its formula, works everywhere."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import scipy.stats
import torch
from conftest import Target
from program import python
from test_benchmarks import load
from torch import Tensor

import vaefast as vf
from vaefast import likelihoods


def formula(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    (sigma,), (power,) = params, numbers
    return power * (0.5 * (x / sigma) ** 2 + 2 * torch.log(sigma) - torch.log(x))


@pytest.fixture
def rayleigh() -> Iterator[type[likelihoods.Likelihood]]:
    @likelihoods.register("rayleigh", formula)
    @dataclass(frozen=True, eq=False)
    class Rayleigh(likelihoods.Likelihood):
        power: float = 1.0
        param_names: ClassVar[tuple[str, ...]] = ("sigma",)

        def positive_params(self) -> frozenset[str]:
            return frozenset({"sigma"})

        def draw(self, params: tuple[Tensor, ...], noise: likelihoods.Noise) -> Tensor:
            return params[0] * torch.sqrt(-2 * torch.log(noise("uniform")))

    return Rayleigh


def inputs(device: str = "cpu") -> tuple[Tensor, Tensor]:
    sigma, x = torch.rand(2, 6, 5, device=device) + 0.2
    return sigma.requires_grad_(), x


def test_it_is_a_likelihood_like_any_other(
    rayleigh: type[likelihoods.Likelihood], backend: Target
) -> None:
    sigma, x = inputs(backend.device)
    if backend.name != "reference":
        with pytest.raises(vf.BackendError, match="rayleigh"):
            vf.nll(sigma, x, "rayleigh")
    with vf.backend("auto"):
        # Twice: what a second call finds prepared must be right too.
        for _ in range(2):
            loss = vf.nll(sigma, x, "rayleigh", reduction="none")
        want = -scipy.stats.rayleigh.logpdf(x.cpu(), scale=sigma.detach().cpu())
        torch.testing.assert_close(loss.detach().cpu().double(), torch.from_numpy(want).double())
        (grad,) = torch.autograd.grad(loss.sum(), sigma)
        torch.testing.assert_close(grad, (2 / sigma - x**2 / sigma**3).detach())
        weighted = vf.nll(sigma, x, rayleigh(power=2.0), weight=torch.ones(6, device=x.device))
        torch.testing.assert_close(weighted, 2 * loss.sum() / 6)
        kl = torch.rand(6, device=x.device)
        result = vf.elbo_loss(sigma, x, kl=kl, likelihood="rayleigh")
        torch.testing.assert_close(result.loss, loss.sum() / 6 + kl.mean())
        many = vf.nll(sigma.expand(3, 6, 5), x, "rayleigh", reduction="sample")
        torch.testing.assert_close(many[2], loss.sum(1))
        torch.testing.assert_close(vf.nn.NLL("rayleigh")(sigma, x), loss.sum() / 6)


def test_it_samples_and_stands_behind_a_linear_layer(
    rayleigh: type[likelihoods.Likelihood],
) -> None:
    drawn = rayleigh().sample(torch.full((4, 5000), 0.7), seed=1).double().flatten()
    assert scipy.stats.kstest(drawn.numpy(), scipy.stats.rayleigh(scale=0.7).cdf).pvalue > 1e-4
    h, w = torch.randn(6, 3), torch.randn(5, 3, requires_grad=True)
    x = inputs()[1]
    got = vf.linear_nll(h, w, None, x, "rayleigh", memory=50)
    want = vf.nll(torch.exp(h @ w.t()), x, "rayleigh")
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(o, w)[0] for o in (got, want)))


def test_it_compiles_without_a_break(rayleigh: type[likelihoods.Likelihood]) -> None:
    sigma, x = inputs()
    step = torch.compile(
        lambda s: vf.nll(s.square(), x, "rayleigh"), fullgraph=True, backend="aot_eager"
    )
    (got,) = torch.autograd.grad(step(sigma), sigma)
    (want,) = torch.autograd.grad(vf.nll(sigma.square(), x, "rayleigh"), sigma)
    torch.testing.assert_close(got, want)


def test_it_has_benchmarks(rayleigh: type[likelihoods.Likelihood]) -> None:
    (case, _) = load("cases").collect("nll rayleigh")
    small = case.small()
    made = small.make(torch.device("cpu"))
    for name in small.implementations(torch.device("cpu")):
        run, backend = small.call(name, "forward+backward", made, "aot_eager")
        with vf.backend(backend):
            (loss,), _gradients = run()
        assert torch.isfinite(loss)


def test_names_that_are_taken(rayleigh: type[likelihoods.Likelihood]) -> None:
    for name in ("bernoulli", "categorical", "gaussian_fixed"):
        with pytest.raises(ValueError, match=name):
            likelihoods.register(name, formula)
    # A notebook's cell may run twice.
    assert likelihoods.register("rayleigh", formula)(rayleigh) is rayleigh


PLUGIN = """
from dataclasses import dataclass
import torch, triton, triton.language as tl
from vaefast import likelihoods

@triton.jit
def implementation(x, theta, numbers):
    ratio = x / theta[0]
    value = 0.5 * ratio * ratio + 2 * tl.log(theta[0]) - tl.log(x)
    return value, (2 - ratio * ratio) / theta[0]

def formula(x, params, numbers):
    return 0.5 * (x / params[0]) ** 2 + 2 * torch.log(params[0]) - torch.log(x)

@likelihoods.register("rayleigh_plugin", formula, triton="rayleigh_plugin:implementation")
@dataclass(frozen=True, eq=False)
class Rayleigh(likelihoods.Likelihood):
    param_names = ("sigma",)
"""

USE = """
import torch, vaefast as vf
sigma, x = torch.rand(2, 4, 37) + 0.2
sigma.requires_grad_()
losses = []
for name in ("reference", "triton", "auto"):
    with vf.backend(name):
        loss = vf.nll(sigma, x, "rayleigh_plugin")
        losses.append((loss, *torch.autograd.grad(loss, sigma)))
for found in losses[1:]:
    torch.testing.assert_close(found, losses[0])
print("same")
"""


def test_a_plugin_with_a_triton_implementation(tmp_path: Path) -> None:
    """By name, from a module that nobody imported; its implementation in Triton's interpreter."""
    pytest.importorskip("triton")
    (tmp_path / "rayleigh_plugin.py").write_text(PLUGIN)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "VAEFAST_PLUGINS": "rayleigh_plugin",
        "VAEFAST_BACKEND": "auto",
        "TRITON_INTERPRET": "1",
    }
    done = subprocess.run(
        python(USE), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "same", done.stderr[-3000:]


def test_a_head_in_float16_has_its_gradient_in_float32(
    rayleigh: type[likelihoods.Likelihood],
) -> None:
    """Before the link it is 1e6 here, behind it 1e3."""
    h = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    weight, bias = torch.tensor([[0.5]]), torch.tensor([-7.5])
    x = torch.tensor([[0.03]])
    loss = vf.linear_nll(h, weight, bias, x, rayleigh())
    (found,) = torch.autograd.grad(loss, h)
    # d/dh (x^2 / (2 sigma^2) + 2 log sigma), sigma = exp(w h + b).
    want = float(weight) * (2 - (float(x) * math.exp(7.0)) ** 2)
    assert found.dtype == torch.float16
    assert abs(float(found) - want) < 0.02 * abs(want)
