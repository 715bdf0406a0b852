#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds, checks, measures and tests in one call of six minutes.
#
#   benchmarks/gpu.sh [--out FOLDER] [--stages build,smoke,...] [--minutes 6] [--dry-run]
#
# It installs nothing and fetches nothing: python3 (or PYTHON) has torch with CUDA, pybind11 and
# pytest, and CMake and nvcc are there. docs/benchmarks.md says what the stages are.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONUNBUFFERED=1
cd "$root"
exec "${PYTHON:-python3}" -m benchmarks.gpu_run "$@"
