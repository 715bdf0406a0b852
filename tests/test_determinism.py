"""The same bits for any thread count, run to run and in a worker; no code shared across ISAs."""

import functools
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from likelihood_cases import ALL
from torch.utils.data import DataLoader, Dataset

import vaefast as vf
from vaefast.random import normal, uniform

pytestmark = pytest.mark.every_isa

ROOT = Path(__file__).resolve().parent.parent
# Enough for several threads, and no multiple of a tile, a vector or a thread.
SHAPE = (67, 1271)


def posterior(device, shape=SHAPE):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for _ in range(2)]


@functools.cache
def likelihood_inputs():
    """Each likelihood with parameters and a target."""
    rng = random.Random(1)
    return [(case, case.params(SHAPE, rng), case.target(SHAPE, rng).float()) for case in ALL]


def outputs(device):
    """Values and gradients of every operator at one seed."""
    found = []
    mu, logvar = posterior(device)
    prior = torch.zeros(SHAPE[1], device=device, requires_grad=True)
    leaves = (mu, logvar, prior)
    for reduction in ("none", "sample", "batchmean", "mean", "dim"):
        z, kl = vf.sample_kl(mu, logvar, prior_mu=prior, reduction=reduction, seed=3)
        upstream = [torch.ones_like(z), torch.ones_like(kl)]
        found += [z, kl, *torch.autograd.grad([z, kl], leaves, upstream)]
    z = vf.rsample(mu, logvar, num_samples=3, seed=3)
    found += [z, *torch.autograd.grad(z.sum(), leaves[:2])]
    state = torch.tensor([5, 1], device=device)
    found += [normal(SHAPE, state), uniform(SHAPE, state, dtype=torch.float64)]
    for case, values, target in likelihood_inputs():
        params = [p.float().to(device).requires_grad_() for p in values]
        x = target.to(device)
        scalar = None
        if case.scalar is not None:
            scalar = case.scalar.to(device, copy=True).requires_grad_()
            params.append(scalar)
        for reduction in ("none", "sample", "batchmean"):
            given = tuple(params[: case.count])
            loss = vf.nll(given, x, case.build(scalar), reduction=reduction)
            found += [loss, *torch.autograd.grad(loss.sum(), params)]
    return found


def test_thread_count_and_run_to_run(kernels):
    torch.set_num_threads(1)
    first = outputs(kernels.device)
    for threads in (2, 2, 3):
        torch.set_num_threads(threads)
        for one, two in zip(first, outputs(kernels.device), strict=True):
            assert torch.equal(one, two)


def test_the_reference_run_to_run():
    with vf.backend("reference"):
        for one, two in zip(outputs("cpu"), outputs("cpu"), strict=True):
            assert torch.equal(one, two)


def test_a_sample_does_not_depend_on_its_batch(kernels):
    """Neither its noise, nor its sums, nor its gradients."""
    mu, logvar = posterior(kernels.device)
    z, kl = vf.sample_kl(mu, logvar, seed=1)
    grads = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))
    part = [t[:5].detach().requires_grad_() for t in (mu, logvar)]
    z_part, kl_part = vf.sample_kl(*part, seed=1)
    assert torch.equal(z_part, z[:5])
    assert torch.equal(kl_part, kl[:5])
    for one, two in zip(
        torch.autograd.grad(z_part.sum() + kl_part.sum(), part), grads, strict=True
    ):
        assert torch.equal(one, two[:5])


class Samples(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        mu = torch.zeros(64, 1024)
        z, kl = vf.sample_kl(mu, mu, seed=index)
        nll = vf.nll(z, mu, "gaussian", reduction="sample")
        return torch.stack([z[:, 7], kl, nll])


@pytest.mark.timeout(120)
def test_data_loader_workers():
    """Also after the parent's own threads have run."""
    if "native" not in vf.available_backends():
        pytest.skip("no compiled core")
    with vf.backend("native"):
        here = [Samples()[i] for i in range(4)]
        for one, two in zip(
            DataLoader(Samples(), batch_size=None, num_workers=2), here, strict=True
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_no_weak_symbol_is_shared_between_instruction_sets(isa):
    """The linker keeps one copy of a weak function: a plain CPU could be given the AVX-512 one."""
    folders = [*ROOT.glob(f"build/*/CMakeFiles/vaefast_cpu_{isa}.dir")]
    nm = shutil.which("nm")
    if not folders or nm is None:
        pytest.skip("the package was not built here, or there is no nm")
    objects = [str(path) for folder in folders for path in folder.rglob("*.o")]
    assert objects
    listed = subprocess.run(
        [nm, "--defined-only", *objects], capture_output=True, text=True, check=True
    ).stdout
    assert f"isa_{isa}" in listed
    shared = [line for line in listed.splitlines() if " W " in line and f"isa_{isa}" not in line]
    assert not shared
