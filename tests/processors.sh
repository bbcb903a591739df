#!/usr/bin/env bash
# Runs the tests that compare numbers as other processors would compute them: with older instruction sets, one thread
# and two. Arguments go to pytest. A setting that this processor lacks changes nothing, so that its run is a repetition.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source misc/run/environment.sh
use_environment tests/requirements.txt
export OMP_WAIT_POLICY=PASSIVE

comparing=(tests/test_{advcam,benchmarks,chain,crf,deeplab,deeplab_steps,distributed,indexing,instances,metrics}.py
    tests/test_{networks,ood,own_networks,pair_losses,parity,precision,provenance,resume,train_runs,training_steps}.py)
failed=()
for onednn in SSE41 AVX2 unset; do
    for aten in default avx2 unset; do
        for threads in 1 2; do
            setting=(ONEDNN_MAX_CPU_ISA="$onednn" ATEN_CPU_CAPABILITY="$aten" OMP_NUM_THREADS="$threads")
            clean=(env)
            for variable in "${setting[@]}"; do
                case $variable in
                *=unset) clean+=(-u "${variable%%=*}") ;;
                *) clean+=("$variable") ;;
                esac
            done
            echo "== ${setting[*]}"
            "${clean[@]}" "$PYTHON" -m pytest -q "${comparing[@]}" "$@" || failed+=("${setting[*]}")
        done
    done
done
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed under %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "passed under all 18 settings"
