"""What the report says of the latent dimensions is of the model's own prior, and its map of both
kinds."""

import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from html_page import Page as Read

import vaefast as vf
from vaefast.report.plane import plane
from vaefast.report.run import keep_held_out, write_report
from vaefast.train import models
from vaefast.train.data import Samples
from vaefast.train.evaluate import evaluate
from vaefast.train.pictures import save_walk
from vaefast.train.run_folder import RunFolder
from vaefast.train.usage import usage

SHAPE = (1, 4, 3)


@pytest.fixture(autouse=True)
def without_umap(monkeypatch, request):
    """It compiles for a minute."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setitem(sys.modules, "umap", None)


def build(name, **settings):
    torch.manual_seed(0)
    model = models.build(name, shape=SHAPE, latent=3, likelihood="gaussian", width=16, **settings)
    with torch.no_grad():
        # As training would: no prior is N(0, 1), no posterior its prior.
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model.eval()


def x(count=40):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def report(tmp_path, name, objective="elbo", model=None):
    model = build(name) if model is None else model
    config = {
        "command": "train",
        "model": {
            "name": name,
            "shape": list(SHAPE),
            "latent": 3,
            "likelihood": "gaussian",
            "width": 16,
        },
        "objective": {"name": objective},
        "training": {"seed": 1},
    }
    with RunFolder(tmp_path / "run") as run:
        run.write_json("config.json", config)
        run.write_weights(model)
        keep_held_out(run, model, Samples(x()))
        write_report(run)
    found = Read((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert not found.faults
    return found.text


@torch.no_grad()
def monte_carlo(model, given, samples=4000):
    """E_q[log q(z|x) - log p(z)] of each x and its standard error."""
    ratio = model.draw(given, num_samples=samples, estimator="monte_carlo", seed=9).kl
    return ratio.mean(0), ratio.std(0) / samples**0.5


@pytest.mark.parametrize("name", models.registered())
def test_the_total_is_the_kl_to_the_models_own_prior(name):
    model = build(name)
    found = usage(model, x().split(7))
    each, error = monte_carlo(model, x())
    # Of 16 samples of each, beside 4,000.
    slack = 6 * float(error.square().sum().sqrt()) * (1 + 250**0.5) / len(x())
    slack += 1e-4 * abs(found.total)
    assert found.total == pytest.approx(float(each.mean()), abs=slack)
    assert found.total == usage(model, x().split(7)).total
    if found.kl is None:
        assert name == "vamp"
        return
    assert found.kl.shape == (model.latent,)
    assert (found.kl > 0).all()
    rest = found.total - float(found.kl.sum())
    if name == "full_covariance":
        assert rest > 0.01
    else:
        assert rest == pytest.approx(0, abs=slack)


@pytest.mark.parametrize("name", ["vae", "full_covariance"])
def test_known_terms_are_those_of_marginals(name):
    model, given = build(name).double(), x().double()
    mu, logvar = model.encode(given)
    want = 0.5 * (mu**2 + logvar.exp() - 1 - logvar)
    torch.testing.assert_close(model.kl_terms(given), want)


def test_the_terms_of_two_layers_are_to_the_learned_prior():
    model, given = build("hierarchical").double(), x().double()
    terms, drawn = model.kl_terms(given, seed=3), model.draw(given, seed=3)
    torch.testing.assert_close(terms.sum(1), drawn.kl)
    z2 = drawn.z[:, model.lower :]
    features, *_ = model._upper(given)
    mu, logvar, prior_mu, prior_logvar = model._lower(features, z2)
    one, two = (
        torch.distributions.Normal(m, (0.5 * v).exp())
        for m, v in ((mu, logvar), (prior_mu, prior_logvar))
    )
    want = torch.distributions.kl_divergence(one, two)
    torch.testing.assert_close(terms[:, : model.lower], want)
    standard = vf.metrics.kl_per_dimension(*model.encode(given))
    assert not torch.allclose(standard[: model.lower], want.mean(0), rtol=0.1)


def test_a_subclass_with_another_prior_has_no_terms():
    for base in (models.VAE, models.FullCovarianceVAE):

        class Shifted(base):
            def log_prior(self, z):
                return super().log_prior(z - 1)

        model = Shifted(SHAPE, latent=2, width=4)
        assert model.kl_terms(x()) is None
        assert not model.has_standard_prior()


def test_each_prior_has_the_words_that_are_right(tmp_path):
    wanted = {
        "vae": ("mutual information", "by how much they are used (their KL)"),
        "vamp": ("all dimensions together: this prior does not have them apart", "a Monte Carlo"),
        "hierarchical": ("each dimension's is to its own prior", "a Monte Carlo mean"),
        "full_covariance": ("nats are in the correlations of the dimensions", "its own prior"),
    }
    assert wanted.keys() == models.registered().keys()
    for name, texts in wanted.items():
        text = report(tmp_path / name, name)
        for part in texts:
            assert part in text, (name, part)
        nats = re.findall(r"dimension \d: \d+\.\d+ (nats|variance)", text)
        assert set(nats) == {"variance" if name == "vamp" else "nats"}
        assert ("Mutual information" in text) == (name == "vamp")
    assert "no posterior and no KL" in report(tmp_path / "wae", "vae", "wae")


def test_figures_and_walks_are_of_the_own_prior_too(tmp_path, monkeypatch):
    from vaefast.train import pictures

    seen = []
    monkeypatch.setattr(
        pictures, "save_grid", lambda *_, labels, **__: seen.append([v.split()[-1] for v in labels])
    )
    for name in models.registered():
        model, found = build(name), evaluate(build(name), Samples(x()), samples=4, seed=2)
        kl = usage(model, x().split(256), 2).kl
        assert ("kl_per_dimension" in found) == (kl is not None)
        if kl is not None:
            assert found["kl_per_dimension"] == pytest.approx(kl.tolist(), rel=0.1, abs=1e-3)
        save_walk(tmp_path / "walk.png", model, x())
        assert set(seen[-1]) <= {"variance" if name == "vamp" else "nats", "unused"}
        json.dumps(found)


def test_an_older_run_has_kept_nothing_of_it(tmp_path):
    report(tmp_path, "vamp")
    path = tmp_path / "run" / "held_out.npz"
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in ("mu", "logvar", "examples")}
    np.savez(path, **kept)
    with RunFolder(tmp_path / "run", resume=True) as run:
        write_report(run)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "of an older version, has kept nothing" in text


def test_the_map_is_umaps_where_it_is_installed(tmp_path, monkeypatch):
    made = []

    class UMAP:
        def __init__(self, **settings):
            made.append(settings)

        def fit_transform(self, values):
            return values[:, :2] * 3

    module = types.ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    points, how = plane(torch.rand(20, 3))
    assert how == "UMAP"
    assert points.shape == (20, 2)
    assert made[-1]["random_state"] == 0
    assert made[-1]["n_neighbors"] == 15
    # It takes fewer neighbours than there are points.
    plane(torch.rand(9, 3))
    assert made[-1]["n_neighbors"] == 8
    assert ": UMAP, without labels" in report(tmp_path, "vae")


def test_the_map_is_by_t_sne_where_umap_is_missing_or_another_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    points, how = plane(torch.rand(20, 3))
    assert how == "t-SNE"
    assert np.isfinite(points).all()
    monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))
    assert plane(torch.rand(20, 3))[1] == "t-SNE"


@pytest.mark.slow
def test_umap_itself_makes_a_map():
    pytest.importorskip("umap")
    for count in (8, 40):
        points, how = plane(torch.randn(count, 4))
        assert how == "UMAP"
        assert points.shape == (count, 2)
        assert np.isfinite(points).all()
