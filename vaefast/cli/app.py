"""The sub-commands, in the order that `vaefast --help` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

import vaefast

from .bench import bench
from .demo import demo
from .info import info
from .lecture import lecture
from .report import report
from .train import train
from .use import encode, evaluate, sample

app = typer.Typer(
    name="vaefast",
    help="Fused operators for variational autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(train)
for command in (report, sample, encode, evaluate, lecture):
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)
app.command()(info)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"vaefast {vaefast.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fused operators for variational autoencoders."""
