#!/usr/bin/env bash
# The tests: sets up what they need, then style checks and pytest. Arguments go to pytest (-m slow: the slow ones).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source misc/environment.sh
use_environment tests/requirements.txt

# Threads that spin while they wait slow each other down where cores are few
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
