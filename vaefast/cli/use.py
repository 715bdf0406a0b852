"""`vaefast sample`, `encode` and `evaluate`: what one does with a trained run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import _install
from ..train import InputError
from .common import Plugins, input_errors, need, say

if TYPE_CHECKING:
    import numpy as np

    from ..train.data import Samples
    from ..train.models import Model

Run = Annotated[Path, typer.Argument(help="A run's folder, as vaefast train or demo left it.")]
Data = Annotated[
    str | None,
    typer.Argument(help="Data of the kind that the run was trained on."),
]
Key = Annotated[str | None, typer.Option(help="Which array of a .npz, .pt or .h5ad.")]


def sample(
    run: Run,
    out: Annotated[Path, typer.Option(help="A .npy array, or a .png of images.")] = Path(
        "samples.npy"
    ),
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
    draw: Annotated[
        bool, typer.Option("--draw", help="Draw from p(x|z), instead of its mean.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same samples.")] = 0,
    plugin: Plugins = None,
) -> None:
    """Make new data: z from the prior, x from the decoder."""
    with input_errors():
        model = _load(run, plugin)
        if out.suffix not in (".npy", ".png"):
            raise InputError(f"--out must be a .npy or a .png, got {out}")
        made = model.sample(count, seed=seed, mean=not draw)
        if out.suffix == ".npy":
            _save(out, made.cpu().numpy())
        else:
            from ..train.pictures import save_samples

            if len(model.shape) != 3:
                raise InputError(f"a .png takes images, the run's samples are {list(model.shape)}")
            save_samples(out, model, made)
        say(f"{out}: {count} samples of shape {list(model.shape)}")


def encode(
    run: Run,
    data: Data = None,
    out: Annotated[
        Path, typer.Option(help="A .npy of the codes, or a copy of a .h5ad with obsm['X_vae'].")
    ] = Path("codes.npy"),
    key: Key = None,
    variances: Annotated[
        bool, typer.Option("--variances", help="The log-variances too: [N, 2, latent].")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Write the posterior's means of data, in their order: the codes."""
    with input_errors():
        import torch

        model = _load(run, plugin)
        samples = _data(run, data, key, model)
        if out.suffix not in (".npy", ".h5ad"):
            raise InputError(f"--out must be a .npy or a .h5ad, got {out}")
        with torch.no_grad():
            pairs = [torch.stack(model.encode(x), 1) for x in samples.batches(256)]
        both = torch.cat(pairs).cpu().numpy()
        codes = both if variances else both[:, 0]
        if out.suffix == ".npy":
            _save(out, codes)
        else:
            _save_h5ad(out, both[:, 0], data)
        say(f"{out}: {len(codes)} codes of {model.latent} dimensions")


def evaluate(
    run: Run,
    data: Data = None,
    key: Key = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Importance samples of each x, or chains.")
    ] = 500,
    anneal: Annotated[
        int | None, typer.Option(min=1, help="Anneal in so many steps; take few --samples.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="So many of the data alone.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same figures.")] = 0,
    plugin: Plugins = None,
) -> None:
    """Measure a run: ELBO, log p(x), bits per dimension, active units, mutual information.

    Without DATA, on what the run held out. Writes evaluation.json into the run's folder.
    """
    with input_errors():
        from rich.table import Table

        from ..train.evaluate import evaluate as measure
        from ..train.files import whole
        from ..train.run_folder import EVALUATION
        from .common import console

        model = _load(run, plugin)
        of = _held_out(run) if data is None else _data(run, data, key, model)
        chosen = of if limit is None else of.subset(_first(len(of), limit))
        found = {
            "data": data or "held out",
            **measure(model, chosen, samples=samples, anneal=anneal, seed=seed, progress=True),
        }
        with whole(run / EVALUATION) as part:
            part.write_text(json.dumps(found, indent=2) + "\n")
        table = Table(f"{found['samples']} samples, {found['data']}", "nats")
        table.add_row("ELBO", f"{found['elbo']:.3f}")
        table.add_row("-log p(x|z)", f"{found['nll']:.3f}")
        table.add_row("KL", f"{found['kl']:.3f}")
        error = f"{found['log_px']:.3f} ± {found['log_px_standard_error']:.3f}"
        table.add_row(f"log p(x), {found['method']}", error)
        table.add_row("effective samples, median", f"{found['effective_samples']:.1f}")
        table.add_row("bits per dimension", f"{found['bits_per_dimension']:.4f}")
        if "active_units" in found:
            table.add_row("active units", f"{found['active_units']} of {found['latent']}")
        if "mutual_information" in found:
            table.add_row("mutual information", f"{found['mutual_information']:.3f}")
        console.print(table)
        if found["effective_samples"] < 10:
            say("few effective samples: log p(x) is low by an unknown amount; --anneal helps")
        say(f"{run / EVALUATION}")


def _load(run: Path, plugins: list[str] | None) -> Model:
    need("demo", "safetensors")
    from ..train.run_folder import load
    from ..train.settings import load_plugin

    for path in plugins or []:
        load_plugin(path)
    return load(run)


def _data(run: Path, data: str | None, key: str | None, model: Model) -> Samples:
    """The data given, or all of the run's own, which must be of the model's shape."""
    from ..train.data import check_target, load_from

    own = _own_data(run)
    settings = own if data is None else {**own, "path": data, "key": key}
    samples = load_from(_for_kind(settings), say)
    if samples.shape != model.shape:
        raise InputError(
            f"{settings['path']} holds samples of shape {list(samples.shape)}, the run takes "
            f"{list(model.shape)}"
        )
    try:
        check_target(samples, model.head.name, model.head.settings)
    except InputError as error:
        raise InputError(f"{settings['path']}: {error}") from None
    return samples


def _for_kind(settings: dict[str, Any]) -> dict[str, Any]:
    """How images are made one shape is no matter of other files."""
    if Path(settings["path"]).is_dir():
        return settings
    return {"path": settings["path"], "key": settings.get("key")}


def _own_data(run: Path) -> dict[str, Any]:
    from ..train.run_folder import read_config

    config = read_config(run)
    if config.get("command") == "demo":
        return {"path": "digits"}
    settings = config.get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{run} does not say what it was trained on: give DATA")
    return dict(settings["data"])


def _held_out(run: Path) -> Samples:
    from ..train.data import Samples, load_digits, load_from, split_samples
    from ..train.run_folder import read_config

    config = read_config(run)
    own = _own_data(run)
    if config["command"] == "demo":
        return Samples(load_digits().images.held_out)
    samples = load_from(own, say)
    training = config["training"]
    if samples.digest() != training["data_sha256"]:
        raise InputError(f"{own['path']} is not what the run was trained on: give DATA")
    return split_samples(samples, training["held_out"], training["seed"]).held_out


def _first(size: int, limit: int) -> Any:
    import torch

    return torch.arange(min(size, limit))


def _save(path: Path, array: np.ndarray) -> None:
    import numpy as np

    from ..train.files import whole

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, part.open("wb") as file:
        np.save(file, array)


def _save_h5ad(path: Path, codes: np.ndarray, data: str | None) -> None:
    from ..train.files import whole

    need("anndata", "h5py")
    import h5py

    source = Path(data) if data else None
    with whole(path) as part:
        if source is not None and source.suffix == ".h5ad":
            shutil.copyfile(source, part)
            with h5py.File(part, "r+") as file:
                group = file.require_group("obsm")
                if "X_vae" in group:
                    del group["X_vae"]
                made = group.create_dataset("X_vae", data=codes)
                made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"
            return
        try:
            import anndata
        except ModuleNotFoundError:
            raise InputError(
                "a .h5ad of data that are none needs anndata: " + _install.command("anndata")
            ) from None
        anndata.AnnData(codes).write_h5ad(part)
