"""`vaefast train`: any VAE of the library on the user's own data, under Lightning."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..train import InputError
from .common import (
    Out,
    Overwrite,
    Plugins,
    Smoke,
    default_folder,
    input_errors,
    need,
    say,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..train.data import Parts, Samples
    from ..train.run_folder import RunFolder
    from ..train.settings import Settings

# Where an option's value belongs among the settings.
_OPTIONS = {
    "key": "data.key",
    "labels": "data.labels",
    "size": "data.size",
    "fit": "data.fit",
    "colour": "data.colour",
    "broken": "data.broken",
    "held_out": "data.held_out",
    "model": "model.name",
    "arch": "model.arch",
    "latent": "model.latent",
    "width": "model.width",
    "depth": "model.depth",
    "likelihood": "likelihood.name",
    "objective": "objective.name",
    "beta": "objective.beta",
    "warmup": "training.warmup",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "seed": "training.seed",
    "clip": "training.clip",
    "precision": "training.precision",
    "accelerator": "training.accelerator",
    "devices": "training.devices",
    "nodes": "training.nodes",
    "strategy": "training.strategy",
    "threads": "training.threads",
    "tensorboard": "training.tensorboard",
}
# What a resumed run may be given anew; all else is the run's.
_FREE = {
    *("training.epochs", "training.accelerator", "training.devices", "training.nodes"),
    *("training.strategy", "training.threads", "training.tensorboard", "data.path", "data.key"),
    "data.labels",
}


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            help="An array [N, ...] (.npy, .npz, .pt, .csv, .h5ad, IDX), a folder of images, or "
            "digits.",
            show_default="digits",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A YAML file of settings; what is given beside it goes first."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of a .npz, .pt or .h5ad.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="A .npy or text file, or a column of a .h5ad: to colour the report."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Of a folder's images: 64, or 48x64 (height x width).")
    ] = None,
    fit: Annotated[str | None, typer.Option(help="crop or resize to --size.")] = None,
    colour: Annotated[str | None, typer.Option(help="grey or rgb.")] = None,
    broken: Annotated[
        str | None, typer.Option(help="Images that cannot be read: fail or skip.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="vae, vamp, hierarchical, ...")] = None,
    objective: Annotated[str | None, typer.Option(help="elbo, beta_tcvae, iwae, ...")] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="mlp, or conv or resnet (images).", show_default="mlp"),
    ] = None,
    latent: Annotated[
        int | None, typer.Option(help="Latent dimensions.", show_default="16")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Hidden units (mlp: 256) or first channels (32).")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Hidden layers, or residual blocks per resolution (2).")
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(help="p(x|z), one of the library's.", show_default="bernoulli"),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the KL (or of the TC).")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Epochs over which that weight rises from 0.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data.", show_default="20")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples per step, of all devices.", show_default="128")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Adam's learning rate.", show_default="0.001")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="The part of the data to hold out.", show_default="0.1")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result.")] = None,
    clip: Annotated[float | None, typer.Option(help="Greatest norm of the gradient.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Lightning's: 32-true, bf16-mixed, 16-mixed, 64-true.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="Lightning's: auto, cpu, gpu, ...")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="On each node.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Lightning's: ddp, fsdp, ...")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's files too.")
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting: likelihood.std=0.1, model.pseudo_inputs=50, ..."),
    ] = None,
    plugin: Plugins = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, up to --epochs.")
    ] = False,
    smoke: Smoke = False,
) -> None:
    """Train a VAE on your own images, vectors or counts.

    Integer pixels (uint8) are read as they are. Ctrl-C keeps what there is; --resume goes on.
    """
    given = dict(locals())
    with input_errors():
        need("train", "lightning", "matplotlib", "safetensors", "yaml")
        from ..train.labels import load_labels
        from ..train.machine import is_first
        from ..train.run_folder import RunFolder
        from ..train.settings import load_plugin, merged, parse_sets, read_yaml, sections

        if resume and (out is None or overwrite):
            raise InputError("--resume needs --out, and excludes --overwrite")
        for path in plugin or []:
            load_plugin(path)
        asked = sections(_asked(given), "the command line")
        own = parse_sets(sets or [])
        layers = [*([read_yaml(config)] if config else []), asked, own]
        first = is_first()
        tell = say if first else _nothing
        if resume:
            assert out is not None
            run = RunFolder(out, resume=True, writes=first, say=tell)
        with contextlib.ExitStack() as stack:
            if resume:
                stack.enter_context(run)
                settings = _resumed(run, layers)
            else:
                settings = merged(*layers)
            training = settings["training"]
            stack.enter_context(_threads(training["threads"]))
            samples = _load(settings, tell)
            # From wherever the run is looked at.
            for name in ("path", "labels"):
                where = settings["data"][name]
                if where is not None and Path(where).exists():
                    settings["data"][name] = str(Path(where).resolve())
            known = load_labels(settings["data"], len(samples))
            if not resume:
                description = _described(settings, samples)
                run = stack.enter_context(
                    RunFolder(
                        out or default_folder("train"), overwrite=overwrite, writes=first, say=tell
                    )
                )
            else:
                description = run.read_config()
            interrupted = _run(
                run,
                settings,
                description,
                samples,
                known,
                resume=resume,
                smoke=smoke,
                plugins=plugin or [],
            )
    if interrupted:
        again = shlex.join(["vaefast", "train", *([data] if data else []), "--out", str(run.path)])
        say(f"interrupted: {again} --resume goes on")
        raise typer.Exit(130)


def _nothing(text: str) -> None:
    """What processes other than the first have to say."""


def _asked(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options that were given, as settings."""
    found: dict[str, dict[str, Any]] = {}
    values = {**given, "size": _size(given["size"]), "tensorboard": given["tensorboard"] or None}
    if given["data"] is not None:
        found["data"] = {"path": given["data"]}
    for option, dotted in _OPTIONS.items():
        if values[option] is not None:
            section, name = dotted.split(".")
            found.setdefault(section, {})[name] = values[option]
    return found


def _size(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise InputError(f"--size must be like 64 or 48x64, got {text!r}")
    return [sides[0], sides[-1]]


def _resumed(run: RunFolder, layers: list[Settings]) -> Settings:
    """The run's own settings, and what of those given a resumed run may change.

    Raises:
        InputError: something else was given, or the run cannot be resumed.
    """
    from ..train.settings import merged, of_run

    config = run.read_config()
    if config.get("command") != "train":
        raise InputError(f"only a run of vaefast train can be resumed, not {config.get('command')}")
    kept = of_run(config)
    if not config.get("settings"):
        run.say(f"{run.path} is of an older version: going on with its settings")
    new = merged(kept, *layers)
    for section, values in new.items():
        for name, value in values.items():
            dotted = f"{section}.{name}"
            if dotted not in _FREE and name in kept[section] and kept[section][name] != value:
                option = next((o for o, where in _OPTIONS.items() if where == dotted), None)
                shown = f"--{option.replace('_', '-')}" if option else dotted
                raise InputError(
                    f"the run has {shown} {kept[section][name]}, got {value}: leave it out"
                )
    return new


def _load(settings: Settings, tell: Any) -> Samples:
    from ..train.data import load_from
    from ..train.machine import Machine

    machine = {f: settings["training"][f] for f in Machine.__dataclass_fields__}
    Machine(**machine).check()
    return load_from(settings["data"], tell)


def _described(settings: Settings, samples: Samples) -> dict[str, Any]:
    """What config.json says: enough to build the model and the objective again.

    Raises:
        InputError: the data, the model and the objective do not fit together.
    """
    from ..train import models, objectives
    from ..train.data import check_target
    from ..train.models.head import fitted_settings, input_for

    name = settings["likelihood"]["name"]
    with _of(settings["data"]["path"]):
        low, high = samples.range()
    given = {k: v for k, v in settings["likelihood"].items() if k != "name"}
    likelihood = fitted_settings(name, given, low, high)
    with _of(settings["data"]["path"]):
        check_target(samples, name, likelihood)
    parts = _parts(settings, samples)
    own = dict(settings["model"])
    head = models.Head(name, samples.shape, settings=likelihood)
    look = head.values(_look(parts.train))
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


def _parts(settings: Settings, samples: Samples) -> Parts:
    from ..train.data import split_samples

    return split_samples(samples, settings["data"]["held_out"], settings["training"]["seed"])


def _run(
    run: RunFolder,
    settings: Settings,
    config: dict[str, Any],
    samples: Samples,
    labels: np.ndarray | None,
    *,
    resume: bool,
    smoke: bool,
    plugins: list[str],
) -> bool:
    import torch

    from ..train.checkpoints import steps_done
    from ..train.finish import measure, write_config, write_results
    from ..train.fit import fit
    from ..train.machine import Machine
    from ..train.run_folder import SETTINGS
    from ..train.settings import to_yaml, upgraded
    from ..train.trained import Trained

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
            plugins=plugins,
        )
    run.write_text(SETTINGS, to_yaml(settings))
    if run.writes:
        say(
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
        say(f"{run.path} has its {done.epoch} epochs: --epochs {own['epochs']} adds none")
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
        say(f"{done.skipped} steps were skipped: their gradient was not finite")
    what = "held-out ELBO" if config["objective"]["name"] not in _NO_ELBO else "held-out -loss"
    say(f"{what}, nats per sample: {before['elbo']:.2f} before, {after['elbo']:.2f} after")
    files = ["report.html", *pictures, "metrics.csv", "weights.safetensors"]
    say(f"{run.path}/: {', '.join(files)}")
    return done.interrupted


# Objectives that train no posterior.
_NO_ELBO = ("autoencoder", "wae")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
