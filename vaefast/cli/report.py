"""`vaefast report`: a run's folder as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import InputError
from .common import input_errors, need, say


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run of demo or train.")],
) -> None:
    """Write report.html into a run's folder, from what the run left there.

    One page that needs no other file and no network: figures, curves, samples, reconstructions, a
    walk for each latent dimension, a map of the latent space, settings. `demo` and `train` write
    it too.
    """
    with input_errors():
        need("demo", "matplotlib", "safetensors", "sklearn")
        from ..report import write_report
        from ..train.run_folder import CONFIG, REPORT, RunFolder

        if not (run / CONFIG).exists():
            raise InputError(f"{run} holds no run: {CONFIG} is missing")
        with RunFolder(run, resume=True, say=say) as folder:
            write_report(folder)
        say(f"{run / REPORT}")
