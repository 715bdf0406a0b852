"""What each of two processes that train together computes: see test_train_ranks.py."""

from __future__ import annotations

import sys

import torch

from vaefast.train.data import Parts, Samples
from vaefast.train.fit import fit
from vaefast.train.machine import Machine, is_first
from vaefast.train.run_folder import RunFolder
from vaefast.train.trained import Trained

ROWS, BATCH, SHAPE = 22, 8, (1, 4, 3)


class Gradients:
    """Keeps the gradient of every step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_before_optimizer_step(self, module, optimizer) -> None:
        grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        self.steps.append(torch.cat(grads).clone())


def main(folder: str, devices: int, model: str, objective: str) -> None:
    data = Samples(torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(1)
    module = Trained(
        {"name": model, "shape": SHAPE, "latent": 3, "width": 8, "likelihood": "gaussian"},
        {"name": objective},
    )
    kept = Gradients()
    with RunFolder(folder, writes=is_first()) as run:
        run.write_json("config.json", {})
        fit(
            module,
            Parts(data, data),
            run,
            epochs=2,
            batch_size=BATCH,
            lr=1e-4,
            seed=5,
            callbacks=[kept],
            machine=Machine(accelerator="cpu", devices=devices),
        )
        if run.writes:
            torch.save(kept.steps, run.file("gradients.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
