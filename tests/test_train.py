"""Models, objectives, data and run folders behind the commands."""

import numpy as np
import pytest
import torch
from PIL import Image

import vaefast as vf
from vaefast.train import InputError
from vaefast.train.data import Split, check_target, load_array, load_digits, split
from vaefast.train.loop import Settings, fit
from vaefast.train.models import VAE
from vaefast.train.objectives import (
    autoencoder_loss,
    eager_nll,
    eager_sample_kl,
    held_out_elbo,
    step_loss,
)
from vaefast.train.pictures import draw_all
from vaefast.train.probe import linear_probe
from vaefast.train.run_folder import RunFolder, load
from vaefast.train.timing import compare

LIKELIHOODS = ["bernoulli", "gaussian", "laplace"]


def small(likelihood="gaussian", shape=(1, 8, 8), **settings):
    torch.manual_seed(0)
    return VAE(shape, latent=3, likelihood=likelihood, **{"width": 16, **settings})


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 7), (1, 3, 40), (2, 1, 1)])
@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_models_fit_any_image_size(arch, shape):
    model = small(shape=shape, arch=arch, width=4)
    x = torch.rand(5, *shape)
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (5, 3)
    assert model.mean(torch.randn(2, 5, 3)).shape == (2, 5, *shape)
    out = step_loss(model, x)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_uint8_images_are_their_floats():
    model, x = small(), torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    one, two = step_loss(model, x, seed=1), step_loss(model, x / 255, seed=1)
    torch.testing.assert_close(one.loss, two.loss)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_eager_formulas_are_the_fused_operators(likelihood):
    model, x = small(likelihood, scale=0.3), torch.rand(6, 1, 8, 8)
    mu, logvar = model.encode(x)
    params, object_ = model.decode(mu), model.likelihood()
    torch.testing.assert_close(
        eager_nll(params, x, object_), vf.nll(params, x, object_, reduction="sample")
    )
    z, kl = eager_sample_kl(mu, logvar)
    torch.testing.assert_close(kl, vf.gaussian_kl(mu, logvar, reduction="sample"))
    assert not torch.equal(z, mu)


def test_held_out_elbo_averages_over_samples_and_batches():
    model, x = small(), torch.rand(11, 1, 8, 8)
    whole = held_out_elbo(model, x, samples=400, seed=3)
    parts = held_out_elbo(model, x, samples=400, seed=3, batch_size=4)
    assert whole.kl.item() == pytest.approx(parts.kl.item(), rel=1e-5)
    assert whole.nll.item() == pytest.approx(parts.nll.item(), rel=1e-2)
    assert whole.loss.item() == pytest.approx((whole.nll + whole.kl).item())
    assert held_out_elbo(model, x, seed=3) == held_out_elbo(model, x, seed=3)


def test_autoencoder_loss_is_half_the_squared_error():
    model, x = small(), torch.rand(5, 1, 8, 8)
    mu, _ = model.encode(x)
    want = 0.5 * ((model.decode(mu) - x) ** 2).flatten(1).sum(1).mean()
    torch.testing.assert_close(autoencoder_loss(model, x).loss, want)


def test_training_improves_the_held_out_elbo_and_repeats():
    images = Split(*(part[:200] for part in load_digits().images))

    def run():
        model = small(width=32)
        before = held_out_elbo(model, images.held_out).loss
        rows = list(fit(model, images, Settings(epochs=20, batch_size=64)))
        return before, rows, model.state_dict()

    before, rows, weights = run()
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert rows[-1]["held_out_loss"] < before - 10
    _, again, same = run()
    assert again == rows
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_timing_leaves_model_and_random_state_alone():
    model, x = small(), torch.rand(8, 1, 8, 8)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    found = compare(model, x, rounds=3)
    assert set(found) == {"step", "loss"}
    assert all(seconds > 0 for timing in found.values() for seconds in timing)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_digits_are_split_once_and_for_all():
    digits = load_digits()
    assert digits.images.train.shape == (1437, 1, 8, 8)
    assert digits.images.held_out.shape == (360, 1, 8, 8)
    assert digits.images.train.min() == 0
    assert digits.images.train.max() == 1
    assert torch.equal(digits.images.held_out, load_digits().images.held_out)
    assert digits.labels.held_out.bincount().min() >= 34


def test_linear_probe_finds_labels_that_are_there():
    labels = Split(torch.arange(10).repeat(20), torch.arange(10).repeat(5))
    codes = Split(*(torch.nn.functional.one_hot(part, 10).double() for part in labels))
    assert linear_probe(codes, labels, draws=2).mean == 1.0
    blind = Split(*(torch.zeros(len(part), 3) for part in labels))
    assert linear_probe(blind, labels, draws=2).mean == pytest.approx(0.1)


def save(path, value):
    if path.suffix == ".npy":
        np.save(path, value)
    elif path.suffix == ".npz":
        np.savez(path, first=value)
    else:
        torch.save({"first": torch.from_numpy(value)}, path)
    return path


@pytest.mark.parametrize("kind", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize(
    ("shape", "dtype", "want"),
    [
        ((6, 5), "float64", [6, 5]),
        ((6, 5, 4), "uint8", [6, 1, 5, 4]),
        ((6, 5, 4, 3), "int64", [6, 3, 5, 4]),
        ((6, 3, 5, 4), "bool", [6, 3, 5, 4]),
    ],
)
def test_arrays_become_channels_first(tmp_path, kind, shape, dtype, want):
    value = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    got = load_array(save(tmp_path / f"x{kind}", value))
    assert list(got.shape) == want
    kept = {"uint8": torch.uint8, "bool": torch.bool}
    assert got.dtype == kept.get(dtype, torch.float32)
    assert sorted(got.flatten().tolist()) == sorted(value.flatten().tolist())


def test_a_folder_of_images_is_read_in_order(tmp_path):
    for index in range(2):
        Image.new("RGB", (5, 4), (index, 20, 30)).save(tmp_path / f"{index}.png")
    images = load_array(tmp_path)
    assert images.shape == (2, 3, 4, 5)
    assert images[1, :, 0, 0].tolist() == [1, 20, 30]
    Image.new("RGB", (6, 4)).save(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"one size and mode: 0.png .* 2.png is \(4, 6, 3\)"):
        load_array(tmp_path)


def test_bad_data_is_named(tmp_path):
    cases = {
        "no.npy": "does not exist",
        "text.csv": "holds no numbers",
        "text.txt": "must be .npy, .npz, .pt, .csv, .tsv, .h5ad, an IDX file",
        "broken.npy": "could not be read",
        "broken.npz": "could not be read",
        "broken.pt": "could not be read",
        "words.npy": "must hold numbers",
        "flat.npy": r"must hold \[N, D\]",
        "two.npz": "needs --key; it holds x, y",
        "list.pt": "must hold a Tensor, got list",
        "empty": "holds no images",
    }
    for name in ("text.csv", "text.txt", "broken.npy", "broken.npz", "broken.pt"):
        (tmp_path / name).write_text("nothing")
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.savez(tmp_path / "two.npz", x=np.zeros((2, 2)), y=np.ones((2, 3)))
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty").mkdir()
    for name, text in cases.items():
        with pytest.raises(InputError, match=text):
            load_array(tmp_path / name)
    assert load_array(tmp_path / "two.npz", key="y").shape == (2, 3)


def test_values_must_fit_the_likelihood():
    check_target(torch.rand(4, 3), "bernoulli")
    check_target(torch.full((4, 3), 7.0), "gaussian")
    with pytest.raises(InputError, match="bernoulli does not take the data's values, 7 to 7"):
        check_target(torch.full((4, 3), 7.0), "bernoulli")
    with pytest.raises(InputError, match="NaN or infinite"):
        check_target(torch.tensor([[float("nan")]]), "gaussian")


def test_split_holds_out_at_least_one():
    data = torch.arange(10).view(10, 1)
    for fraction, count in [(0.0, 1), (0.3, 3), (0.99, 9)]:
        train, held_out = split(data, fraction, seed=0)
        assert len(held_out) == count
        assert sorted(torch.cat([train, held_out]).flatten().tolist()) == list(range(10))
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        split(data[:1], 0.1, seed=0)


def test_a_run_folder_is_not_written_over(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.write_json("config.json", {"a": 1})
    run.append_metrics({"epoch": 1, "step": 5, "loss": 0.1})
    run.append_metrics({"epoch": 2, "step": 9, "loss": 0.2})
    with pytest.raises(InputError, match=r"holds a run already; .* --overwrite"):
        RunFolder(run.path)
    run.close()
    assert RunFolder(run.path, resume=True).read_config() == {"a": 1}
    run.keep_metrics(5)
    assert run.file("metrics.csv").read_text() == "epoch,step,loss\n1,5,0.1\n"
    assert RunFolder(run.path, overwrite=True).read_metrics() == []

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not empty, and holds no run"):
            RunFolder(tmp_path / "other", overwrite=overwrite)
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "other" / "thesis.tex")
    with pytest.raises(InputError, match="no run to resume"):
        RunFolder(tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_weights_come_back_as_they_were(tmp_path, likelihood):
    settings = {"shape": [1, 8, 8], "latent": 3, "likelihood": likelihood, "width": 8}
    model, run = VAE(**settings), RunFolder(tmp_path)
    run.write_weights(model)
    with pytest.raises(InputError, match=r"finished run: config\.json missing"):
        load(tmp_path)
    run.write_json("config.json", {"model": settings})
    got, x = load(tmp_path), torch.rand(2, 1, 8, 8)
    assert torch.equal(got.mean(got.encode(x)[0]), model.mean(model.encode(x)[0]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_are_drawn_for_images_of_any_channels(tmp_path, channels):
    model = small(shape=(channels, 8, 6))
    names = draw_all(tmp_path, model, torch.rand(30, channels, 8, 6), seed=0)
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert pixels.std() > 5
        assert (np.ptp(pixels, axis=2).max() > 0) == (channels >= 3)
    assert draw_all(tmp_path, small(shape=(7,)), torch.rand(3, 7), seed=0) == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"shape": (7,), "arch": "conv"}, r"takes images \[C, H, W\], got samples of shape \[7\]"),
        ({"arch": "rnn"}, "arch must be one of mlp, conv, resnet, got 'rnn'"),
        ({"likelihood": "cauchy"}, "likelihood must be one of bernoulli"),
    ],
)
def test_models_name_what_does_not_fit(settings, text):
    with pytest.raises(InputError, match=text):
        small(**settings)
