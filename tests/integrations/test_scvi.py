"""The patch of scvi-tools on its own models: with one noise the same losses and gradients, nearer
to float64's, and all comes back."""

import copy
import importlib.metadata
import inspect
import sys
import warnings

import pytest
import torch

pytest.importorskip("scvi", reason="needs scvi-tools: pip install '.[integrations]'")

import scvi
from scvi.distributions import (
    NegativeBinomial,
    Normal,
    ZeroInflatedNegativeBinomial,
)
from scvi.distributions import _negative_binomial as counts
from scvi.model import PEAKVI, SCVI, TOTALVI, LinearSCVI

from vaefast import distributions
from vaefast.integrations import VersionError
from vaefast.integrations import scvi as fast

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _unpatched():
    yield
    fast.unpatch()


def held(names=("log_nb_positive", "log_zinb_positive", "log_prob", "rsample", "sample", "Normal")):
    """What scvi-tools holds under the names that are replaced, by module and class."""
    found = {}
    for path, module in list(sys.modules.items()):
        if module is None or not (path + ".").startswith("scvi."):
            continue
        for name, value in list(vars(module).items()):
            if name in (*names, "NormalTorch"):
                found[path, name] = value
            if inspect.isclass(value) and value.__module__.startswith("scvi."):
                for own in (*names, "get_reconstruction_loss"):
                    if own in vars(value):
                        found[path, name, own] = vars(value)[own]
    return found


def test_all_that_is_replaced_comes_back():
    before = held()
    done = fast.patch()
    assert done.library == "scvi-tools"
    assert fast.patch() is done
    during = held()
    for name in (
        "scvi.distributions._negative_binomial.log_nb_positive",
        "scvi.distributions._negative_binomial.log_zinb_positive",
        "scvi.distributions._negative_binomial.NegativeBinomial.log_prob",
        "scvi.distributions._negative_binomial.ZeroInflatedNegativeBinomial.log_prob",
        "scvi.module._peakvae.PEAKVAE.get_reconstruction_loss",
        "scvi.distributions._normal.Normal.rsample",
        "scvi.nn._base_components.Normal",
        "scvi.module._totalvae.Normal",
    ):
        assert name in done.replaced
        assert name in repr(done)
    changed = [key for key in before if during.get(key) is not before[key]]
    assert len(changed) >= 8
    fast.unpatch()
    assert held() == before
    assert "rsample" not in vars(Normal)
    with fast.patched():
        assert held().keys() == during.keys()
    assert held() == before


@pytest.mark.parametrize("version", ["1.3.3", "1.5.0", "2.0"])
def test_another_version_is_refused_by_name(version, monkeypatch):
    before = held()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(VersionError, match=rf"scvi-tools must be .* 1\.4\.\*, got {version}"):
        fast.patch()
    assert held() == before


def test_torchs_own_normal_is_left_alone():
    before = dict(vars(torch.distributions.Normal))
    with fast.patched():
        assert dict(vars(torch.distributions.Normal)) == before
        assert type(torch.distributions.Normal(0.0, 1.0)) is torch.distributions.Normal


def draw(*shape, seed=0, low=0.05, high=8.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


FUNCTIONS = {"log_nb_positive": 2, "log_zinb_positive": 3}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("per_gene", [True, False])
@pytest.mark.parametrize("large", [1.0, 1e4])
def test_the_functions_agree_and_are_nearer_to_float64(name, lead, per_gene, large):
    x = torch.floor(draw(16, 30) * (draw(16, 30, seed=5) > 4) * large)
    mu = draw(*lead, 16, 30, seed=1) * large
    theta = draw(*([30] if per_gene else [16, 30]), seed=2)
    pi = draw(*lead, 16, 30, seed=3) - 4
    original = getattr(counts, name)

    def run(function, dtype):
        params = [t.to(dtype).requires_grad_() for t in (mu, theta, pi)[: FUNCTIONS[name]]]
        value = function(x.to(dtype), *params)
        return value, *torch.autograd.grad(value.sum(), params)

    exact, before = run(original, torch.float64), run(original, torch.float32)
    with fast.patched():
        assert getattr(counts, name) is not original
        after = run(getattr(counts, name), torch.float32)
        wide = run(getattr(counts, name), torch.float64)
    for truth, ours, theirs, precise in zip(exact, after, before, wide, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == theirs.shape
        scale = truth.abs().max()
        error = (ours - truth).abs().max() / scale
        assert error <= (theirs - truth).abs().max() / scale + 1e-6
        torch.testing.assert_close(precise, truth, rtol=1e-6, atol=float(scale) * 1e-7)
    if large > 1:
        # There lgamma(x + theta) - lgamma(theta) cancels.
        ours, theirs = ((value[0] - exact[0]).abs().max() for value in (after, before))
        assert ours < theirs / 100


def test_zeros_and_means_of_zero_are_scvis():
    x = torch.tensor([0.0, 0.0, 6.0, 6.0, 1.0])
    mu = torch.tensor([0.0, 1e-9, 0.0, 1e-9, 0.0])
    theta, pi = torch.tensor([1.0, 2.0, 0.5, 3.0, 1e-3]), torch.tensor([0.0, -9.0, 9.0, 0.0, 30.0])
    want = counts.log_zinb_positive(*(t.double() for t in (x, mu, theta, pi)))
    want_nb = counts.log_nb_positive(*(t.double() for t in (x, mu, theta)))
    with fast.patched():
        got = counts.log_zinb_positive(x, mu, theta, pi)
        got_nb = counts.log_nb_positive(x, mu, theta)
        other = counts.log_nb_positive(x, mu, theta, eps=1e-2)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got_nb.double(), want_nb, rtol=1e-5, atol=1e-6)
    assert other[2] > got_nb[2] + 1


def test_other_arrays_go_to_scvis_own():
    seen = []

    def log(t):
        seen.append(t)
        return torch.log(t)

    one = torch.ones(3)
    want = counts.log_nb_positive(one, one, one)
    with fast.patched():
        torch.testing.assert_close(counts.log_nb_positive(one, one, one, log_fn=log), want)
        assert seen
        want = counts.log_zinb_positive(one, one, one, one)
        got = counts.log_zinb_positive(one, one, one, one, lgamma_fn=lambda t: torch.lgamma(t))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("value", [1.0, 0.5, -1.0, float("nan"), float("inf")])
def test_what_is_no_count_is_warned_of_as_before(value):
    one, x = torch.ones(2, 3), torch.tensor([[1.0, 2.0, value], [0.0, 0.0, 0.0]])

    def warned():
        found = []
        for p in (
            NegativeBinomial(mu=one, theta=one),
            NegativeBinomial(mu=one, theta=one, validate_args=True),
            ZeroInflatedNegativeBinomial(mu=one, theta=one, zi_logits=one),
        ):
            with warnings.catch_warnings(record=True) as record:
                warnings.simplefilter("always")
                p.log_prob(x)
                p.log_prob(x[1:])
            found.append([str(w.message) for w in record])
        return found

    before = warned()
    with fast.patched():
        assert warned() == before


def adata(kind):
    data = scvi.data.synthetic_iid(batch_size=24, n_genes=30, n_proteins=6, n_regions=30)
    if kind is TOTALVI:
        kind.setup_anndata(
            data, batch_key="batch", protein_expression_obsm_key="protein_expression"
        )
    else:
        kind.setup_anndata(data, batch_key="batch")
    return data


MODELS = {
    "zinb": (SCVI, {"gene_likelihood": "zinb"}),
    "nb": (SCVI, {"gene_likelihood": "nb"}),
    "poisson": (SCVI, {"gene_likelihood": "poisson"}),
    "normal": (SCVI, {"gene_likelihood": "normal"}),
    "library": (SCVI, {"use_observed_lib_size": False}),
    "gene-cell": (SCVI, {"dispersion": "gene-cell"}),
    "gene-batch": (SCVI, {"dispersion": "gene-batch", "gene_likelihood": "nb"}),
    "ldvae": (LinearSCVI, {}),
    "totalvi": (TOTALVI, {"latent_distribution": "normal"}),
    "totalvi ln": (TOTALVI, {"latent_distribution": "ln", "gene_likelihood": "zinb"}),
    "peakvi": (PEAKVI, {}),
}


def model_of(name):
    kind, settings = MODELS[name]
    scvi.settings.seed = 1
    width = {} if kind is TOTALVI else {"n_hidden": 16}
    return kind(adata(kind), n_latent=3, **width, **settings)


@pytest.fixture
def noise(monkeypatch):
    """All Normals' samples from one stream, that losses may be compared; returns its restart."""
    generator = torch.Generator()

    def rsample(p, sample_shape=()):
        shape = p._extended_shape(torch.Size(sample_shape))
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return p.loc + p.scale * drawn.to(p.loc.dtype)

    def sample(p, sample_shape=()):
        return rsample(p, sample_shape).detach()

    for owner in (torch.distributions.Normal, distributions.FusedNormal):
        monkeypatch.setattr(owner, "rsample", rsample)
        monkeypatch.setattr(owner, "sample", sample)
    return lambda: generator.manual_seed(7)


def loss_and_gradients(module, tensors, dtype):
    module = copy.deepcopy(module).to(dtype).eval()
    tensors = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
    *_, loss = module(tensors, loss_kwargs={"kl_weight": 0.7})
    loss.loss.backward()
    named = module.named_parameters()
    return loss.loss.detach(), {k: p.grad for k, p in named if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_models_losses_and_gradients_agree(name, noise, monkeypatch):
    model = model_of(name)
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=20)))

    def run(dtype):
        noise()
        return loss_and_gradients(model.module, tensors, dtype)

    before = run(torch.float32)
    with monkeypatch.context() as wide:
        # scvi-tools' modules say .float() to one-hot vectors.
        wide.setattr(torch.Tensor, "float", torch.Tensor.double)
        exact = run(torch.float64)
    with fast.patched():
        after = run(torch.float32)
    torch.testing.assert_close(after[0], before[0], rtol=1e-5, atol=1e-4)
    assert abs(after[0] - exact[0]) <= abs(before[0] - exact[0]) + 2e-6 * abs(exact[0])
    assert after[1].keys() == before[1].keys() == exact[1].keys()
    for key, truth in exact[1].items():
        scale = truth.abs().max() + 1e-6
        ours, theirs = ((g[1][key] - truth).abs().max() / scale for g in (after, before))
        assert ours <= theirs + 1e-5, key


@pytest.mark.parametrize("name", ["zinb", "nb", "library", "ldvae", "totalvi", "peakvi"])
def test_models_train_and_answer(name):
    with fast.patched():
        model = model_of(name)
        model.train(max_epochs=3, batch_size=16, accelerator="cpu", enable_progress_bar=False)
        key = next(k for k in ("train_loss_epoch", "elbo_train") if k in model.history)
        assert model.history[key].notna().all().all()
        assert model.get_latent_representation().shape == (len(model.adata), 3)
        if name == "peakvi":
            model.get_normalized_accessibility()
        else:
            model.posterior_predictive_sample(n_samples=2)
            model.get_normalized_expression(n_samples=2)
            assert float(model.get_elbo()) == pytest.approx(float(model.get_elbo()), rel=0.1)


@pytest.mark.parametrize("name", ["zinb", "nb", "library", "ldvae", "totalvi"])
def test_marginal_likelihoods_agree(name, noise):
    model = model_of(name)
    model.is_trained_ = True
    model.module.eval()
    samples = {"n_mc_samples": 6}
    if name != "totalvi":
        samples["n_mc_samples_per_pass"] = 3

    def run():
        noise()
        return float(model.get_marginal_ll(batch_size=20, **samples))

    before = run()
    with fast.patched():
        assert run() == pytest.approx(before, rel=1e-5)
    assert run() == before
