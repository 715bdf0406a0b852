"""How much memory it takes to go through a file of samples, in a process of its own."""

import os
import subprocess
import time

from program import python

# {small} is set where the file stands for one that memory does not hold.
PROGRAM = """
import sys
from pathlib import Path
import numpy, scipy.sparse, torch
from vaefast.train import cache, sparse
from vaefast.train.data import check_target, load_samples
try:
    import h5py
except ModuleNotFoundError:
    pass
{small}
load_samples("digits").range()
print("begin", flush=True)
samples = load_samples(sys.argv[1], cache=Path(sys.argv[2]))
samples.range(), samples.digest(), check_target(samples, "gaussian")
for batch in samples.batches(128):
    assert batch.isfinite().all()
print(len(samples), samples.shape, flush=True)
"""


def taken(path, cache, shape, small):
    """Bytes above what the process had before; its samples are of `shape`."""
    program = python(PROGRAM.format(small=small), path, cache)
    # What is freed goes back at once: memory that malloc keeps comes and goes with the timing.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "begin\n"
        before = peak = _anonymous(process)
        while process.poll() is None:
            peak = max(peak, _anonymous(process))
            time.sleep(0.002)
        assert process.stdout.read() == f"{shape[0]} ({shape[1]},)\n"
    assert process.returncode == 0
    return peak - before


def _anonymous(process):
    """Its memory but for pages of files, in bytes."""
    with open(f"/proc/{process.pid}/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0
