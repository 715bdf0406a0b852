"""What the sub-commands share: options, the terminal, errors, and a run's last steps."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import _install
from ..likelihoods import registered
from ..train import InputError

console = Console(highlight=False)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


# What a disk answers where it is full, over quota, read-only, failing, or gone.
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ESTALE),
}
# How torch says, on a CPU and on a GPU, that there is no memory left.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory")


def _known_likelihood(name: str) -> str:
    if name not in registered():
        raise typer.BadParameter(f"must be one of {', '.join(registered())}, got {name!r}")
    return name


def _positive(value: float) -> float:
    # An option's min admits its bound, and a float's NaN.
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"must be positive and finite, got {value}")
    return value


Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training data.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per step.")]
Rate = Annotated[float, typer.Option("--lr", callback=_positive, help="Adam's learning rate.")]
Beta = Annotated[float, typer.Option(min=0.0, help="Weight of the KL (beta-VAE).")]
Latent = Annotated[int, typer.Option(min=1, help="Latent dimensions.")]
Width = Annotated[
    int | None, typer.Option(min=1, help="Hidden units (mlp: 256) or first channels (conv: 32).")
]
LikelihoodName = Annotated[
    str,
    typer.Option("--likelihood", callback=_known_likelihood, help="p(x|z), one of the library's."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Same seed, same result.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder.", show_default="runs/<time>")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over the run in the folder.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(help="A Python file or module that registers models, objectives or likelihoods."),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="A few steps only, to see that it runs.")]


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Turns an InputError, a disk that does not take a file, or memory that does not suffice, into
    one line and exit code 2."""
    try:
        yield
    except InputError as error:
        reason = str(error)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        reason = f"this does not fit into memory: {_first_sentence(str(error))}"
    else:
        return
    _errors.print(f"vaefast: {reason}", markup=False)
    raise typer.Exit(2)


def _first_sentence(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "none is left"
    return line.rpartition("] ")[2] or line


def say(text: str) -> None:
    """Prints a line as it is: a path broken in two cannot be copied."""
    console.print(text, markup=False, soft_wrap=True)


def need(extra: str, *modules: str) -> None:
    """Raises InputError that names the extra to install where one of `modules` is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} missing: {_install.command(extra)}")


def default_folder(command: str) -> Path:
    """runs/<command>-<time>, with a number behind it where that is taken."""
    base = Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path
