"""The command `vaefast`: its runs, what they write, and what it says of bad input."""

import csv
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from command import vaefast
from PIL import Image
from sklearn.datasets import load_digits

from vaefast import _install
from vaefast.cli import main
from vaefast.cli.bench import find_checkout
from vaefast.cli.common import default_folder
from vaefast.cli.info import build_record, missing
from vaefast.train import InputError
from vaefast.train.run_folder import load

PICTURES = ("samples.png", "reconstructions.png", "latent_walk.png", "loss.png")
SAME = ("weights.safetensors", "metrics.csv", "config.json", "samples.png")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digits(tmp_path):
    path = tmp_path / "digits.npy"
    np.save(path, (load_digits().images[:300] * 15.9375).astype(np.uint8))
    return str(path)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_demo_writes_a_run(tmp_path):
    output = vaefast("demo", "--smoke", "--out", tmp_path / "run")
    for text in ("ELBO", "fused", "eager", "device cpu", "backend", "latent means"):
        assert text in output
    for name in PICTURES:
        picture = np.asarray(Image.open(tmp_path / "run" / name).convert("L"))
        assert min(picture.shape) > 200
        assert picture.std() > 5
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_after"]["elbo"] > summary["held_out_before"]["elbo"]
    assert all(times.keys() == {"fused", "eager"} for times in summary["seconds"].values())
    assert {"step", "loss"} < summary["seconds"].keys()
    assert summary["linear_probe"].keys() == {"latent", "reconstruction", "pixels"}
    assert all(found.keys() == {"10", "20", "50"} for found in summary["linear_probe"].values())
    assert set(summary["unused_dimensions"]) <= set(range(6))
    assert load(tmp_path / "run").mean(torch.zeros(2, 6)).shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_demo_repeats_bit_for_bit(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        vaefast("demo", "--smoke", "--seed", seed, "--out", tmp_path / name)
    for file in SAME:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "two" / file).read_bytes()
        assert content != (tmp_path / "other" / file).read_bytes()


@pytest.mark.slow
def test_demo_as_an_autoencoder_and_with_another_likelihood(tmp_path):
    output = vaefast("demo", "--smoke", "--autoencoder", "--out", tmp_path / "run")
    assert "squared error" in output
    assert "ELBO" not in output
    vaefast("demo", "--smoke", "--likelihood", "laplace", "--latent", 3, "--out", tmp_path / "l")
    config = json.loads((tmp_path / "l" / "config.json").read_text())
    assert config["model"]["likelihood"] == "laplace"
    assert config["model"]["latent"] == 3


def test_a_folder_named_by_the_time_is_not_taken_twice():
    names = set()
    for _ in range(3):
        folder = default_folder("demo")
        folder.mkdir(parents=True)
        names.add(folder.name)
    assert len(names) == 3
    assert all(name.startswith("demo-2") for name in names)


@pytest.mark.slow
def test_demo_keeps_what_there_is_on_interrupt(tmp_path, monkeypatch):
    from vaefast.train import loop

    whole = loop.fit

    def interrupted(*arguments):
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", interrupted)
    output = vaefast("demo", "--smoke", "--out", tmp_path / "run", code=130)
    assert "interrupted" in output
    assert len(rows(tmp_path / "run")) == 1
    assert all((tmp_path / "run" / name).exists() for name in PICTURES)


@pytest.mark.slow
def test_a_run_is_written_over_only_when_asked(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "weights.safetensors").write_text("precious")
    (run / "metrics.csv").write_text("epoch,step\n9,9\n")
    assert "holds a run already" in vaefast("demo", "--smoke", "--out", run, code=2)
    assert (run / "weights.safetensors").read_text() == "precious"
    vaefast("demo", "--smoke", "--out", run, "--overwrite")
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    load(run)


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_train_writes_a_run(tmp_path, digits, arch):
    output = vaefast(
        *("train", digits, "--smoke", "--arch", arch, "--width", 8, "--out", tmp_path / "run")
    )
    assert "270 samples of shape [1, 8, 8] to train on, 30 held out" in output
    for name in (*PICTURES, "weights.safetensors", "summary.json", "checkpoints/last.ckpt"):
        assert (tmp_path / "run" / name).exists()
    assert len(rows(tmp_path / "run")) == 1
    assert load(tmp_path / "run").mean(torch.zeros(2, 16)).shape == (2, 1, 8, 8)


def test_train_takes_vectors(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 5)))
    out = tmp_path / "run"
    vaefast("train", tmp_path / "x.npy", "--smoke", "--likelihood", "gaussian", "--out", out)
    assert (out / "loss.png").exists()
    assert not (out / "samples.png").exists()


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, digits):
    common = ("train", digits, "--width", 16, "--latent", 3, "--warmup", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    vaefast(*common, "--epochs", 3, "--out", whole)
    vaefast(*common, "--epochs", 1, "--out", parts)
    vaefast("train", digits, "--epochs", 3, "--out", parts, "--resume")
    for file in ("weights.safetensors", "metrics.csv"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes()
    betas = [float(r["train_loss"]) - float(r["train_nll"]) for r in rows(whole)]
    assert betas[0] < float(rows(whole)[0]["train_kl"])


def test_a_resumed_run_keeps_its_settings_and_its_data(tmp_path, digits):
    run = tmp_path / "run"
    vaefast("train", digits, "--smoke", "--width", 8, "--out", run)
    before = (run / "weights.safetensors").read_bytes()
    again = ("train", digits, "--resume", "--out", run)
    assert "the run has --latent 16, got 3" in vaefast(*again, "--latent", 3, code=2)
    np.save(tmp_path / "other.npy", np.load(digits)[:100])
    output = vaefast("train", tmp_path / "other.npy", "--resume", "--out", run, code=2)
    assert "not what the run was trained on" in output
    assert "--resume needs --out" in vaefast("train", digits, "--resume", code=2)
    assert (run / "weights.safetensors").read_bytes() == before


def test_train_keeps_what_there_is_on_interrupt(tmp_path, digits, monkeypatch):
    from vaefast.train.fit import Fit

    step = Fit._step

    def interrupting(self, batch):
        if self.epoch == 1 and self.begun == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    run, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_step", interrupting)
        output = vaefast("train", digits, "--width", 8, "--epochs", 50, "--out", run, code=130)
    assert "--resume goes on" in output
    assert all((run / name).exists() for name in (*PICTURES, "weights.safetensors"))
    assert json.loads((run / "summary.json").read_text())["interrupted"]
    assert signal.getsignal(signal.SIGINT) is handler
    vaefast("train", digits, "--epochs", 4, "--out", run, "--resume")
    assert int(rows(run)[-1]["epoch"]) == 4


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, digits, monkeypatch):
    from vaefast.train.objectives import ELBO

    whole = ELBO.__call__

    def broken(*arguments, **settings):
        out = whole(*arguments, **settings)
        return out._replace(loss=out.loss * float("nan"))

    monkeypatch.setattr(ELBO, "__call__", broken)
    output = vaefast("train", digits, "--smoke", "--out", tmp_path / "run", code=2)
    assert "the loss is nan in epoch 1: try a lower --lr" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("demo", "--epochs", "0"), "epochs"),
        (("demo", "--lr", "0"), "positive and finite"),
        (("demo", "--lr", "nan"), "positive and finite"),
        (("demo", "--beta", "-1"), "beta"),
        (("demo", "--likelihood", "cauchy"), "bernoulli"),
        (("demo", "--device", "abacus"), "device 'abacus' cannot be used"),
        (("train", "nowhere.npy"), "nowhere.npy does not exist"),
        (("train", "vectors.npy"), "bernoulli does not take the data's values"),
        (("train", "vectors.npy", "--likelihood", "gaussian", "--arch", "conv"), "takes images"),
        (("train", "vectors.npy", "--arch", "rnn"), "mlp"),
        (
            ("train", "vectors.npy", "--likelihood", "gaussian", "--accelerator", "abacus"),
            "accelerator 'abacus' cannot be used",
        ),
        (("sing",), "No such command"),
    ],
)
def test_bad_options_are_named(tmp_path, arguments, text):
    np.save(tmp_path / "vectors.npy", np.full((9, 4), 3.0))
    output = vaefast(*arguments, code=2)
    # The terminal's width breaks lines anywhere.
    assert text.replace(" ", "") in "".join(output.replace("│", "").split())
    assert "Traceback" not in output


def test_bad_input_leaves_no_folder_behind(tmp_path):
    np.save(tmp_path / "vectors.npy", np.full((9, 4), 3.0))
    vaefast("train", tmp_path / "vectors.npy", "--out", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


def test_info_tells_what_serves():
    facts = json.loads(vaefast("info", "--json"))
    assert facts["serves"]["cpu"] in {"native", "reference"}
    output = vaefast("info")
    assert facts["vaefast"] in output
    assert "cpu: serves" in output


def test_info_says_what_is_missing_and_how_to_get_it(tmp_path):
    (tmp_path / "_build.json").write_text(
        json.dumps({"native": False, "reason": "no compiler was found", "log": ["c++: gone"]})
    )
    record = build_record(tmp_path)
    backends = {"cpu": {"native": "no", "triton": "no"}}
    facts = {"native": {"missing": "no module"}, "backends": backends, "triton": None}
    text = "\n".join(missing(facts, record))
    for part in ("no compiler was found", "c++: gone"):
        assert part in text
    facts = {"native": {}, "triton": None, "backends": {**backends, "cuda": {"native": "no CUDA"}}}
    text = "\n".join(missing(facts, {"reason": "nvcc failed"}))
    for part in ("nvcc failed", "VAEFAST_CUDA=1", "[triton]"):
        assert part in text
    assert missing({"native": {}, "triton": "3", "backends": {"cpu": {}}}, {}) == []
    (tmp_path / "_build.json").write_text("{half")
    assert build_record(tmp_path) == {}


def test_bench_wants_a_checkout(tmp_path):
    with pytest.raises(InputError, match="run this in a source checkout"):
        find_checkout([tmp_path])
    (tmp_path / "csrc").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "__main__.py").write_text("import sys; sys.exit(len(sys.argv))")
    assert find_checkout([tmp_path]) == tmp_path
    vaefast("bench", "run", "--quick", code=3)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(package, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith((f"{package}.", "vaefast.cli.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    remedy = _install.command("demo")
    assert captured.err == f"vaefast: the command needs {package}: {remedy}\n"


def test_without_a_library_of_an_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert f"safetensors, sklearn missing: {_install.command('demo')}" in vaefast("demo", code=2)
    assert _install.command("train") in vaefast("train", "x.npy", code=2)
