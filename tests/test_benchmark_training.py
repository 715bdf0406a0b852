"""The benchmark of the training loop runs, and its hand-written loop is the same training."""

import pytest
import torch
from test_benchmarks import load

import vaefast as vf


def test_it_measures_every_figure(capsys, tmp_path):
    training = load("training")
    training.write(tmp_path / "found.json", rounds=1, budget=0.0, steps=12)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 9 + 4
    assert "over a hand-written loop" in shown[9]
    assert all("share of a step" in line for line in shown[11:])
    assert (tmp_path / "found.json").exists()


def test_both_loops_do_the_same_to_a_model(tmp_path):
    training = load("training")
    settings = {"name": "vae", "shape": [6], "latent": 2, "likelihood": "bernoulli", "width": 8}
    data = training.Samples(torch.rand(training.BATCH * 2, 6))
    loop = training.fit_loop(tmp_path / "run", settings, training.Parts(data, data))
    written = training.models.build(**settings)
    for run in (training.steps_of(loop), training.hand(written, data[:], fused=True)):
        for _ in range(60):
            run()

    def nll(model):
        return vf.nll(model.decode(model.encode(data[:])[0]), data[:], "bernoulli").item()

    before = nll(training.models.build(**settings))
    assert nll(written) < before - 0.05
    assert nll(loop.module.vae) == pytest.approx(nll(written), rel=0.02)
