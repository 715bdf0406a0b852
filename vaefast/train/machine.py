"""What a training runs on: Lightning's accelerators, strategies, precisions and loggers."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.strategies.fsdp import FSDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from .. import _install
from . import InputError
from .checkpoints import WholeCheckpoints
from .run_folder import RunFolder

_REFUSED = (MisconfigurationException, ImportError, ValueError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Machine:
    """What Lightning's `Fabric` is told of the same name: `nodes` is `num_nodes`; `clip` is the
    greatest norm of the gradient, and `tensorboard` writes its files too."""

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    clip: float | None = None
    tensorboard: bool = False

    def arguments(self) -> dict[str, Any]:
        """As Fabric takes them."""
        strategy: Any = self.strategy
        if self.devices * self.nodes > 1 and strategy in ("auto", "ddp"):
            # An autoencoder's loss leaves the likelihood's learned scale out.
            strategy = "ddp_find_unused_parameters_true"
        elif strategy == "fsdp":
            # A checkpoint is one file, whatever the strategy.
            strategy = FSDPStrategy(state_dict_type="full")
        return {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "num_nodes": self.nodes,
            "strategy": strategy,
            "precision": self.precision,
        }

    def check(self) -> None:
        """Raises InputError where Lightning cannot have this here."""
        quieten()
        if self.tensorboard and not any(
            importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")
        ):
            raise InputError(f"tensorboard missing: {_install.command('tensorboard')}")
        if any(word in self.strategy for word in ("spawn", "fork", "notebook")):
            raise InputError(
                f"strategy {self.strategy!r} cannot be used: a run's processes are commands of "
                "their own; take ddp"
            )
        try:
            Fabric(**self.arguments())
        except (
            MisconfigurationException,
            ImportError,
            ValueError,
            RuntimeError,
            TypeError,
        ) as error:
            reason = str(error).splitlines()[0]
            where = ", ".join(
                f"{name} {value!r}"
                for name, value in asdict(self).items()
                if value != getattr(Machine(), name) or name == "accelerator"
            )
            raise InputError(f"{where} cannot be used: {reason}") from None

    def fabric(self, run: RunFolder, callbacks: Sequence[Any] = ()) -> Fabric:
        """The machine itself, with a run's loggers."""
        quieten()
        loggers: list[Any] = []
        if self.tensorboard:
            from lightning.fabric.loggers.tensorboard import TensorBoardLogger

            loggers.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
        return Fabric(
            **self.arguments(),
            plugins=[WholeCheckpoints()],
            loggers=loggers,
            callbacks=list(callbacks),
        )


def is_first() -> bool:
    """True in the one process that writes, of those that a strategy or a cluster starts."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def quieten() -> None:
    """Leaves Lightning's errors and nothing else: the rest says what is meant to be so."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
