"""The lecture: its models and measures against formulas, and texts that follow the numbers."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from command import vaefast
from html_page import Page as Read
from scipy import stats

import vaefast as vf
from vaefast.lecture import CLAIMS, blur, bounds, coin, labels, pixelcnn, samples, walks
from vaefast.lecture.claim import Difference, difference, judge, listed, mean_std, spread
from vaefast.lecture.context import Context, Digits, Part, load_digits
from vaefast.lecture.fit import fit
from vaefast.lecture.levels import Levels, gaussian_log_mass
from vaefast.lecture.models import KINDS, LATENT, Autoencoder

GRID = torch.arange(17, dtype=torch.float64) / 16


@pytest.fixture(scope="module")
def context():
    """One epoch of everything: enough to see that it runs, and what it says."""
    found = Context(quick=True)
    found.epochs, found.draws, found.samples = 1, 2, 50
    parts = zip(found.digits, (300, 40, 60), strict=True)
    found.digits = Digits(*(Part(part.x[:count], part.labels[:count]) for part, count in parts))
    return found


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_digits_are_split_with_as_many_of_each_class(digits):
    assert [len(part.x) for part in digits] == [1197, 240, 360]
    rows = torch.cat([part.x for part in digits])
    assert len(rows.unique(dim=0)) == 1797
    assert torch.equal((16 * rows).round() / 16, rows)
    for part in digits:
        counts = torch.bincount(part.labels, minlength=10) / len(part.labels)
        assert (counts - 0.1).abs().max() < 0.01


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.3), (0.0, 0.001), (1.7, 0.02), (-3.0, 0.1), (0.53, 1e3), (2.0, 0.01)]
)
def test_a_gaussians_mass_is_the_integral_of_its_density(mean, std):
    log_mass = gaussian_log_mass(GRID, torch.tensor(mean), torch.tensor(std))
    assert log_mass.isfinite().all()
    assert float(log_mass.logsumexp(0)) == pytest.approx(0.0, abs=1e-12)
    edges = np.concatenate([[-np.inf], (np.arange(16) + 0.5) / 16, [np.inf]])
    low, high = edges[:-1], edges[1:]
    mean, std = float(torch.tensor(mean)), float(torch.tensor(std))
    mass = stats.norm.cdf(high, mean, std) - stats.norm.cdf(low, mean, std)
    upper = stats.norm.sf(low, mean, std) - stats.norm.sf(high, mean, std)
    want = np.log(np.where(low > mean, upper, mass), where=mass + upper > 1e-290, out=np.zeros(17))
    seen = mass + upper > 1e-290
    np.testing.assert_allclose(log_mass.numpy()[seen], want[seen], rtol=1e-9, atol=1e-12)


def test_the_discretised_logistic_of_17_levels():
    loc, log_scale = torch.randn(5, 1).double(), torch.randn(5, 1).double() - 2
    params = tuple(p.expand(5, 17).contiguous() for p in (loc, log_scale))
    log_mass = -vf.nll(params, GRID.expand(5, 17), Levels(), reduction="none")
    torch.testing.assert_close(log_mass.logsumexp(1), torch.zeros(5).double(), atol=1e-7, rtol=0)
    edges = torch.sigmoid((((torch.arange(16) + 0.5) / 16) - loc) / log_scale.exp())
    ends = torch.zeros(5, 1).double(), torch.ones(5, 1).double()
    mass = torch.cat([edges, ends[1]], 1) - torch.cat([ends[0], edges], 1)
    torch.testing.assert_close(log_mass.exp(), mass, atol=1e-7, rtol=1e-5)
    mean = (mass * GRID).sum(1)
    torch.testing.assert_close(Levels().mean(params)[:, 0], mean, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "autoencoder"])
def test_log_weights_are_of_the_densities(kind, digits):
    """log P(x|z) + log p(z) - log q(z|x), in float64, of the samples that the seed names."""
    torch.manual_seed(0)
    model, x = Autoencoder(KINDS[kind]).double().requires_grad_(False), digits.test.x[:4].double()
    mu, scale = model.posterior(x)
    z, _ = model.sample(x, 3, seed=5)
    if KINDS[kind].posterior == "full":
        assert (scale.diagonal(dim1=-2, dim2=-1) > 0).all()
        assert torch.equal(scale, scale.tril())
        posterior = torch.distributions.MultivariateNormal(mu, scale_tril=scale).log_prob(z)
    else:
        posterior = torch.distributions.Normal(mu, (0.5 * scale).exp()).log_prob(z).sum(-1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    got = model.log_weights(x, 3, seed=5)
    torch.testing.assert_close(got, model.log_mass(z, x) + prior - posterior, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("kind", list(KINDS))
def test_models_learn_and_their_masses_add_up(kind, digits):
    torch.manual_seed(0)
    model, x = Autoencoder(KINDS[kind]), digits.train.x[:64]
    before = model.loss(x, dataset_size=64, seed=0).item()
    fit(
        model,
        lambda x: model.loss(x, dataset_size=64),
        lambda: model.loss(x, dataset_size=64, seed=0),
        x,
        epochs=20,
        seed=0,
    )
    assert model.loss(x, dataset_size=64, seed=0).item() < before
    z = torch.randn(3, LATENT)
    assert model.mean(z).shape == (3, 64)
    drawn = model.draw(z, seed=0)
    assert torch.equal((16 * drawn).round() / 16, drawn)
    assert drawn.min() >= 0 and drawn.max() <= 1
    # Where each pixel's masses add up to 1, the sum over its levels is the mass of the 63 others.
    rows = drawn[0].repeat(64, 17, 1)
    for pixel in range(64):
        rows[pixel, :, pixel] = GRID.float()
    others = model.log_mass(z[0].expand(64, 17, LATENT), rows).double().logsumexp(1)
    own = float(model.log_mass(z[:1], drawn[:1]))
    assert float(others.sum()) == pytest.approx(63 * own, rel=1e-4)


def test_the_best_weights_are_kept_and_the_generator_is_not_moved():
    torch.manual_seed(3)
    model = torch.nn.Linear(2, 1)
    values = iter([3.0, 1.0, 2.0, 5.0])
    kept = []

    def validate():
        kept.append(model.weight.detach().clone())
        return torch.tensor(next(values))

    data, state = torch.rand(9, 2), torch.get_rng_state()
    fit(model, lambda x: model(x).square().mean(), validate, data, epochs=4, seed=1)
    assert torch.equal(model.weight, kept[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.weight.requires_grad


def test_differences_are_judged_by_two_standard_errors():
    assert difference([3.0, 5.0], [1.0, 1.0]) == Difference(3.0, 1.0, 2)
    assert difference([3.0, 5.0], [1.0, 1.0]).sign == 1
    assert difference([1.0, 1.0], [3.0, 5.0]).sign == -1
    assert difference([1.0, -1.2], [0.0, 0.0]).sign == 0
    assert [difference([a], [0.0]).sign for a in (0.1, 0.0, -0.1)] == [1, 0, -1]
    assert math.isnan(mean_std([1.0])[1])
    assert [judge(s) for s in ([1, 1], [0, -1], [1, -1])] == [True, False, None]
    assert [spread([1.0]), spread([1.0, 2.0])] == ["1.00", "1.50 ± 0.71"]
    assert [listed(n) for n in ([], ["a"], ["a", "b", "c"])] == ["none", "a", "a, b and c"]


def test_the_coin(context):
    found = coin.run(context)
    assert found.holds is True
    assert found.numbers["top_of_grid"] == pytest.approx(0.4)
    assert found.numbers["found_by_gradient"] == pytest.approx(0.4, abs=1e-8)
    want = 400 * math.log(0.4) + 600 * math.log(0.6)
    assert found.numbers["log_likelihood_at_top"] == pytest.approx(want)
    low, high = found.numbers["interval_95"]
    for end in (low, high):
        drop = want - (400 * math.log(end) + 600 * math.log(1 - end))
        assert 2 * drop == pytest.approx(stats.chi2.ppf(0.95, 1), rel=0.02)


def test_subsets_of_labels_hold_as_many_of_each_class(digits):
    for count in (10, 20, 50, 100):
        rows = labels._subset(digits.train.labels, count, 4)
        assert len(rows.unique()) == count
        assert torch.bincount(digits.train.labels[rows]).tolist() == [count // 10] * 10


def test_bounds_rise_with_the_samples():
    torch.manual_seed(0)
    log_w = torch.randn(100, 7).double()
    found = [bounds._iwae(log_w, k) for k in (1, 5, 50, 100)]
    for lower, upper in itertools.pairwise(found):
        assert (lower <= upper).all()
    torch.testing.assert_close(found[0], log_w.mean(0))
    torch.testing.assert_close(found[-1], log_w.exp().mean(0).log())


def test_looks_are_measured_on_the_image():
    upright, leaning, bar, steep = torch.zeros(4, 8, 8)
    upright[1:7, 3] = 1
    for row in range(1, 7):
        leaning[row, row] = 1
    steep[0, 1] = steep[2, 2] = steep[4, 3] = steep[6, 4] = 1
    bar[4, 1:7] = 0.5
    ink, slant, width, height, across, down = walks.looks(
        torch.stack([upright, leaning, bar, steep]).flatten(1)
    ).T
    assert ink.tolist() == pytest.approx([6 / 64, 6 / 64, 3 / 64, 4 / 64])
    # Columns for each row down.
    assert slant[[0, 1, 3]].tolist() == pytest.approx([0.0, 1.0, 0.5])
    spread_of_six = math.sqrt(35 / 12)
    assert height[:2].tolist() == pytest.approx([spread_of_six] * 2)
    assert width[1:3].tolist() == pytest.approx([spread_of_six] * 2, rel=1e-5)
    assert [float(across[0]), float(down[0]), float(down[2])] == [3.0, 3.5, 4.0]


def test_the_labels_gap_is_one_where_one_dimension_is_the_label():
    torch.manual_seed(0)
    classes = torch.arange(2000) % 10
    mu = torch.randn(2000, 3)
    nothing = walks._label_gap(mu, classes)
    mu[:, 1] = classes + 0.01 * torch.rand(2000)
    assert nothing < 0.02
    assert walks._label_gap(mu, classes) == pytest.approx(1.0, abs=0.05)
    mu[:, 2] = mu[:, 1]
    assert walks._label_gap(mu, classes) == pytest.approx(0.0, abs=1e-12)


def test_sharpness_falls_with_blur(digits):
    x = digits.test.x
    soft = torch.nn.functional.avg_pool2d(x.view(-1, 1, 8, 8), 3, 1, 1).flatten(1)
    assert blur.sharpness(soft) < 0.5 * blur.sharpness(x)
    assert blur.sharpness(torch.ones(3, 64)) == 0.0
    edge = torch.zeros(1, 8, 8)
    edge[0, :, 4:] = 1
    # Two of six inner columns have a Laplacian of 1.
    assert blur.sharpness(edge.flatten(1)) == pytest.approx(2 / 6)


def test_pixelcnn_sees_what_is_before_a_pixel_alone():
    torch.manual_seed(0)
    model = pixelcnn.PixelCNN()
    x = torch.rand(1, 64, requires_grad=True)
    logits = model(x)
    for pixel in (0, 1, 8, 27, 63):
        (slope,) = torch.autograd.grad(logits[0, :, pixel].sum(), x, retain_graph=True)
        assert not slope[0, pixel:].any()
        if pixel:
            assert slope[0, pixel - 1] != 0 or pixel % 8 == 0


def test_pixelcnns_loss_is_the_product_over_pixels(digits):
    torch.manual_seed(0)
    model, x = pixelcnn.PixelCNN(), digits.test.x[:2]
    with torch.no_grad():
        shares = torch.log_softmax(model(x), 1)
        levels = (16 * x).long()
        want = -shares.gather(1, levels[:, None]).sum((1, 2))
        torch.testing.assert_close(model.loss(x), want)
    one, two = (model.sample(3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal((16 * one).round() / 16, one)


def test_independent_pixels_are_their_shares(digits):
    train, test = ((16 * part.x).long() for part in (digits.train, digits.test))
    want = 0.0
    for pixel in range(64):
        counts = np.bincount(train[:, pixel], minlength=17) + 1.0
        want -= np.log(counts[test[:, pixel]] / counts.sum()).sum() / len(test)
    assert pixelcnn._independent(digits) == pytest.approx(want, rel=1e-6)


@pytest.mark.each(3)
@pytest.mark.parametrize("name", list(CLAIMS))
def test_every_claim_runs_and_is_ready_for_json(name, context):
    found = CLAIMS[name](context)
    assert json.loads(json.dumps(found.numbers, allow_nan=False)) == found.numbers
    assert found.holds in (True, False, None)
    text = "\n".join(found.parts)
    page = Read(f'<html lang="en"><h1></h1>{text}</html>')
    assert not page.faults
    assert page.of("img") or page.of("svg")
    assert len(page.text) > 300
    for words in ("nan", "inf ", "None"):
        assert words not in page.text


def test_a_claim_that_does_not_hold_says_so(context, monkeypatch):
    """With the two models swapped, the text and the verdict turn round."""
    right = samples.run(context)
    known, swapped = context.model, {"vae": "autoencoder", "autoencoder": "vae"}
    monkeypatch.setattr(context, "model", lambda kind, repeat=0: known(swapped[kind], repeat))
    wrong = samples.run(context)
    assert {right.holds, wrong.holds} == {True, False}
    for measure, other in (("vae", "autoencoder"), ("autoencoder", "vae")):
        found = [c.numbers["squared_mmd_to_test_digits"] for c in (right, wrong)]
        assert found[0][measure]["mean"] == pytest.approx(found[1][other]["mean"])


def test_a_text_names_what_the_differences_say():
    found = {10: Difference(0.1, 0.01, 9), 20: Difference(0.0, 0.1, 9), 50: Difference(-1, 0.1, 9)}
    words = labels._against("raw pixels", found)
    want = "better with 10 labels, no different with 20 labels and worse with 50 labels"
    assert words == f"raw pixels: {want}"


def test_the_command_writes_a_page_and_its_numbers(tmp_path):
    out = tmp_path / "run"
    output = vaefast("lecture", "--quick", "--only", "coin", "--out", out)
    assert "coin: holds" in output
    found = Read((out / "report.html").read_text(encoding="utf-8"))
    assert not found.faults
    for text in ("The likelihood of a coin", "Quick run", "Holds.", "top at 0.400"):
        assert text in found.text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["claims"]["coin"]["holds"] is True
    assert summary["settings"]["quick"] is True
    assert "holds a run already" in vaefast("lecture", "--only", "coin", "--out", out, code=2)
    vaefast("lecture", "--quick", "--only", "coin", "--out", out, "--overwrite", "--threads", 1)
    assert "is no training run" in vaefast("report", out, code=2)


def test_a_claim_that_is_not_known_is_named(tmp_path):
    output = vaefast("lecture", "--only", "coin,dice", "--out", tmp_path / "run", code=2)
    assert "--only takes coin, labels" in output
    assert "'dice'" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quick_lecture_is_whole(tmp_path):
    output = vaefast("lecture", "--quick", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["claims"]) == list(CLAIMS)
    found = Read((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert not found.faults
    for claim in summary["claims"].values():
        assert claim["claim"] in found.text
        assert claim["outcome"] in found.text
    assert "s in all" in output
