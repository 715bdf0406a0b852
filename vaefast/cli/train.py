"""`vaefast train`: a VAE on the user's own data, under Lightning."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..train import InputError
from .common import (
    BatchSize,
    Beta,
    Epochs,
    Latent,
    LikelihoodName,
    Out,
    Overwrite,
    Rate,
    Seed,
    Smoke,
    Width,
    default_folder,
    input_errors,
    need,
    say,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..train.run_folder import RunFolder

# The options that a resumed run takes from its folder.
_MODEL = ("latent", "likelihood", "arch", "width")
_TRAINING = ("beta", "warmup", "lr", "batch_size", "held_out", "seed")


def train(
    context: typer.Context,
    data: Annotated[
        Path, typer.Argument(help="A .npy, .npz or .pt array [N, ...], or a folder of images.")
    ],
    key: Annotated[str | None, typer.Option(help="Which array of a .npz or .pt.")] = None,
    arch: Annotated[
        Literal["mlp", "conv"], typer.Option(help="Perceptron, or convolutions (images).")
    ] = "mlp",
    latent: Latent = 16,
    width: Width = None,
    likelihood: LikelihoodName = "bernoulli",
    beta: Beta = 1.0,
    warmup: Annotated[int, typer.Option(min=0, help="Epochs over which beta rises from 0.")] = 0,
    epochs: Epochs = 20,
    batch_size: BatchSize = 128,
    lr: Rate = 1e-3,
    held_out: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="The part of the data to hold out.")
    ] = 0.1,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, up to --epochs.")
    ] = False,
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu, ...")] = "auto",
    smoke: Smoke = False,
) -> None:
    """Train a VAE on your own images or vectors.

    Integer pixels (uint8) are read as they are. Ctrl-C keeps what there is; --resume goes on.
    """
    with input_errors():
        need("train", "lightning", "matplotlib", "safetensors")
        from ..train.fit import check_accelerator

        if resume and (out is None or overwrite):
            raise InputError("--resume needs --out, and excludes --overwrite")
        given = {name: context.params[name] for name in (*_MODEL, *_TRAINING)}
        asked = {name: value for name, value in given.items() if _typed(context, name)}
        check_accelerator(accelerator)
        array, run, config = _prepare(data, key, out, given, asked, overwrite, resume)
        batches = 2 if smoke else None
        epochs = 1 if smoke else epochs
        with run:
            interrupted = _run(run, config, array, epochs, resume, accelerator, batches)
    if interrupted:
        say(f"interrupted: vaefast train {data} --out {run.path} --resume goes on")
        raise typer.Exit(130)


def _prepare(
    path: Path,
    key: str | None,
    out: Path | None,
    given: dict[str, Any],
    asked: dict[str, Any],
    overwrite: bool,
    resume: bool,
) -> tuple[Tensor, RunFolder, dict[str, Any]]:
    """The data, the run's folder and its configuration; nothing is written if any is wrong."""
    import torch

    from ..train.data import check_target, load_array, split
    from ..train.models import VAE
    from ..train.run_folder import RunFolder

    array = load_array(path, key=key)
    digest = hashlib.sha256(array.numpy().tobytes()).hexdigest()
    if resume:
        assert out is not None
        run = RunFolder(out, resume=True, say=say)
        try:
            config = run.read_config()
            _check_resumed(config, asked, digest)
        except InputError:
            run.close()
            raise
        return array, run, config
    check_target(array, given["likelihood"])
    training = split(array, given["held_out"], given["seed"]).train.float()
    scale = training.std().item() / (255 if array.dtype == torch.uint8 else 1)
    model = {
        "shape": list(array.shape[1:]),
        **{name: given[name] for name in _MODEL},
        "scale": max(scale, 1e-3),
    }
    VAE(**model)
    settings = {**{name: given[name] for name in _TRAINING}, "data_sha256": digest}
    run = RunFolder(out or default_folder("train"), overwrite=overwrite, say=say)
    return array, run, {"model": model, "training": settings}


def _check_resumed(config: dict[str, Any], asked: dict[str, Any], digest: str) -> None:
    if config.get("command") != "train":
        raise InputError(f"only a run of vaefast train can be resumed, not {config.get('command')}")
    saved = {**config.get("model", {}), **config.get("training", {})}
    lacking = {"shape", *_MODEL, *_TRAINING, "data_sha256"} - saved.keys()
    if lacking:
        raise InputError(f"the run's config.json lacks {', '.join(sorted(lacking))}")
    for name, value in asked.items():
        if saved[name] != value:
            option = name.replace("_", "-")
            raise InputError(f"the run has --{option} {saved[name]}, got {value}: leave it out")
    if saved["data_sha256"] != digest:
        raise InputError("the data is not what the run was trained on")


def _run(
    run: RunFolder,
    config: dict[str, Any],
    array: Tensor,
    epochs: int,
    resume: bool,
    accelerator: str,
    batches: int | None,
) -> bool:
    import torch

    from ..train.data import split
    from ..train.finish import measure, write_config, write_results
    from ..train.fit import fit, steps_done
    from ..train.lit import LitVAE

    model, training = config["model"], config["training"]
    data = split(array, training["held_out"], training["seed"])
    torch.manual_seed(training["seed"])
    module = LitVAE(model, **{name: training[name] for name in ("beta", "warmup", "lr", "seed")})
    # At a given seed the model begins the same, so this is right for a resumed run too.
    before = measure(module.vae, data.held_out, training["seed"])
    if resume:
        run.keep_metrics(steps_done(run))
    else:
        write_config(run, "train", model, training, torch.device("cpu"))
    say(
        f"{len(data.train)} samples of shape {model['shape']} to train on, "
        f"{len(data.held_out)} held out"
    )
    interrupted = fit(
        module,
        data,
        run,
        epochs=epochs,
        batch_size=training["batch_size"],
        resume=resume,
        accelerator=accelerator,
        batches=batches,
    )
    vae = module.vae.cpu().eval()
    after = measure(vae, data.held_out, training["seed"])
    summary = {"interrupted": interrupted, "held_out_before": before, "held_out_after": after}
    pictures = write_results(run, vae, data.held_out, training["seed"], summary)
    say(f"held-out ELBO, nats per sample: {before['elbo']:.2f} before, {after['elbo']:.2f} after")
    files = ["report.html", *pictures, "metrics.csv", "weights.safetensors"]
    say(f"{run.path}/: {', '.join(files)}")
    return interrupted


def _typed(context: typer.Context, name: str) -> bool:
    """True where the user gave this option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
