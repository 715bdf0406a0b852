"""`vaefast bench`: the benchmark suite of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

import vaefast

from ..train import InputError
from .common import input_errors


def bench(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout; arguments go to `python -m benchmarks`."""
    with input_errors():
        root = find_checkout([Path.cwd(), Path(vaefast.__file__).parent.parent])
    arguments = context.args or ["run"]
    done = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=root, check=False)
    raise typer.Exit(done.returncode)


def find_checkout(places: list[Path]) -> Path:
    """The first of `places` that holds the benchmarks of vaefast."""
    for place in places:
        if (place / "benchmarks" / "__main__.py").exists() and (place / "csrc").is_dir():
            return place
    raise InputError(
        "the benchmarks are not part of the installed package: run this in a source checkout of "
        'vaefast, after pip install ".[bench]" there'
    )
