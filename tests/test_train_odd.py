"""Odd invocations, each answered by one clear line, with no work lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import vaefast
from program import python

from vaefast.train import load

CPU = ("--accelerator", "cpu")
SMALL = ("--width", 8, "--latent", 2, *CPU)


def refused(*arguments):
    output = vaefast(*arguments, code=2)
    lines = [line for line in output.splitlines() if line.startswith("vaefast: ")]
    assert len(lines) == 1, output
    return lines[0]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAEFAST_CACHE", str(tmp_path / "cache"))
    np.save("x.npy", np.random.default_rng(0).random((40, 4)).astype(np.float32))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on x.npy."""
    folder = tmp_path_factory.mktemp("finished")
    np.save(folder / "x.npy", np.random.default_rng(0).random((40, 4)).astype(np.float32))
    vaefast("train", folder / "x.npy", *SMALL, "--epochs", 1, "--out", folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.full((9, 4), np.nan), "bad.npy: the data holds NaN or infinite values"),
        (np.full((9, 4), np.inf), "bad.npy: the data holds NaN or infinite values"),
        (np.zeros((1, 4)), "training needs at least 2 samples, got 1"),
        (np.zeros((0, 4)), "must hold [N, D], [N, H, W] or [N, C, H, W], got [0, 4]"),
        (np.zeros((4, 0)), "must hold [N, D], [N, H, W] or [N, C, H, W], got [4, 0]"),
        (np.zeros(4), "must hold [N, D], [N, H, W] or [N, C, H, W], got [4]"),
        (np.full((9, 4), 7.0), "bad.npy: likelihood bernoulli does not take the data's values"),
    ],
)
def test_data_that_cannot_be_trained_on(values, text):
    np.save("bad.npy", values)
    assert text in refused("train", "bad.npy", "--smoke", *SMALL)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--latent", 0), "latent must be at least 1, got 0"),
        (("--set", "model.depth=0"), "depth must be at least 1, got 0"),
        (("--set", "objective.nothing=1"), "objective.nothing is no setting of elbo"),
        (("--set", "training.lr=fast"), "training.lr must be a number, got 'fast'"),
        (("--set", "likelihood.name=cauchy"), "likelihood must be one of"),
        (("--config", "no.yaml"), "no.yaml cannot be read"),
        (("--width", 10**12), "does not fit into memory"),
        (("--accelerator", "tpu"), "accelerator 'tpu' cannot be used"),
        (("--strategy", "deepspeed"), "strategy 'deepspeed' cannot be used"),
        (("--strategy", "fsdp"), "strategy 'fsdp' cannot be used"),
        (("--strategy", "ddp_spawn"), "strategy 'ddp_spawn' cannot be used"),
        (("--precision", "transformer-engine"), "precision 'transformer-engine' cannot be used"),
        (("--labels", "no.npy"), "labels no.npy do not exist"),
        (("--plugin", "wrong.py"), "plugin wrong.py: ValueError: too odd (wrong.py, line 2)"),
        (("--plugin", "torn.py"), "plugin torn.py: SyntaxError"),
        (("--plugin", "no.such.module"), "plugin no.such.module: No module named"),
    ],
)
def test_settings_that_cannot_be_had(arguments, text):
    Path("wrong.py").write_text("import torch\nraise ValueError('too odd')\n")
    Path("torn.py").write_text("def\n")
    given = (*SMALL, *arguments)
    assert text in refused("train", "x.npy", "--smoke", *given).replace(os.getcwd() + "/", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--batch-size", 1000),
        ("--batch-size", 1),
        ("--latent", 1),
        ("--set", "data.held_out=0.9"),
        ("--held-out", 0),
        ("--model", "vamp", "--set", "model.pseudo_inputs=1000"),
        ("--model", "hierarchical", "--latent", 1, "--set", "model.upper=1"),
        ("--model", "full_covariance", "--latent", 1),
        ("--objective", "beta_tcvae", "--batch-size", 1),
        ("--objective", "infovae", "--batch-size", 1),
        ("--precision", "16-true"),
        ("--strategy", "ddp"),
    ],
)
def test_what_is_odd_but_right(arguments):
    try:
        vaefast("train", "x.npy", *SMALL, "--epochs", 2, *arguments, "--out", "run")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert load("run").sample(3, seed=0).shape == (3, 4)
    vaefast("evaluate", "run", "--samples", 3)
    vaefast("report", "run")


def test_two_samples_and_constant_data():
    np.save("two.npy", np.ones((2, 1)))
    for likelihood in ("gaussian", "bernoulli", "poisson", "laplace"):
        out = ("--out", likelihood)
        vaefast("train", "two.npy", *SMALL, "--epochs", 2, "--likelihood", likelihood, *out)
        vaefast("report", likelihood)
        # One sample is held out, which has no active units.
        vaefast("evaluate", likelihood, "--samples", 2)


def test_data_of_another_kind_is_refused_by_a_run(finished):
    np.save("bad.npy", np.full((9, 4), 7.0))
    np.save("nan.npy", np.full((9, 4), np.nan))
    Path("no.txt").write_text("nothing")
    for command in ("encode", "evaluate"):
        assert "bad.npy: likelihood bernoulli does not take" in refused(
            command, finished, "bad.npy"
        )
        assert "nan.npy: the data holds NaN" in refused(command, finished, "nan.npy")
        assert "no.npy does not exist" in refused(command, finished, "no.npy")
        assert "no.txt must be .npy" in refused(command, finished, "no.txt")
    for command in ("sample", "encode", "evaluate"):
        assert "holds no finished run" in refused(command, "nowhere")
    assert "does not fit into memory" in refused("sample", finished, "--count", 10**12)
    assert not Path("samples.npy").exists()
    Path("file").write_text("")
    assert "File exists: file" in refused("sample", finished, "--out", "file/s.npy")


def labels(name, values):
    if name.endswith(".npy"):
        np.save(name, values)
    else:
        Path(name).write_text("kind\n" + "\n".join(map(str, values)))


@pytest.mark.parametrize("name", ["y.npy", "y.csv"])
def test_labels_colour_the_map(name):
    values = np.arange(40) % 3
    labels(name, values)
    given = ("--epochs", 1, "--labels", name, "--held-out", 0.5, "--seed", 2)
    vaefast("train", "x.npy", *SMALL, *given, "--out", "run")
    assert "coloured by label" in vaefast_report("run")
    with np.load("run/held_out.npz") as kept:
        found, mu = kept["labels"], kept["mu"]
    codes = load("run").encode(torch.from_numpy(np.load("x.npy")))[0]
    rows = [(codes - m).abs().sum(1).argmin().item() for m in torch.from_numpy(mu)]
    assert found.astype(int).tolist() == values[rows].tolist()
    labels(name, values[:30])
    output = refused("train", "x.npy", *SMALL, "--smoke", "--labels", name)
    assert f"{name} must be [40], one a sample, got [3" in output
    np.save("pair.npy", np.zeros((40, 2)))
    assert "got [40, 2]" in refused("train", "x.npy", *SMALL, "--smoke", "--labels", "pair.npy")
    np.save("odd.npy", np.array([{}] * 40))
    assert "odd.npy must be numbers or words, got Python objects" in refused(
        "train", "x.npy", *SMALL, "--smoke", "--labels", "odd.npy"
    )


def vaefast_report(run):
    return (Path(run) / "report.html").read_text(encoding="utf-8")


def test_the_digits_have_labels_of_their_own():
    vaefast("train", "--smoke", *SMALL, "--latent", 2, "--out", "run")
    assert "coloured by label" in vaefast_report("run")


def test_columns_of_annotated_data_are_labels():
    h5py = pytest.importorskip("h5py")
    with h5py.File("a.h5ad", "w") as file:
        file["X"] = np.load("x.npy")
        file["obs/day"] = np.arange(40) % 2
        file["obs/name"] = np.array([b"a", b"b"] * 20)
        file["obs/kind/categories"] = np.array([b"T", b"B"], dtype=object)
        file["obs/kind/codes"] = np.array([0, 1, -1, 0] * 10, np.int8)
    for column, values in (("day", {"0", "1"}), ("name", {"a", "b"}), ("kind", {"T", "B", ""})):
        given = ("--smoke", "--labels", column, "--held-out", 0.5, "--out", column)
        vaefast("train", "a.h5ad", *SMALL, *given)
        with np.load(f"{column}/held_out.npz") as kept:
            assert set(kept["labels"].astype(str)) == values
    assert "has no labels 'age' in obs; it holds day, kind, name" in refused(
        "train", "a.h5ad", *SMALL, "--smoke", "--labels", "age"
    )


def test_a_resumed_run_whose_data_is_gone_or_another(finished, tmp_path):
    np.save("y.npy", np.load("x.npy") / 2)
    vaefast("train", "x.npy", *SMALL, "--epochs", 1, "--out", "run")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    again = ("--out", "run", "--resume", "--epochs", 2, *CPU)
    assert "not what the run was trained on" in refused("train", "y.npy", *again)
    Path("x.npy").rename("z.npy")
    assert "x.npy does not exist" in refused("train", *again)
    after = {p: p.read_bytes() for p in before}
    assert {p for p in before if before[p] != after[p]} <= {Path("run/.lock")}
    vaefast("train", "z.npy", *again)
    assert json.loads(Path("run/summary.json").read_text())["interrupted"] is False


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system of its own"
)
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on(tmp_path):
    disk, code = tmp_path / "disk", "from vaefast_command import main; main()"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        given = ("x.npy", *SMALL, "--width", 64, "--epochs", 3, "--out", disk / "run")
        done = subprocess.run(
            python(code, "train", *given), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 2, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"vaefast: No space left on device: {disk / 'run'}/"), last
        assert "Traceback" not in done.stderr
        # Images, too, of which a file of the right size is there before it is filled.
        pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 64), np.uint8)
        from PIL import Image

        (tmp_path / "images").mkdir()
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        given = ("images", *SMALL, "--smoke", "--out", tmp_path / "second")
        done = subprocess.run(
            python(code, "train", *given),
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "VAEFAST_CACHE": str(disk / "cache")},
        )
        assert done.returncode == 0, done.stderr
        assert "cannot be written (No space left on device)" in done.stdout
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = ("--resume",) if (disk / "run/checkpoints/last.ckpt").exists() else ("--overwrite",)
        given = ("x.npy", "--epochs", 3, "--out", disk / "run", *again, *CPU)
        subprocess.run(python(code, "train", *given), check=True, timeout=300)
        assert load(disk / "run").latent in (2, 16)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
