#!/usr/bin/env bash
# Runs the tests that compare numbers as other processors would compute them: with older instruction sets, with one
# thread and with two. Arguments go to pytest. docs/tests.md tells where this was run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source misc/run/environment.sh
use_environment tests/requirements.txt
export OMP_WAIT_POLICY=PASSIVE

comparing=(tests/test_{advcam,chain,crf,deeplab,distributed,indexing,instances,metrics,networks,ood,pair_losses}.py
    tests/test_{parity,permutohedral,precision,segmentation,train_runs,training_steps}.py)
isas=("SSE41 default" "unset unset") # of oneDNN, which convolves, and of ATen, which does most else
if grep -qw avx512f /proc/cpuinfo 2>/dev/null; then # elsewhere AVX2 is what a processor takes by itself
    isas+=("AVX2 avx2")
fi

failed=()
for isa in "${isas[@]}"; do
    read -r onednn aten <<<"$isa"
    for threads in 1 2; do
        setting="ONEDNN_MAX_CPU_ISA=$onednn ATEN_CPU_CAPABILITY=$aten OMP_NUM_THREADS=$threads"
        echo "== $setting"
        command=(env "OMP_NUM_THREADS=$threads")
        [ "$onednn" = unset ] || command+=("ONEDNN_MAX_CPU_ISA=$onednn" "ATEN_CPU_CAPABILITY=$aten")
        "${command[@]}" "$PYTHON" -m pytest -q -n $((3 - threads)) --dist loadscope --no-loadscope-reorder "${comparing[@]}" "$@" ||
            failed+=("$setting")
    done
done
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed under %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "passed under every setting"
