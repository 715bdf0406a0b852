"""What one does with a run: sample, encode, evaluate; and what Lightning is asked for."""

import json
import math

import numpy as np
import pytest
import torch
from command import vaefast
from PIL import Image

import vaefast as vf
from vaefast.train import load

CPU = ("--accelerator", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on the digits, which are the default, and one on counts."""
    folder = tmp_path_factory.mktemp("runs")
    counts = np.random.default_rng(0).poisson(3, (60, 5))
    np.save(folder / "counts.npy", counts)
    vaefast("train", "--epochs", 2, "--width", 16, "--latent", 3, "--out", folder / "digits", *CPU)
    vaefast(
        *("train", folder / "counts.npy", "--likelihood", "negative_binomial", "--latent", 2),
        *("--epochs", 2, "--width", 8, "--out", folder / "counts", *CPU),
    )
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAEFAST_CACHE", str(tmp_path / "cache"))


def test_samples_are_written_as_an_array_or_a_picture(runs, tmp_path):
    for name in ("a", "b"):
        vaefast("sample", runs / "digits", "--count", 5, "--out", f"{name}.npy", "--seed", 3)
    made = np.load("a.npy")
    assert made.shape == (5, 1, 8, 8)
    assert np.array_equal(made, np.load("b.npy"))
    vaefast("sample", runs / "digits", "--out", "s.png")
    assert np.asarray(Image.open("s.png").convert("L")).std() > 5
    vaefast("sample", runs / "counts", "--draw", "--out", "c.npy")
    drawn = np.load("c.npy")
    assert (drawn == np.floor(drawn)).all()
    assert "a .png takes images" in vaefast("sample", runs / "counts", "--out", "c.png", code=2)
    assert "must be a .npy or a .png" in vaefast(
        "sample", runs / "counts", "--out", "c.gif", code=2
    )
    assert "holds no finished run" in vaefast("sample", tmp_path, code=2)


def test_codes_are_the_posteriors_means_in_order(runs, tmp_path):
    vaefast("encode", runs / "counts", runs / "counts.npy", "--out", "z.npy")
    model = load(runs / "counts")
    x = torch.from_numpy(np.load(runs / "counts.npy")).float()
    np.testing.assert_array_equal(np.load("z.npy"), model.encode(x)[0].numpy())
    vaefast("encode", runs / "counts", "--out", "both.npy", "--variances")
    assert np.load("both.npy").shape == (60, 2, 2)
    np.save("wide.npy", np.zeros((4, 9)))
    output = vaefast("encode", runs / "counts", "wide.npy", code=2)
    assert "holds samples of shape [9], the run takes [5]" in output


def test_codes_go_into_a_copy_of_annotated_data(runs, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File("a.h5ad", "w") as file:
        file["X"] = np.load(runs / "counts.npy")
        file["obs/name"] = np.arange(60)
    vaefast("encode", runs / "counts", "a.h5ad", "--out", "b.h5ad")
    vaefast("encode", runs / "counts", runs / "counts.npy", "--out", "z.npy")
    with h5py.File("b.h5ad") as file:
        np.testing.assert_array_equal(file["obsm/X_vae"][()], np.load("z.npy"))
        assert file["obsm/X_vae"].attrs["encoding-type"] == "array"
        assert file["obs/name"][3] == 3
    with h5py.File("a.h5ad") as file:
        assert "obsm" not in file


def test_evaluation_is_of_the_held_out_part(runs):
    output = vaefast("evaluate", runs / "digits", "--samples", 60)
    found = json.loads((runs / "digits" / "evaluation.json").read_text())
    assert found["samples"] == 180
    assert found["data"] == "held out"
    summary = json.loads((runs / "digits" / "summary.json").read_text())
    assert found["elbo"] == pytest.approx(summary["held_out_after"]["elbo"], rel=1e-5)
    assert found["elbo"] < found["log_px"] < 0
    assert 0 < found["log_px_standard_error"] < 1
    assert found["bits_per_dimension"] == pytest.approx(-found["log_px"] / 64 / math.log(2))
    assert 0 <= found["active_units"] <= 3
    assert sum(found["kl_per_dimension"]) == pytest.approx(found["kl"], rel=1e-4)
    assert "log p(x)" in output
    vaefast("evaluate", runs / "digits", "--samples", 8, "--anneal", 10, "--limit", 20)
    other = json.loads((runs / "digits" / "evaluation.json").read_text())
    assert other["method"] == "annealed, 10 steps, 8 chains"
    assert other["samples"] == 20


def test_a_loaded_model_is_what_the_operators_take(runs):
    model = load(runs / "digits")
    x = torch.rand(4, 1, 8, 8)
    assert vf.log_marginal(model, x, num_samples=10).shape == (4,)
    assert model.reconstruct(x).shape == x.shape


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, monkeypatch):
    from vaefast.train.objectives import ELBO

    whole, before = ELBO.__call__, []

    def broken(self, model, x, step):
        out = whole(self, model, x, step)
        bias = model.decoder[-1].bias.detach().clone()
        if step.seed % 3 == 1:
            before.append(bias)
            return out._replace(loss=out.loss * float("inf"))
        if before and step.seed % 3 == 2:
            assert torch.equal(before[-1], bias)
        return out

    monkeypatch.setattr(ELBO, "__call__", broken)
    np.save("x.npy", np.random.default_rng(0).random((90, 4)).astype(np.float32))
    output = vaefast(
        *("train", "x.npy", "--batch-size", 10, "--epochs", 2, "--width", 8, "--out", "run", *CPU),
    )
    assert len(before) == 6
    assert "6 steps were skipped: their gradient was not finite" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped_steps"] == 6
    assert "nan" not in (tmp_path / "run" / "metrics.csv").read_text()
    assert "inf" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_lightning_is_told_of_precision_clipping_and_tensorboard(tmp_path):
    np.save("x.npy", np.random.default_rng(0).random((40, 4)).astype(np.float32))
    common = ("train", "x.npy", "--smoke", "--width", 8, *CPU)
    losses = set()
    for precision in ("32-true", "64-true", "bf16-mixed"):
        vaefast(*common, "--precision", precision, "--clip", 0.1, "--out", precision)
        losses.add((tmp_path / precision / "metrics.csv").read_text())
        assert load(tmp_path / precision).encode(torch.zeros(1, 4))[0].isfinite().all()
    assert len(losses) == 3
    output = vaefast(*common, "--precision", "3-true", "--out", "no", code=2)
    assert "precision '3-true' cannot be used" in output
    pytest.importorskip("tensorboard")
    vaefast(*common, "--tensorboard", "--out", "board")
    assert list((tmp_path / "board" / "tensorboard").glob("events*"))


def test_threads_are_as_asked_and_given_back(tmp_path, monkeypatch):
    from vaefast.train import run

    seen, whole, before = [], run.fit, torch.get_num_threads()

    def seeing(*arguments, **settings):
        seen.append(torch.get_num_threads())
        return whole(*arguments, **settings)

    monkeypatch.setattr(run, "fit", seeing)
    np.save("x.npy", np.random.default_rng(0).random((40, 4)).astype(np.float32))
    vaefast("train", "x.npy", "--smoke", "--threads", before + 1, "--out", "run", *CPU)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "bad"), [("--devices", 0), ("--nodes", 0), ("--strategy", "abacus")]
)
def test_machines_that_cannot_be_had_are_one_line(name, bad):
    np.save("x.npy", np.random.default_rng(0).random((40, 4)).astype(np.float32))
    output = vaefast("train", "x.npy", name, bad, "--smoke", *CPU, code=2)
    assert name[2:] in output


def test_images_are_sized_on_the_command_line(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(6):
        Image.new("RGB", (9 + index, 7), (40 * index, 0, 0)).save(f"images/{index}.png")
    (tmp_path / "images" / "3.png").write_bytes(b"junk")
    common = ("train", "images", "--smoke", "--width", 8, "--size", "4x5", *CPU)
    assert "--broken skip" in vaefast(*common, code=2)
    output = vaefast(*common, "--broken", "skip", "--colour", "grey", "--out", "run")
    assert "samples of shape [1, 4, 5]" in output
    assert "1 of 6 images skipped" in output
    vaefast("encode", "run", "images", "--out", "z.npy")
    assert np.load("z.npy").shape == (5, 16)
    for size in ("0", "axb", "1x2x3"):
        assert "--size must be like 64 or 48x64" in vaefast(*common, "--size", size, code=2)
    np.save("x.npy", np.zeros((5, 4)))
    assert "are for folders" in vaefast("train", "x.npy", "--size", 4, code=2)
