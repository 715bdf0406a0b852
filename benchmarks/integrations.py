"""The instructions of what `vaefast.integrations` puts in the place of other libraries' own,
forward and backward, on one thread: counts that callgrind gives, which no other process on the
machine moves. A count is no time.

    python -m benchmarks.integrations [--only LIBRARY ... [--cases NAME ...]]

prints them and writes `results/integrations-instructions.json`, and from it the table of
docs/integrations.md; what is not counted keeps what it has there. It needs the extra
`integrations`, valgrind and a C compiler. valgrind hides AVX-512: the counts are those of AVX2
kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ROOT, instructions
from .report import number, table

DOCS = ROOT / "docs" / "integrations.md"
BEGIN, END = "<!-- instructions:begin -->", "<!-- instructions:end -->"
RESULT = Path(__file__).parent / "results" / "integrations-instructions.json"
OWN, FUSED = "own", "vaefast"

# By the name of a case, what to call by the name of a column.
Cases = Iterator[tuple[str, Mapping[str, "Callable[[], Any] | Patched"]]]


def leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def pyro_cases() -> Cases:
    """What a guide's distribution does in a step, and a whole step of Pyro's own loop."""
    import pyro
    import pyro.distributions as dist
    from torch.distributions import kl_divergence

    from vaefast.integrations.pyro import FusedNormal

    # As in a program that leaves Pyro as it is installed, with validation on.
    normals = {OWN: dist.Normal, FUSED: FusedNormal}
    loc, log_scale = leaf(torch.randn(128, 20)), leaf(torch.randn(128, 20))
    zero, one = torch.zeros(128, 20), torch.ones(128, 20)

    def density(normal: Any) -> Callable[[], Any]:
        def run() -> None:
            q = normal(loc, log_scale.exp()).to_event(1)
            z = q()
            (z.sum() + q.log_prob(z).sum()).backward()

        return run

    def divergence(normal: Any) -> Callable[[], Any]:
        def run() -> None:
            q = normal(loc, log_scale.exp()).to_event(1)
            z, kl = q(), kl_divergence(q, dist.Normal(zero, one).to_event(1))
            (z.sum() + kl.sum()).backward()

        return run

    yield "sample and log_prob, 128 x 20", {n: density(k) for n, k in normals.items()}
    yield "sample and KL to N(0, 1), 128 x 20", {n: divergence(k) for n, k in normals.items()}

    def step(normal: Any, elbo: Any) -> Callable[[], Any]:
        torch.manual_seed(0)
        encoder, decoder = torch.nn.Linear(64, 40), torch.nn.Linear(20, 64)
        x = torch.rand(128, 64).round()

        def model(x: Tensor) -> None:
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("latent", dist.Normal(zero, one).to_event(1))
                pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            pyro.module("encoder", encoder)
            mu, log_sigma = encoder(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("latent", normal(mu, log_sigma.exp()).to_event(1))

        loss = elbo()
        return lambda: loss.loss_and_grads(model, guide, x)

    for elbo in (pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO):
        name = f"{elbo.__name__}, loss and gradients of a linear model"
        yield name, {n: step(k, elbo) for n, k in normals.items()}


def scvi_cases() -> Cases:
    """The count likelihoods; the distributions as its modules make them."""
    from scvi.distributions import (
        NegativeBinomial,
        NegativeBinomialMixture,
        ZeroInflatedNegativeBinomial,
    )

    from vaefast.integrations import scvi as fused

    def both(loss: Callable[[], Tensor]) -> dict[str, Callable[[], Any]]:
        def step() -> None:
            loss().backward()

        return {OWN: step, FUSED: Patched(fused.patched, step)}

    cells, genes, proteins = 128, 1000, 100
    x = torch.poisson(3 * torch.rand(cells, genes) ** 8)
    mu, pi = leaf(torch.rand(cells, genes) + 0.1), leaf(torch.randn(cells, genes))
    theta = leaf(torch.rand(genes) + 0.5)
    y = torch.poisson(200 * torch.rand(cells, proteins))
    back, fore = (leaf(s * torch.rand(cells, proteins) + 0.1) for s in (20.0, 200.0))
    r, mixing = leaf(torch.rand(proteins) + 0.5), leaf(torch.randn(cells, proteins))

    def nb() -> Tensor:
        return -NegativeBinomial(mu=mu, theta=theta).log_prob(x).sum(-1).mean()

    def zinb() -> Tensor:
        model = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi)
        return -model.log_prob(x).sum(-1).mean()

    def mixture() -> Tensor:
        model = NegativeBinomialMixture(mu1=back, mu2=fore, theta1=r, mixture_logits=mixing)
        return -model.log_prob(y).sum(-1).mean()

    yield f"NegativeBinomial, {cells} x {genes}", both(nb)
    yield f"ZeroInflatedNegativeBinomial, {cells} x {genes}", both(zinb)
    yield f"NegativeBinomialMixture, {cells} x {proteins}", both(mixture)


def pythae_cases() -> Cases:
    """A step of each model with pythae's own networks, forward and backward."""
    from pythae import models

    from vaefast.integrations import pythae as fused

    batch, latent = 32, 16
    x = torch.rand(batch, 1, 8, 8)
    many = {"number_samples": 5, "number_gradient_estimates": 5}
    kinds = {
        "VAE": (models.VAE, models.VAEConfig, {}),
        "BetaTCVAE": (models.BetaTCVAE, models.BetaTCVAEConfig, {}),
        "INFOVAE_MMD": (models.INFOVAE_MMD, models.INFOVAE_MMD_Config, {}),
        "WAE_MMD": (models.WAE_MMD, models.WAE_MMD_Config, {}),
        "VAMP": (models.VAMP, models.VAMPConfig, {"number_components": 50}),
        "IWAE": (models.IWAE, models.IWAEConfig, {"number_samples": 25}),
        "CIWAE": (models.CIWAE, models.CIWAEConfig, {"number_samples": 25}),
        "MIWAE": (models.MIWAE, models.MIWAEConfig, many),
        "PIWAE": (models.PIWAE, models.PIWAEConfig, many),
    }
    for name, (kind, config, settings) in kinds.items():
        torch.manual_seed(0)
        model = kind(config(input_dim=(1, 8, 8), latent_dim=latent, **settings))
        model.device = "cpu"

        def step(model: Any = model) -> None:
            model.zero_grad()
            model({"data": x}, epoch=12, dataset_size=50_000).loss.backward()

        yield (
            name,
            {
                OWN: step,
                FUSED: Patched(fused.patched, step),
                "vaefast, compat=True": Patched(lambda: fused.patched(compat=True), step),
            },
        )


def diffusers_cases() -> Cases:
    """A posterior of images with its KL."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    from vaefast.integrations import diffusers as fused

    moments = leaf(torch.randn(8, 8, 32, 32))

    def step() -> None:
        posterior = DiagonalGaussianDistribution(moments)
        (posterior.sample().sum() + posterior.kl().mean()).backward()

    yield (
        "sample and kl, 8 x 4 x 32 x 32",
        {
            OWN: step,
            FUSED: Patched(fused.patched, step),
            'vaefast, rng="philox"': Patched(lambda: fused.patched(rng="philox"), step),
        },
    )


class Patched(NamedTuple):
    """What is run while the library is patched; to patch it is not counted."""

    patched: Callable[[], AbstractContextManager[Any]]
    run: Callable[[], Any]


LIBRARIES: dict[str, tuple[str, Callable[[], Cases]]] = {
    "Pyro": ("pyro-ppl", pyro_cases),
    "scvi-tools": ("scvi-tools", scvi_cases),
    "pythae": ("pythae", pythae_cases),
    "diffusers": ("diffusers", diffusers_cases),
}


def measure(folder: Path, library: str, named: list[str], calls: int) -> None:
    """Under callgrind."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    counter = instructions.Counter.of(folder)
    for case, columns in LIBRARIES[library][1]():
        if named and case not in named:
            continue
        for column, run in columns.items():
            state: AbstractContextManager[Any] = contextlib.nullcontext()
            if isinstance(run, Patched):
                state, run = run.patched(), run.run
            with state:
                counter.count(f"{case} | {column}", run, calls)


def count(library: str, named: list[str], calls: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "benchmarks.integrations", "--only", library]
        command += ["--folder", name, "--calls", str(calls)]
        command += ["--cases", *named] if named else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run(instructions.command(command, Path(name)), check=True, env=environment)
        counts = instructions.counted(Path(name))
    found: dict[str, dict[str, float]] = {}
    for key in sorted(counts):
        case, _, column = key.partition(" | ")
        found.setdefault(case, {})[column] = round(counts[key])
    return found


def drawn(found: dict[str, Any]) -> str:
    """The table of the documentation."""
    rows = []
    for library, about in found.items():
        for case, columns in about["instructions"].items():
            own = columns[OWN]
            for column, value in columns.items():
                if column != OWN:
                    option = column.removeprefix(FUSED)
                    label = f"{library} {about['version']}, {case}{option}"
                    each = (number(v / 1e6) for v in (own, value))
                    rows.append([label, *each, f"{value / own:.2f}"])
    return table(["forward and backward", "its own", "vaefast", "of its own"], rows)


def write(found: dict[str, Any]) -> None:
    """Puts the table between the markers of docs/integrations.md."""
    before = DOCS.read_text()
    head, rest = before.split(BEGIN)
    DOCS.write_text(f"{head}{BEGIN}\n{drawn(found)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[*LIBRARIES], choices=[*LIBRARIES])
    parser.add_argument("--cases", nargs="+", default=[], help="of these names")
    parser.add_argument("--calls", type=int, default=4, help="that are counted")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        measure(args.folder, args.only[0], args.cases, args.calls)
        return
    for library in args.only:
        found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        version = importlib.metadata.version(LIBRARIES[library][0])
        counts = count(library, args.cases, args.calls)
        before = found.get(library, {}).get("instructions", {}) if args.cases else {}
        found[library] = {
            "version": version,
            "torch": torch.__version__,
            "instructions": {**before, **counts},
        }
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        write(found)
        for case, columns in counts.items():
            own = columns[OWN]
            each = (f"{n} {v / 1e3:.0f} ({v / own:.3f})" for n, v in columns.items())
            print(f"{library}, {case}: thousand instructions: {', '.join(each)}", flush=True)


if __name__ == "__main__":
    main()
