"""The instructions of `vaefast train`'s step beside those of a hand-written loop around the same
model, on one thread: counts that callgrind gives, which no other process on the machine moves.

    python -m benchmarks.training_instructions

prints them and writes `results/training-instructions.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from vaefast.train.data import load_samples, split_samples

from . import instructions, training

STEPS = 12
RESULT = Path(__file__).parent / "results" / "training-instructions.json"


def measure(folder: Path) -> None:
    """Under callgrind."""
    torch.set_num_threads(1)
    counter = instructions.Counter.of(folder)
    data = split_samples(load_samples("digits"), 0.1, 0)
    whole, settings = data.train[:], training.DIGITS
    model = training._model
    counter.count(training.HAND, training.hand(model(settings), whole, fused=True), STEPS)
    counter.count(training.HAND_PLAIN, training.hand(model(settings), whole, fused=None), STEPS)
    loop = training.fit_loop(folder / "run", settings, data)
    counter.count(training.FIT, training.steps_of(loop), STEPS)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "benchmarks.training_instructions", name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run(instructions.command(command, folder), check=True, env=environment)
        counts = instructions.counted(folder)
    ours = counts[training.FIT]
    found = {"torch": torch.__version__, "instructions of a step": counts}
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    for loop, count in counts.items():
        ratio = f"{training.FIT} takes {ours / count:.3f} times that"
        print(f"{count / 1e6:.3f} million instructions a step, {loop}: {ratio}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure(Path(sys.argv[1]))
    else:
        main()
