"""Two processes that share a batch: the gradients of one process on the whole of it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from program import python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROGRAM = Path(__file__).with_name("train_ranks.py")


def run(*arguments):
    done = subprocess.run(
        [*map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        *(
            ("vae", objective)
            for objective in ("elbo", "iwae", "dreg", "beta_tcvae", "autoencoder")
        ),
        *((model, "elbo") for model in ("vamp", "full_covariance", "hierarchical")),
    ],
)
def test_gradients_are_those_of_the_whole_batch(tmp_path, model, objective):
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        run(sys.executable, PROGRAM, folder, devices, model, objective)
        found.append(torch.load(folder / "gradients.pt"))
    one, two = found
    # 22 rows in batches of 8: the last one is 3 and 3.
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        # Adam's first steps make much of a gradient that is all but 0.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
    rows = [list(csv.DictReader((tmp_path / d / "metrics.csv").open())) for d in "12"]
    for a, b in zip(*rows, strict=True):
        for name, value in a.items():
            assert float(b[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-4)


def test_the_command_trains_with_two_processes_and_goes_on_with_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).random((41, 6)).astype(np.float32))
    Path("vf.py").write_text("from vaefast_command import main; main()")
    first = (
        "train",
        "x.npy",
        "--width",
        8,
        "--latent",
        2,
        "--batch-size",
        8,
        "--accelerator",
        "cpu",
    )
    two = (*first, "--devices", 2, "--out", "two", "--epochs", 2)
    done = run(sys.executable, "vf.py", *two)
    assert done.stdout.count("held-out ELBO") == 1
    run(*python("from vaefast_command import main; main()", *first, "--out", "one", "--epochs", 2))
    a, b = (json.loads(Path(d, "summary.json").read_text()) for d in ("one", "two"))
    assert b["held_out_after"]["elbo"] == pytest.approx(a["held_out_after"]["elbo"], rel=1e-3)
    more = ("train", "x.npy", "--out", "two", "--resume", "--epochs", 3, "--accelerator", "cpu")
    run(*python("from vaefast_command import main; main()", *more, "--devices", 1))
    assert len(Path("two", "metrics.csv").read_text().splitlines()) == 4
