"""Memory: everything that is returned is written, and nothing is made that need not be."""

import pytest
import torch

import vaefast as vf

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _memory_of_torch():
    """The profiler sees torch's memory alone; test_buffers.py counts the core's own."""
    if "native" not in vf.available_backends():
        yield
        return
    from vaefast.backends.native._buffers import buffers

    before, buffers.limit = buffers.limit, 0
    yield
    buffers.limit = before


def peak(function):
    """The most bytes that were allocated at a time, above those at the start, and the result."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = function()
    events = profile.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, size in memory:
        held += size
        most = max(most, held)
    return most, kept


def test_the_poison_works(backend):
    """Without it the other tests could not see memory that nobody wrote."""
    assert torch.empty(7, device=backend.device).isnan().all()
    assert torch.empty_like(torch.zeros(7, device=backend.device)).isnan().all()


def test_the_measure_works():
    most, _ = peak(lambda: [torch.zeros(MIB), torch.zeros(MIB) + 1][0])
    assert 11 * MIB < most < 13 * MIB


SHAPE = (64, 3, 128, 128)
SIZE = 4 * 64 * 3 * 128 * 128
# Room for per-sample sums, states and what the profiler itself sees of small things.
SMALL = MIB


def filled(value=0.5):
    return torch.full(SHAPE, value)


def leaf(value=0.5):
    return filled(value).requires_grad_()


# Each gives (call, outputs and gradients in units of SIZE).
def kl_case():
    mu, logvar = leaf(), leaf()
    return lambda: torch.autograd.grad(vf.gaussian_kl(mu, logvar), (mu, logvar)), 2


def sample_case():
    mu, logvar = leaf(), leaf()

    def call():
        z, kl = vf.sample_kl(mu, logvar, seed=1)
        # The upstream gradient of the sum is expanded: it takes no memory.
        return z, torch.autograd.grad((z.sum() + kl.sum()), (mu, logvar))

    return call, 3


def chunk_case():
    both = torch.full((64, 6, 128, 128), 0.5)
    mu, logvar = both.chunk(2, 1)

    def call():
        return vf.sample_kl(mu, logvar, seed=1)

    return call, 1


def prior_case():
    mu, logvar = leaf(), leaf()
    prior = torch.zeros(3, 1, 1)
    return lambda: torch.autograd.grad(vf.gaussian_kl(mu, logvar, prior), (mu, logvar)), 2


def learned_prior_case():
    mu, logvar = leaf(), leaf()
    prior = torch.zeros(1, requires_grad=True)
    leaves = (mu, logvar, prior)
    return lambda: torch.autograd.grad(vf.gaussian_kl(mu, logvar, prior), leaves), 2


def bernoulli_case(target=None):
    logits, x = leaf(), filled() if target is None else target
    return lambda: torch.autograd.grad(vf.nll(logits, x, "bernoulli"), logits), 1


def uint8_case():
    return bernoulli_case(torch.zeros(SHAPE, dtype=torch.uint8))


def masked_case():
    logits, x = leaf(), filled()
    mask, weight = torch.ones(SHAPE, dtype=torch.bool), torch.ones(64)

    def call():
        return torch.autograd.grad(vf.nll(logits, x, "bernoulli", mask=mask, weight=weight), logits)

    return call, 1


def gaussian_case():
    mean, logvar, x = leaf(), leaf(), filled(0.1)
    return lambda: torch.autograd.grad(vf.nll((mean, logvar), x, "gaussian"), (mean, logvar)), 2


def scaled_case():
    logits, x = leaf(), filled()
    return lambda: torch.autograd.grad(vf.nll(logits, x, "bernoulli") * 3, logits), 1


def elbo_case():
    logits, x = leaf(), filled()
    mu, logvar = (torch.zeros(64, 20, requires_grad=True) for _ in range(2))

    def call():
        loss = vf.elbo_loss(logits, x, mu, logvar, likelihood="bernoulli", beta=2.0).loss
        return torch.autograd.grad(loss, (logits, mu, logvar))

    return call, 1


def samples_case():
    """Several samples of one target: the target is not repeated."""
    logits = torch.full((8, 8, *SHAPE[1:]), 0.5, requires_grad=True)
    x = torch.full((8, *SHAPE[1:]), 0.5)
    return lambda: torch.autograd.grad(vf.nll(logits, x, "bernoulli"), logits), 1


def inference_case():
    logits, x = filled(), filled()
    return lambda: vf.nll(logits, x, "bernoulli"), 0


CASES = [
    *(kl_case, sample_case, chunk_case, prior_case, learned_prior_case, bernoulli_case),
    *(uint8_case, masked_case, gaussian_case, scaled_case, elbo_case, samples_case),
    inference_case,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removesuffix("_case"))
def test_nothing_beyond_outputs_and_gradients(case):
    if "native" not in vf.available_backends():
        pytest.skip("the reference stores what autograd stores")
    with vf.backend("native"):
        call, units = case()
        most, _ = peak(call)
    assert most <= units * SIZE + SMALL, f"{most / SIZE:.2f} latents or images, allowed {units}"


def test_noise_is_not_stored():
    """K samples keep (mu, scale) and a state for the backward pass, not K x B x D noise."""
    if "native" not in vf.available_backends():
        pytest.skip("the reference stores what autograd stores")
    mu, logvar = (torch.zeros(128, 1024, requires_grad=True) for _ in range(2))
    with vf.backend("native"):
        most, _ = peak(lambda: vf.rsample(mu, logvar, num_samples=32))
    assert most <= 32 * 128 * 1024 * 4 + SMALL
