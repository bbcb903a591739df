#!/usr/bin/env bash
# The tests: sets up what they need, then style checks and pytest. Arguments go to pytest (-m slow: the slow ones).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source misc/run/environment.sh
use_environment tests/requirements.txt

# Test files run side by side, one thread each; arguments such as -n 0 (all in one process) replace that
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder "$@"
