"""The benchmark suite: `python -m benchmarks run`, `python -m benchmarks report`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# `python -m` puts the working directory first on the path, and the source folder vaefast/ there
# would hide the installed package and its compiled core. An editable install has its own entry.
if sys.path and "vaefast" not in sys.modules and Path(sys.path[0] or ".").resolve() == ROOT:
    del sys.path[0]
