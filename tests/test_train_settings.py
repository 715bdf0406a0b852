"""Settings: a YAML file, the command line over it, what a run keeps, and runs of older versions."""

import json

import numpy as np
import pytest
import torch
import yaml
from command import vaefast

from vaefast.train import InputError, load
from vaefast.train.settings import known, merged, of_run, parse_sets, read_yaml, to_yaml

CPU = ("--accelerator", "cpu")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAEFAST_CACHE", str(tmp_path / "cache"))
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32))


def test_later_layers_go_first_and_another_name_drops_the_old_ones_settings():
    file = {
        "model": {"name": "vamp", "pseudo_inputs": 7, "latent": 4},
        "objective": {"name": "elbo", "beta": 3},
        "training": {"lr": "1e-4"},
    }
    found = merged(file, {"model": {"latent": 5}})
    assert found["model"]["latent"] == 5
    assert found["model"]["pseudo_inputs"] == 7
    assert found["training"]["lr"] == 1e-4
    assert found["objective"]["beta"] == 3.0
    other = merged(file, {"model": {"name": "vae"}, "objective": {"name": "iwae"}})
    assert other["model"]["latent"] == 4
    assert "pseudo_inputs" not in other["model"]
    assert other["objective"]["beta"] == 3.0


def test_the_file_of_a_run_is_a_file_to_run():
    found = merged(
        {"model": {"name": "hierarchical"}, "likelihood": {"name": "gaussian", "std": "optimal"}},
        parse_sets(["objective.capacity=3", "data.size=[4, 5]", "training.threads=2"]),
    )
    from pathlib import Path

    Path("s.yaml").write_text(to_yaml(found))
    assert merged(read_yaml(Path("s.yaml"))) == found


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        (["latent=3"], r"--set takes SECTION.NAME=VALUE with SECTION one of data, model"),
        (["optimiser.lr=3"], "--set takes SECTION"),
        (["model.layers=3"], "model.layers is no setting of vae; there are latent, arch"),
        (["model.latent=3.5"], "model.latent must be an integer, got 3.5"),
        (["model.latent=many"], "model.latent must be an integer, got 'many'"),
        (["training.lr=0"], "training.lr must be positive and finite, got 0"),
        (["training.lr=nan"], "training.lr must be a number, got nan"),
        (["training.epochs=0"], "training.epochs must be at least 1, got 0"),
        (["data.held_out=1"], r"data.held_out must be in \[0, 0.9\], got 1"),
        (["data.fit=squash"], "data.fit must be one of crop, resize, got 'squash'"),
        (["data.size=[3]"], r"data.size must be \[height, width\], got \[3\]"),
        (["objective.name=gan"], "objective must be one of"),
        (["likelihood.name=gan"], "likelihood must be one of"),
        (["model.name=gan"], "model must be one of"),
        (["likelihood.std=1"], "likelihood.std is no setting of bernoulli"),
        (["objective.free_bits_per=row"], "must be one of dim, sample, total, got 'row'"),
        (["training.tensorboard=3"], "training.tensorboard must be true or false, got 3"),
        (["objective.beta=["], "is no YAML value"),
    ],
)
def test_wrong_settings_are_named(sets, text):
    with pytest.raises(InputError, match=text):
        merged(parse_sets(sets))


def test_every_setting_has_a_default_of_its_own_type():
    from vaefast.train import models, objectives
    from vaefast.train.models.head import likelihood_names

    for name in models.registered():
        merged({"model": {"name": name, **_defaults("model", name)}})
    for name in objectives.registered():
        merged({"objective": {"name": name, **_defaults("objective", name)}})
    for name in likelihood_names():
        merged({"likelihood": {"name": name, **_defaults("likelihood", name)}})


def _defaults(section, name):
    return {key: default for key, (_, default) in known(section, name).items()}


def test_bad_files_are_one_line(tmp_path):
    for text, want in (
        ("- 1\n", "must hold a mapping, got list"),
        ("a: [\n", "is no YAML"),
        ("layers: {}\n", "section must be one of data, model"),
        ("model: 3\n", "model must be a mapping, got 3"),
        ("model: {latent: many}\n", "model.latent must be an integer"),
    ):
        (tmp_path / "s.yaml").write_text(text)
        output = vaefast("train", "x.npy", "--config", "s.yaml", code=2)
        assert want.replace(" ", "") in "".join(output.split())
    assert "cannot be read" in vaefast("train", "x.npy", "--config", "no.yaml", code=2)


def test_a_file_and_the_command_line_make_a_run_that_keeps_them(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "data: {path: x.npy}\n"
        "model: {name: vamp, pseudo_inputs: 5, latent: 2, width: 8}\n"
        "likelihood: {name: student_t, df: 3}\n"
        "objective: elbo\n"
        "training: {batch_size: 20, threads: 1}\n"
    )
    vaefast(
        *("train", "--config", "s.yaml", "--latent", 3, "--beta", 0.5, "--smoke", "--out", "run"),
        *("--set", "likelihood.scale_per=column", *CPU),
    )
    kept = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert kept["model"]["latent"] == 3
    assert kept["model"]["pseudo_inputs"] == 5
    assert kept["objective"] == {
        "name": "elbo",
        "beta": 0.5,
        "capacity": None,
        "free_bits": 0.0,
        "free_bits_per": "dim",
    }
    model = load("run")
    assert model.name == "vamp"
    assert (model.latent, len(model.pseudo), model.head.scale_per) == (3, 5, "column")
    # The kept file makes the same run again.
    vaefast("train", "--config", "run/settings.yaml", "--smoke", "--out", "again")
    for name in ("weights.safetensors", "metrics.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


PLUGIN = '''
from dataclasses import dataclass

import torch

import vaefast as vf
from vaefast.train.models import VAE, register, register_backbone
from vaefast.train.objectives import Loss, Objective
from vaefast.train.objectives import register as register_objective


@register("shifted")
class Shifted(VAE):
    """A prior of mean `shift`."""

    def __init__(self, shape, *, shift: float = 1.0, **common):
        super().__init__(shape, **common)
        self.prior_shift = shift

    def log_prior(self, z):
        return super().log_prior(z - self.prior_shift)


@register_backbone("linear")
def linear(sizes):
    size = lambda shape: torch.Size(shape).numel()
    encoder = torch.nn.Linear(size(sizes.inputs), sizes.features)
    return torch.nn.Sequential(torch.nn.Flatten(), encoder), torch.nn.Linear(
        sizes.code, size(sizes.outputs)
    )


@register_objective("twice")
@dataclass(frozen=True)
class Twice(Objective):
    times: float = 2.0

    def __call__(self, model, x, step):
        z, kl = model.draw(x, seed=step.seed, offset=step.offset)
        nll, kl = model.nll(z, x).mean(), kl.mean()
        return Loss(self.times * nll + kl, nll.detach(), kl.detach())


@vf.likelihoods.register("gumbel", lambda x, params, numbers: x - params[0] + (params[0] - x).exp())
@dataclass(frozen=True, eq=False)
class Gumbel(vf.likelihoods.Likelihood):
    param_names = ("loc",)

    def mean(self, params):
        return vf.likelihoods.as_tuple(params)[0] + 0.5772

    def draw(self, params, noise):
        return params[0] - torch.log(-torch.log(noise("uniform")))
'''


def test_a_file_of_the_users_adds_a_model_an_objective_a_backbone_and_a_likelihood(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    out = tmp_path / "run"
    vaefast(
        *("train", "x.npy", "--plugin", "mine.py", "--model", "shifted", "--objective", "twice"),
        *("--arch", "linear", "--likelihood", "gumbel", "--latent", 2, "--epochs", 2),
        *("--set", "model.shift=0.5", "--set", "objective.times=3", "--out", out, *CPU),
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out_after"]["elbo"] > summary["held_out_before"]["elbo"]
    model = load(out)
    assert (model.name, model.prior_shift) == ("shifted", 0.5)
    assert isinstance(model.decoder, torch.nn.Linear)
    vaefast("sample", out, "--out", "s.npy", "--plugin", "mine.py")
    assert np.load("s.npy").shape == (64, 6)
    assert "plugin no.py does not exist" in vaefast("train", "--plugin", "no.py", code=2)


def test_a_run_of_an_older_version_is_loaded_and_gone_on_with(tmp_path):
    """What it kept: a model without a name, and no objective."""
    common = ("--width", 8, "--latent", 2, "--likelihood", "gaussian", "--beta", 0.5, *CPU)
    vaefast("train", "x.npy", *common, "--set", "model.input=raw", "--epochs", 2, "--out", "run")
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    old = {
        "command": "train",
        "model": {
            key: config["model"][key]
            for key in ("shape", "latent", "likelihood", "arch", "width", "scale")
        },
        "training": {**config["training"], "beta": 0.5},
    }
    old["training"].pop("clip")
    (run / "config.json").write_text(json.dumps(old))
    (run / "settings.yaml").unlink()
    assert load(run).reconstruct(torch.zeros(2, 6)).shape == (2, 6)
    settings = of_run(old)
    assert settings["objective"]["beta"] == 0.5
    assert settings["model"]["latent"] == 2
    output = vaefast("train", "x.npy", "--out", run, "--resume", "--epochs", 3, *CPU)
    assert "of an older version" in output
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    assert "--latent 2, got 3" in vaefast(
        "train", "x.npy", "--out", run, "--resume", "--latent", 3, code=2
    )
