#!/usr/bin/env bash
# The first minutes on a GPU, in one command, with the Python that holds PyTorch (or WOOD_PYTHON): tests, speed, the
# sample. benchmarks/gpu_day.py tells more; flags are handed on, for example --wheels DIR, --parts sample, --device cpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${WOOD_PYTHON:-python3}" benchmarks/gpu_day.py "$@"
