#!/usr/bin/env bash
# From image labels to evaluated masks, a segmentation network and a report. Sets up what that needs, then runs
# `run_sample.py --recipe auto`: the authors' chain on VOC 2012 where that is in place or --voc12_root names it, else the
# built-in sample (docs/recipes.md). Flags are handed on, for example --masks_from cam, which leaves out AdvCAM.
# Several GPUs: WOOD_PROCESSES=8 bash bash_run_sample.sh, or WOOD_PROCESSES=gpu for all that this machine has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source misc/run/environment.sh
use_environment requirements.txt
run=("$PYTHON" run_sample.py)
if [ "${WOOD_PROCESSES:-1}" != 1 ]; then
    [[ "$WOOD_PROCESSES" =~ ^([1-9][0-9]*|gpu)$ ]] || {
        echo "error: WOOD_PROCESSES=$WOOD_PROCESSES: expected a number of processes, or gpu." >&2
        exit 2
    }
    if [ "$WOOD_PROCESSES" = gpu ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "error: WOOD_PROCESSES=gpu: PyTorch finds no GPU here; name a number, or leave WOOD_PROCESSES out." >&2
        exit 2
    fi
    run=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$WOOD_PROCESSES" run_sample.py)
fi
exec "${run[@]}" --recipe auto "$@"
