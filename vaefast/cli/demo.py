"""`vaefast demo`: a VAE on handwritten digits in under a minute."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import _install, backends
from .._info import info
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
    console,
    default_folder,
    input_errors,
    need,
    say,
)
from .info import build_record, missing

if TYPE_CHECKING:
    import torch

    from ..train.data import Digits, Split
    from ..train.loop import Settings
    from ..train.models import VAE
    from ..train.run_folder import RunFolder
    from ..train.timing import Timing

_LABELS = (10, 20, 50)


def demo(
    epochs: Epochs = 100,
    batch_size: BatchSize = 128,
    lr: Rate = 4e-3,
    beta: Beta = 2.0,
    latent: Latent = 6,
    width: Width = None,
    likelihood: LikelihoodName = "gaussian",
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    autoencoder: Annotated[
        bool,
        typer.Option("--autoencoder", help="No noise and no KL: squared error alone."),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ... (auto: cuda where it is).")] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, help="torch's threads; this model is too small for a second.")
    ] = 1,
    smoke: Smoke = False,
) -> None:
    """Train a VAE on scikit-learn's handwritten digits, and show what it learned.

    Writes report.html, samples, reconstructions, a latent walk and the loss curves as PNG,
    metrics.csv, weights.safetensors, config.json and summary.json into the run's folder.
    """
    with input_errors():
        need("demo", "matplotlib", "safetensors", "sklearn")
        from ..train.loop import Settings
        from ..train.run_folder import RunFolder

        place = _device(device)
        _check_likelihood(likelihood)
        settings = Settings(
            min(epochs, 2) if smoke else epochs, batch_size, lr, beta, seed, autoencoder
        )
        folder = out or default_folder("demo")
        with _threads(threads), RunFolder(folder, overwrite=overwrite, say=say) as run:
            _run(run, settings, latent, width, likelihood, place, rounds=5 if smoke else 200)


def _run(
    run: RunFolder,
    settings: Settings,
    latent: int,
    width: int | None,
    likelihood: str,
    device: torch.device,
    rounds: int,
) -> None:
    import torch

    from ..train.data import Split, load_digits
    from ..train.finish import measure, write_config, write_results
    from ..train.models import VAE
    from ..train.models.head import input_for
    from ..train.operators import time_operators
    from ..train.timing import compare

    begin = time.perf_counter()
    digits = load_digits()
    images = Split(*(part.to(device) for part in digits.images))
    likelihood = "gaussian" if settings.autoencoder else likelihood
    shape: dict[str, Any] = {
        "shape": list(images.train.shape[1:]),
        "latent": latent,
        "likelihood": likelihood,
        "input": input_for(likelihood, {}),
        "arch": "mlp",
        "width": width,
        "scale": images.train.std().item(),
    }
    torch.manual_seed(settings.seed)
    model = VAE(**shape)
    model.begin(digits.images.train)
    model.to(device)
    write_config(run, "demo", shape, asdict(settings), device)
    say(
        f"{len(images.train)} digits to train on, {len(images.held_out)} held out; device "
        f"{device}, backend {backends.select(device.type)}, {torch.get_num_threads()} thread(s)"
    )
    before = measure(model, images.held_out, settings.seed, autoencoder=settings.autoencoder)
    start = time.perf_counter()
    interrupted = _train(run, model, images, settings)
    summary: dict[str, Any] = {
        "interrupted": interrupted,
        "training_seconds": time.perf_counter() - start,
        "held_out_before": before,
        "held_out_after": measure(
            model, images.held_out, settings.seed, autoencoder=settings.autoencoder
        ),
    }
    timings: dict[str, Timing] = {}
    if not settings.autoencoder:
        timings = compare(
            model, images.train[: settings.batch_size], beta=settings.beta, rounds=rounds
        )
        timings |= time_operators(device, seconds=5.0 if rounds > 5 else 0.0)
        summary["seconds"] = {name: t._asdict() for name, t in timings.items()}
        summary["unused_dimensions"] = _unused(model, images.held_out)
    summary["linear_probe"] = _probe(model, images, digits)
    labels = digits.labels.held_out
    pictures = write_results(run, model, images.held_out, settings.seed, summary, labels)
    _report(summary, timings, settings, device)
    say(f"{run.path}/: report.html, {', '.join(pictures)}, metrics.csv, weights.safetensors")
    say(f"{time.perf_counter() - begin:.0f} s in all")
    if interrupted:
        raise typer.Exit(130)


def _train(run: RunFolder, model: VAE, images: Split, settings: Settings) -> bool:
    """Trains with a progress bar; True where Ctrl-C ended it early."""
    from ..train.loop import fit

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=settings.epochs, text="")
        try:
            for row in fit(model, images, settings):
                run.append_metrics(row)
                text = f"loss {row['train_loss']:.2f}  held out {row['held_out_loss']:.2f}"
                progress.update(task, advance=1, text=text)
        except KeyboardInterrupt:
            progress.stop()
            say("interrupted: keeping what there is")
            return True
    return False


def _probe(model: VAE, images: Split, digits: Digits) -> dict[str, dict[str, dict[str, float]]]:
    import torch

    from ..train.data import Split
    from ..train.probe import linear_probe

    with torch.no_grad():
        codes = Split(*(model.encode(part)[0] for part in images))
        made = Split(*(model.mean(part) for part in codes))
    found = {"latent": codes, "reconstruction": made, "pixels": digits.images}
    return {
        name: {
            str(count): linear_probe(features, digits.labels, count=count)._asdict()
            for count in _LABELS
        }
        for name, features in found.items()
    }


def _unused(model: VAE, held_out: torch.Tensor) -> list[int]:
    """The latent dimensions that carry next to nothing."""
    import torch

    from ..metrics import kl_per_dimension
    from ..train.pictures import UNUSED

    with torch.no_grad():
        kl = kl_per_dimension(*model.encode(held_out))
    return (kl < UNUSED).nonzero().flatten().tolist()


def _report(
    summary: dict[str, Any],
    timings: dict[str, Timing],
    settings: Settings,
    device: torch.device,
) -> None:
    before, after = summary["held_out_before"], summary["held_out_after"]
    table = Table("held out, nats per image", "before", "after")
    names = {"elbo": "ELBO", "nll": "-log p(x|z)", "kl": "KL"}
    if settings.autoencoder:
        table = Table("held out, per image", "before", "after")
        names = {"nll": "squared error / 2"}
    for name, title in names.items():
        table.add_row(title, f"{before[name]:.2f}", f"{after[name]:.2f}")
    console.print(table)
    if timings:
        table = Table("time, us", "fused", "eager", "eager / fused")
        titles = {"step": "training step, these digits", "loss": "sampling + ELBO alone"}
        for name, (fused, eager) in timings.items():
            title = titles.get(name, name)
            row = (f"{fused * 1e6:.0f}", f"{eager * 1e6:.0f}", f"{eager / fused:.2f}x")
            table.add_row(title, *row)
        console.print(table)
        for line in slow(device):
            say(line)
    if unused := summary.get("unused_dimensions"):
        say(f"latent dimensions that the model does not use: {', '.join(map(str, unused))}")
    # Near-equal latent variances leave a linear classifier no hint of what matters; the decoder
    # turns the code into a picture without what is this digit's alone.
    table = Table(
        "linear classifier, held out", "on reconstructions", "on pixels", "on latent means"
    )
    probe = summary["linear_probe"]
    for count in map(str, _LABELS):
        cells = (probe[name][count] for name in ("reconstruction", "pixels", "latent"))
        shown = (f"{cell['mean']:.1%} ± {cell['std']:.1%}" for cell in cells)
        table.add_row(f"{count} labels", *shown)
    console.print(table)


def slow(device: torch.device) -> list[str]:
    """Why the fused times are not those of fused kernels, if they are not, and the remedy."""
    if backends.select(device.type) != "reference":
        return []
    cause = backends.unavailable("native", device.type)
    if cause is None:
        return ["these are the times of plain PyTorch: VAEFAST_BACKEND asks for the reference"]
    record = build_record(Path(_install.__file__).parent)
    return [
        f"these are the times of plain PyTorch, since no fused kernels serve {device.type}:",
        *(missing(info(), record) or [cause]),
    ]


def _check_likelihood(name: str) -> None:
    import torch

    from ..train import InputError
    from ..train.data import check_target

    try:
        check_target(torch.arange(17)[None] / 16, name)
    except InputError:
        raise InputError(f"likelihood {name} does not take pixels in [0, 1]") from None


def _device(name: str) -> torch.device:
    import torch

    from ..train import InputError

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}") from None
    return torch.device(name)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
