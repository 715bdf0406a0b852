#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: installs with the CUDA kernels, runs the GPU tests, measures.
#
#   benchmarks/gpu.sh [output folder]
#
# The folder (default: build/gpu) gets tests.log, results.json and benchmarks.log. PYTHON chooses the
# interpreter, which has torch with CUDA; SKIP_INSTALL=1 takes the vaefast that it already has.
# Further settings are those of the build: VAEFAST_CUDA_ARCHS, CUDACXX.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
mkdir -p "${1:-$root/build/gpu}"
out=$(cd "${1:-$root/build/gpu}" && pwd)
cd "$root" || exit

if [ -z "${SKIP_INSTALL:-}" ]; then
  "$python" -m pip install --quiet "pybind11>=2.13" cmake ninja "setuptools>=77" \
    "pytest>=8.2" pytest-timeout pytest-benchmark hypothesis scipy \
    || echo "going on with the packages that are here"
  # Editable, as `python -m benchmarks` imports what lies in the working directory.
  VAEFAST_CUDA=1 VAEFAST_REQUIRE_NATIVE=1 \
    "$python" -m pip install --no-deps --no-build-isolation --editable . || exit
fi

"$python" - <<'CHECK' || exit
import torch
import vaefast as vf

print(torch.__version__, torch.cuda.get_device_name(), vf.available_backends("cuda"))
assert vf.available_backends("cuda")[0] == "native", vf.info()
CHECK

pytest=$("$python" -c "import sysconfig; print(sysconfig.get_path('scripts'))")/pytest
[ -x "$pytest" ] || pytest=pytest
"$pytest" -m gpu -q 2>&1 | tee "$out/tests.log"
tests=$?

"$python" -m benchmarks run --device cuda --out "$out/results.json" 2>&1 | tee "$out/benchmarks.log"
measured=$?
exit $((tests || measured))
