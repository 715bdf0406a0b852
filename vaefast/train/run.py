"""A run of `vaefast train`: from settings and data to a run's folder with its report."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import InputError, models, objectives
from .checkpoints import steps_done
from .data import Parts, Samples, check_target, split_samples
from .finish import measure, write_config, write_results
from .fit import fit
from .machine import Machine
from .models.head import fitted_settings, input_for
from .run_folder import SETTINGS, RunFolder
from .settings import Settings, to_yaml, upgraded
from .trained import Trained


def described(settings: Settings, samples: Samples) -> dict[str, Any]:
    """What config.json says: enough to build the model and the objective again.

    Raises:
        InputError: the data, the model and the objective do not fit together.
    """
    name = settings["likelihood"]["name"]
    with _of(settings["data"]["path"]):
        low, high = samples.range()
    given = {k: v for k, v in settings["likelihood"].items() if k != "name"}
    likelihood = fitted_settings(name, given, low, high)
    with _of(settings["data"]["path"]):
        check_target(samples, name, likelihood)
    own = dict(settings["model"])
    head = models.Head(name, samples.shape, settings=likelihood)
    look = head.values(_look(_parts(settings, samples).train))
    own["input"] = own["input"] or input_for(name, likelihood)
    model = {
        "name": own.pop("name"),
        "shape": list(samples.shape),
        **own,
        "likelihood": name,
        "likelihood_settings": likelihood,
        "scale": max(look.std().item(), 1e-3) if look.numel() > 1 else 1.0,
    }
    built = models.build(**model)
    objective = dict(settings["objective"])
    objectives.build(**objective).check(built)
    return {
        "model": model,
        "objective": objective,
        "training": {
            **{k: settings["training"][k] for k in ("warmup", "lr", "batch_size", "seed", "clip")},
            "held_out": settings["data"]["held_out"],
            "data_sha256": samples.digest(),
        },
    }


def train(
    run: RunFolder,
    settings: Settings,
    config: dict[str, Any],
    samples: Samples,
    labels: np.ndarray | None,
    *,
    resume: bool = False,
    smoke: bool = False,
    plugins: Sequence[str] = (),
) -> bool:
    """Trains, measures the held-out part before and after, and writes all that a run leaves; True
    where Ctrl-C ended it.

    Args:
        config: what `described` gives, or a resumed run's config.json.
        labels: of all samples, for the report.
        resume: go on from the run's last checkpoint.
        smoke: two steps alone.
        plugins: what registered the run's own models.

    Raises:
        InputError: the data is not that of a resumed run, or the training fails.
    """
    config = upgraded(config)
    model, training, own = config["model"], config["training"], settings["training"]
    if resume and training["data_sha256"] != samples.digest():
        raise InputError("the data is not what the run was trained on")
    data = _parts(settings, samples)
    torch.manual_seed(own["seed"])
    module = Trained(model, config["objective"])
    if not config.get("old"):
        module.vae.begin(_look(data.train))
    # At a given seed the model begins the same, so this is right for a resumed run too.
    before = measure(module.vae, data.held_out, own["seed"], objective=module.objective)
    resumed = 0
    if resume:
        resumed = steps_done(run)
        run.keep_metrics(resumed)
    else:
        write_config(
            run,
            "train",
            model,
            training,
            torch.device("cpu"),
            objective=config["objective"],
            settings=settings,
            plugins=list(plugins),
        )
    run.write_text(SETTINGS, to_yaml(settings))
    run.say(
        f"{len(data.train)} samples of shape {model['shape']} to train on, "
        f"{len(data.held_out)} held out"
    )
    done = fit(
        module,
        data,
        run,
        epochs=1 if smoke else own["epochs"],
        batch_size=own["batch_size"],
        lr=own["lr"],
        warmup=own["warmup"],
        seed=own["seed"],
        resume=resume,
        batches=2 if smoke else None,
        machine=Machine(**{f: own[f] for f in Machine.__dataclass_fields__}),
    )
    if not run.writes:
        return done.interrupted
    if resume and done.done == resumed:
        run.say(f"{run.path} has its {done.epoch} epochs: --epochs {own['epochs']} adds none")
    vae = module.vae.cpu().float().eval()
    after = measure(vae, data.held_out, own["seed"], objective=module.objective)
    summary = {
        "interrupted": done.interrupted,
        "skipped_steps": done.skipped,
        "held_out_before": before,
        "held_out_after": after,
    }
    if labels is not None:
        labels = labels[data.held_out.index.numpy()]
    pictures = write_results(run, vae, data.held_out, own["seed"], summary, labels)
    if done.skipped:
        run.say(f"{done.skipped} steps were skipped: their gradient was not finite")
    what = "held-out ELBO" if config["objective"]["name"] not in _NO_ELBO else "held-out -loss"
    run.say(f"{what}, nats per sample: {before['elbo']:.2f} before, {after['elbo']:.2f} after")
    files = ["report.html", *pictures, "metrics.csv", "weights.safetensors"]
    run.say(f"{run.path}/: {', '.join(files)}")
    return done.interrupted


# Objectives that train no posterior.
_NO_ELBO = ("autoencoder", "wae")


def _parts(settings: Settings, samples: Samples) -> Parts:
    return split_samples(samples, settings["data"]["held_out"], settings["training"]["seed"])


# Samples, and elements, of the training data that give a model its first scale and location.
_LOOK, _LOOK_ELEMENTS = 10_000, 1 << 24


def _look(data: Samples) -> Tensor:
    return data[: min(_LOOK, max(2, _LOOK_ELEMENTS // math.prod(data.shape)))]


@contextlib.contextmanager
def _of(path: str) -> Iterator[None]:
    """Names the data in what is said of them."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
