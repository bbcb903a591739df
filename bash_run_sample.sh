#!/usr/bin/env bash
# The authors' chain on VOC 2012, from image labels to evaluated masks. Sets up what it needs, then runs.
# Flags are handed to run_sample.py, for example: bash bash_run_sample.sh --voc12_root /data/VOCdevkit/VOC2012
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source misc/environment.sh
use_environment requirements.txt

# The in-distribution classifier is trained only if there is none
classifier=sess/res50_cam_orig.pth
previous=
for argument in "$@"; do
    case $previous in --cam_init_weights_name) classifier=$argument ;; esac
    case $argument in --cam_init_weights_name=*) classifier=${argument#*=} ;; esac
    previous=$argument
done
train_classifier=True
for file in "$classifier" "$classifier.pth" "${classifier%.pth}"; do
    if [ -f "$file" ]; then train_classifier=False; fi
done

exec "$PYTHON" run_sample.py \
    --train_classifier_pass "$train_classifier" \
    --train_cam_pass True --make_cam_pass True --eval_cam_pass True \
    --cam_to_ir_label_pass True --train_irn_pass True \
    --make_sem_seg_pass True --eval_sem_seg_pass True \
    "$@"
