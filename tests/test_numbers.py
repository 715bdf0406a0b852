"""The numbers that public functions take, of Python, numpy or a tensor: no gradient is lost."""

import numpy as np
import pytest
import torch
from torch.func import grad, jvp
from torch.nn import Parameter

import vaefast as vf

B, D = 5, 3
MU, SCALE = torch.randn(2, B, D, generator=torch.Generator().manual_seed(1)).unbind()
X = torch.rand(B, D, generator=torch.Generator().manual_seed(2))
LOG_W = torch.randn(4, B, generator=torch.Generator().manual_seed(3))
Z = torch.randn(4, B, D, generator=torch.Generator().manual_seed(4))
TRIL = torch.eye(D).expand(B, D, D) * 0.5
POSTERIOR = (MU, SCALE)
PENALTY = {"num_samples": 2, "steps": 3, "leapfrog": 2, "seed": 0}


def likelihood(make):
    def call(value):
        model = make(value)
        params = (MU, SCALE)[: model.fewest_params()]
        return vf.nll(params if len(params) > 1 else MU, (2 * X - 1), model, reduction="none")

    return call


def by_clamp(operator):
    return {
        "clamp": (lambda v: operator(clamp=(-v, v)), 0.5),
        "soft clamp": (lambda v: operator(clamp=("soft", -v, v)), 0.5),
        "min_std": (lambda v: operator(param="softplus", min_std=v), 0.5),
    }


def of(operator, cases):
    return {f"{operator} {name}": case for name, case in cases.items()}


# The number's name is the key's last word. A call with the number, and one that it takes.
NUMBERS = {
    **of("rsample", by_clamp(lambda **k: vf.rsample(*POSTERIOR, seed=0, **k))),
    **of("gaussian_kl", by_clamp(lambda **k: vf.gaussian_kl(*POSTERIOR, **k))),
    **of("sample_kl", by_clamp(lambda **k: vf.sample_kl(*POSTERIOR, seed=0, **k)[1])),
    **of("elbo_loss", by_clamp(
        lambda **k: vf.elbo_loss(MU, X, *POSTERIOR, likelihood="bernoulli", **k).loss)),
    **of("log_weights", by_clamp(
        lambda **k: vf.log_weights(Z, X, Z, *POSTERIOR, likelihood="gaussian", **k))),
    **of("monte_carlo_kl", by_clamp(lambda **k: vf.monte_carlo_kl(Z, *POSTERIOR, **k))),
    **of("tc_terms", by_clamp(lambda **k: vf.tc_terms(MU, *POSTERIOR, dataset_size=9, **k).tc)),
    **of("mixture", by_clamp(lambda **k: vf.mixture_log_prob(Z, *POSTERIOR, **k))),
    **of("annealed", by_clamp(
        lambda **k: vf.annealed_log_weights(lambda z: -z.square().sum(-1), *POSTERIOR,
                                            **PENALTY, **k))),
    **of("kl_per_dimension", by_clamp(lambda **k: vf.metrics.kl_per_dimension(*POSTERIOR, **k))),
    **of("mutual_information", by_clamp(
        lambda **k: vf.metrics.mutual_information(*POSTERIOR, seed=0, **k))),
    "DiagonalGaussian clamp": (lambda v: vf.DiagonalGaussian(MU.repeat(1, 2), clamp=(-v, v)).kl(),
        0.5),
    "DiagonalGaussian temperature": (
        lambda v: vf.DiagonalGaussian(MU.repeat(1, 2)).sample(seed=0, temperature=v), 0.5),
    "rsample temperature": (lambda v: vf.rsample(*POSTERIOR, seed=0, temperature=v), 0.75),
    "sample_kl temperature": (lambda v: vf.sample_kl(*POSTERIOR, seed=0, temperature=v)[0], 0.75),
    "estimated temperature": (lambda v: vf.sample_kl(
        *POSTERIOR, seed=0, temperature=v, estimator="monte_carlo")[0], 0.75),
    "tril temperature": (lambda v: vf.tril_sample_kl(MU, TRIL, seed=0, temperature=v)[0], 0.75),
    "gaussian_kl free_bits": (lambda v: vf.gaussian_kl(*POSTERIOR, free_bits=v), 0.5),
    "no free_bits": (lambda v: vf.gaussian_kl(*POSTERIOR, free_bits=v), 0.0),
    "elbo free_bits": (lambda v: vf.elbo_loss(
        MU, X, *POSTERIOR, likelihood="bernoulli", free_bits=v).loss, 0.5),
    "elbo no free_bits": (lambda v: vf.elbo_loss(
        MU, X, *POSTERIOR, likelihood="bernoulli", free_bits=v).loss, 0.0),
    "elbo of kl free_bits": (lambda v: vf.elbo_loss(
        MU, X, kl=X.sum(1), likelihood="bernoulli", free_bits=v, free_bits_per="sample").loss, 0.5),
    "ciwae beta": (lambda v: vf.importance_loss(LOG_W, bound="ciwae", beta=v), 0.25),
    "renyi alpha": (lambda v: vf.importance_loss(LOG_W, bound="renyi", alpha=v), 0.25),
    "imq scales": (lambda v: vf.mmd(MU, SCALE, scales=[1.0, v]), 0.5),
    "rbf scales": (lambda v: vf.mmd(MU, SCALE, kernel="rbf", scales=[v, 1.0]), 0.5),
    "annealed step_size": (lambda v: vf.annealed_log_weights(
        lambda z: -z.square().sum(-1), *POSTERIOR, step_size=v, **PENALTY), 0.5),
    "active_units threshold": (lambda v: vf.metrics.active_units(MU, threshold=v), 0.5),
    "collapse_report threshold": (
        lambda v: vf.metrics.collapse_report(*POSTERIOR, threshold=v, seed=0).active, 0.5),
    "StudentT df": (likelihood(lambda v: vf.StudentT(df=v)), 0.5),
    "StudentT scale": (likelihood(lambda v: vf.StudentT(scale=v)), 0.5),
    "LogCosh scale": (likelihood(lambda v: vf.LogCosh(scale=v)), 0.5),
    "DiscretizedLogistic low": (likelihood(lambda v: vf.DiscretizedLogistic(low=v)), -1.5),
    "DiscretizedLogistic high": (likelihood(lambda v: vf.DiscretizedLogistic(high=v)), 1.5),
    "mixture of logistics min_log_scale": (lambda v: vf.nll(
        X.view(1, 15, 1).expand(1, 15, 2) * 9 - 7, torch.zeros(1, 1, 2),
        vf.DiscretizedLogisticMixture(channels=1, mixtures=5, min_log_scale=v)), -1.0),
    "Reparameterize temperature": (
        lambda v: vf.nn.Reparameterize(temperature=v)(*POSTERIOR, seed=0), 0.5),
    "Reparameterize min_std": (lambda v: vf.nn.Reparameterize(
        param="softplus", min_std=v)(*POSTERIOR, seed=0), 0.5),
    "GaussianKL free_bits": (lambda v: vf.nn.GaussianKL(free_bits=v)(*POSTERIOR), 0.5),
    "GaussianKL clamp": (lambda v: vf.nn.GaussianKL(clamp=(-v, v))(*POSTERIOR), 0.5),
    "ELBOLoss free_bits": (
        lambda v: vf.nn.ELBOLoss("bernoulli", free_bits=v)(MU, X, *POSTERIOR).loss, 0.5),
    "ImportanceLoss alpha": (lambda v: vf.nn.ImportanceLoss("gaussian", "renyi", alpha=v)(
        Z, X, Z, *POSTERIOR), 0.5),
    "ImportanceLoss beta": (lambda v: vf.nn.ImportanceLoss("gaussian", "ciwae", beta=v)(
        Z, X, Z, *POSTERIOR), 0.5),
    "MMDLoss scales": (lambda v: vf.nn.MMDLoss(scales=[v])(MU, SCALE), 0.5),
    "Linear start": (lambda v: torch.tensor(vf.schedules.Linear(v, steps=3)(1)), 0.25),
    "Cosine stop": (lambda v: torch.tensor(vf.schedules.Cosine(stop=v, steps=3)(1)), 0.25),
    "Cyclical stop": (lambda v: torch.tensor(vf.schedules.Cyclical(stop=v, steps=9)(1)), 0.25),
    "Cyclical ratio": (lambda v: torch.tensor(vf.schedules.Cyclical(steps=9, ratio=v)(1)), 0.25),
    "Capacity stop": (lambda v: torch.tensor(vf.schedules.Capacity(v, steps=3)(1)), 0.25),
    "FreeBits start": (lambda v: torch.tensor(vf.schedules.FreeBits(v, steps=3)(1)), 0.25),
}  # fmt: skip


@pytest.fixture(params=list(NUMBERS))
def number(request):
    return (request.param.split()[-1], *NUMBERS[request.param])


# Their results have no gradient to anything.
UNRECORDED = ("annealed", "kl_per_dimension", "mutual_information", "active_units",
              "collapse_report")  # fmt: skip


@pytest.fixture(params=[name for name in NUMBERS if not name.startswith(UNRECORDED)])
def differentiable(request):
    return (request.param.split()[-1], *NUMBERS[request.param])


@pytest.mark.parametrize("make", [np.float64, np.float32, torch.tensor,
                                  lambda v: torch.tensor(v, dtype=torch.float64),
                                  lambda v: torch.tensor(v, dtype=torch.bfloat16)])  # fmt: skip
def test_numbers_of_numpy_and_of_tensors(number, make):
    _, call, value = number
    want = call(value)
    for _ in range(3):
        assert torch.equal(call(make(value)), want)


def test_a_tensor_is_read_anew(number):
    """Also where a call like it was prepared: the tensor is the same, its value is not."""
    _, call, value = number
    held = torch.tensor(value)
    for factor in (1.0, 1.25, 1.5, 1.25):
        # -1.5 to 1.5 and 1.5 times 0.5 are all allowed.
        held.fill_(value * factor)
        assert torch.equal(call(held), call(value * factor))


def test_a_gradient_is_not_lost(differentiable):
    name, call, value = differentiable
    # Prepared, and right before.
    for _ in range(3):
        call(value)
    for asked in (torch.tensor(value, requires_grad=True), Parameter(torch.tensor(value))):
        with pytest.raises(TypeError, match=rf"{name} is a number.*detach"):
            call(asked)
        # There is none to lose.
        with torch.no_grad():
            assert torch.equal(call(asked), call(value))
        assert torch.equal(call(asked.detach()), call(value))


def test_a_gradient_of_torch_func_is_not_lost(differentiable):
    name, call, value = differentiable
    with pytest.raises(TypeError, match=rf"{name} is a number"):
        grad(lambda v: call(v).float().sum())(torch.tensor(value))
    with pytest.raises(TypeError, match=rf"{name} is a number"):
        jvp(call, (torch.tensor(value),), (torch.tensor(1.0),))


@pytest.mark.parametrize("wrong", [[0.5], torch.zeros(2), torch.zeros(1), torch.tensor(True),
                                   torch.tensor(1j), np.array([0.5]), 1j])  # fmt: skip
def test_what_is_no_number(number, wrong):
    name, call, value = number
    if name in ("clamp", "start") or value < 0:
        pytest.skip("a negative of it is taken first")
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        call(wrong)


INTEGERS = {
    "rsample num_samples": lambda v: vf.rsample(*POSTERIOR, seed=0, num_samples=v),
    "sample_kl num_samples": lambda v: vf.sample_kl(*POSTERIOR, seed=0, num_samples=v)[0],
    "tril num_samples": lambda v: vf.tril_sample_kl(MU, TRIL, seed=0, num_samples=v)[0],
    "rsample offset": lambda v: vf.rsample(*POSTERIOR, seed=0, offset=v),
    "sample_kl offset": lambda v: vf.sample_kl(*POSTERIOR, seed=0, offset=v)[0],
    "nll offset": lambda v: vf.nll(MU, X, vf.Bernoulli(binarize=True), seed=0, offset=v),
    "miwae groups": lambda v: vf.importance_loss(LOG_W, bound="miwae", groups=v),
    "tc_terms dataset_size": lambda v: vf.tc_terms(
        MU[:2], MU[:2], SCALE[:2], dataset_size=v).tc,
    "annealed steps": lambda v: vf.annealed_log_weights(
        lambda z: -z.square().sum(-1), *POSTERIOR, 2, steps=v, seed=0),
    "annealed leapfrog": lambda v: vf.annealed_log_weights(
        lambda z: -z.square().sum(-1), *POSTERIOR, 2, steps=2, leapfrog=v, seed=0),
    "log_marginal chunk": lambda v: vf.log_marginal(lambda x, k: LOG_W[:k], X, 4, v),
    "log_marginal batch_size": lambda v: vf.log_marginal(
        lambda x, k: LOG_W[:k, : len(x)], X, 4, batch_size=v),
    "mutual_information num_samples": lambda v: vf.metrics.mutual_information(
        *POSTERIOR, num_samples=v, seed=0),
    "DiscretizedLogistic bits": likelihood(lambda v: vf.DiscretizedLogistic(bits=v)),
    "Linear steps": lambda v: torch.tensor(vf.schedules.Linear(steps=v)(1)),
    "Cyclical cycles": lambda v: torch.tensor(vf.schedules.Cyclical(steps=9, cycles=v)(1)),
}  # fmt: skip


@pytest.mark.parametrize("case", list(INTEGERS))
def test_integers(case):
    name, call = case.split()[-1], INTEGERS[case]
    want = call(2)
    for make in (np.int64, np.int32, torch.tensor):
        assert torch.equal(call(make(2)), want)
    for wrong in (3.0, True, "2", torch.tensor(2.0)):
        with pytest.raises(TypeError, match=f"{name} must be an int|integer"):
            call(wrong)


DIFFERENTIABLE = {
    "std": lambda v: vf.nll(MU.double(), X.double(), vf.Gaussian(std=v)),
    "scale": lambda v: vf.nll(MU.double(), X.double(), vf.Laplace(scale=v)),
    "beta": lambda v: vf.elbo_loss(
        MU.double(), X, MU.double(), SCALE.double(), likelihood="bernoulli", beta=v).loss,
    "capacity": lambda v: vf.elbo_loss(
        MU.double(), X, MU.double(), SCALE.double(), likelihood="bernoulli", capacity=v).loss,
    **{name: lambda v, name=name: vf.nn.TCLoss(9, **{name: v})(
        MU.double(), MU.double(), SCALE.double()).loss for name in ("alpha", "gamma")},
}  # fmt: skip


@pytest.mark.parametrize("name", list(DIFFERENTIABLE))
def test_what_is_differentiated(name):
    call = DIFFERENTIABLE[name]
    value = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, value)
    for make in (float, np.float32, lambda v: torch.tensor(v)):
        torch.testing.assert_close(call(make(0.37)), call(value), rtol=1e-6, atol=1e-6)
