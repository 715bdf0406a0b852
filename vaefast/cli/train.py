"""`vaefast train`: any VAE of the library on the user's own data, under Lightning."""

from __future__ import annotations

import contextlib
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
    from ..train.data import Samples
    from ..train.settings import Settings


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
        from ..train.run import described
        from ..train.run import train as run_all
        from ..train.run_folder import RunFolder
        from ..train.settings import load_plugin, merged, parse_sets, read_yaml, sections
        from .given import asked_for, resumed

        if resume and (out is None or overwrite):
            raise InputError("--resume needs --out, and excludes --overwrite")
        for path in plugin or []:
            load_plugin(path)
        asked = sections(asked_for(given), "the command line")
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
                settings = resumed(run, layers)
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
                description = described(settings, samples)
                run = stack.enter_context(
                    RunFolder(
                        out or default_folder("train"), overwrite=overwrite, writes=first, say=tell
                    )
                )
            else:
                description = run.read_config()
            interrupted = run_all(
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


def _load(settings: Settings, tell: Any) -> Samples:
    from ..train.data import load_from
    from ..train.machine import Machine

    machine = {f: settings["training"][f] for f in Machine.__dataclass_fields__}
    Machine(**machine).check()
    return load_from(settings["data"], tell)


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
