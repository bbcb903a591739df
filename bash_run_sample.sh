#!/usr/bin/env bash
# From image labels to evaluated masks, a segmentation network and a report: the authors' chain on VOC 2012, or, where
# that is not there, on the built-in sample. Sets up what it needs, then runs.
# Flags are handed to run_sample.py, for example: bash bash_run_sample.sh --voc12_root /data/VOCdevkit/VOC2012
# On VOC the masks come from AdvCAM's maps, as the authors' do. AdvCAM is by far the longest step: `--masks_from cam`
# leaves it out. An interrupted training goes on; after a finished one `--train_cam_pass False` keeps its weights, and
# with them AdvCAM's finished images.
# DeepLab-v2 on the masks comes last, where its start is in sess/ or a flag names one. Its settings are the defaults, those
# that AdvCAM's author states for AdvCAM (docs/deeplab.md, which has deeplab-pytorch's own as one line of flags, too).
# Several GPUs: WOOD_PROCESSES=8 bash bash_run_sample.sh, or WOOD_PROCESSES=gpu for all that this machine has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source misc/run/environment.sh

voc12_root=Data/VOCdevkit/VOC2012 # the flag's default
classifier=sess/res50_cam_orig.pth
sample=auto
masks_from=advcam
deeplab_start=sess/deeplab_resnet101_imagenet.pth
deeplab=False
previous=
for argument in "$@"; do
    case $previous in
    --cam_init_weights_name) classifier=$argument ;;
    --masks_from) masks_from=$argument ;;
    --sample) [[ $argument =~ ^([Tt]rue|1|[Yy]es)$ ]] && sample=asked || sample=no ;;
    esac
    case $argument in
    --cam_init_weights_name=*) classifier=${argument#*=} ;;
    --masks_from=*) masks_from=${argument#*=} ;;
    --deeplab_network | --deeplab_network=* | --deeplab_init_weights | --deeplab_init_weights=*) deeplab=True ;;
    --voc12_root | --voc12_root=*) sample=no ;; # a folder that is named must be there
    --sample=*) [[ ${argument#*=} =~ ^([Tt]rue|1|[Yy]es)$ ]] && sample=asked || sample=no ;;
    esac
    previous=$argument
done

if [ "$sample" = auto ] && [ ! -d "$voc12_root/JPEGImages" ]; then
    echo "VOC 2012 is not at $voc12_root: this runs the built-in sample instead (generated pictures, about ten minutes)."
    echo "To run VOC 2012, put it there (Data/README.md) or pass --voc12_root FOLDER."
    for images in Data/*/JPEGImages Data/*/*/JPEGImages; do
        if [ -d "$images" ] && [ "$images" != Data/sample/JPEGImages ]; then
            echo "There is a data set in ${images%/JPEGImages}: did you mean --voc12_root ${images%/JPEGImages}?"
        fi
    done
    set -- --sample True "$@"
    sample=asked
fi

use_environment requirements.txt
run=("$PYTHON" run_sample.py)
if [ "${WOOD_PROCESSES:-1}" != 1 ]; then
    run=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$WOOD_PROCESSES" run_sample.py)
fi
if [ "$sample" = asked ]; then
    exec "${run[@]}" "$@"
fi

# The in-distribution classifier is trained only if there is none
train_classifier=True
for file in "$classifier" "$classifier.pth" "${classifier%.pth}"; do
    if [ -f "$file" ]; then train_classifier=False; fi
done

if [ -f "$deeplab_start" ]; then
    deeplab=True
elif [ "$deeplab" = False ]; then
    echo "DeepLab-v2 is left out: its start $deeplab_start is not there (sess/README.md). Torchvision's weights" \
        "will do with --deeplab_network net.resnet101_deeplab." >&2
fi

if [ "$masks_from" = advcam ]; then
    set -- --make_advcam_pass True --eval_advcam_pass True --masks_from advcam \
        --np_power 1.5 --sem_seg_bg_thres 0.22 "$@"
fi

# One run, so that all input is checked before the first step. The authors make the first CAMs for train alone; here
# they are made for train_aug, which contains it.
exec "${run[@]}" \
    --train_classifier_pass "$train_classifier" \
    --train_list voc12/train_aug.txt --infer_list voc12/train_aug.txt --chainer_eval_set train \
    --train_cam_pass True --make_cam_pass True --eval_cam_pass True \
    --cam_to_ir_label_pass True --eval_ir_label_pass True --train_irn_pass True \
    --make_sem_seg_pass True --eval_sem_seg_pass True \
    --train_deeplab_pass "$deeplab" --eval_deeplab_pass "$deeplab" --make_report_pass True \
    "$@"
