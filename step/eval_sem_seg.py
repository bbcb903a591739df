"""Step 7: mIoU, precision and recall of the masks."""

import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from misc.config import Config
from misc.errors import InputError
from misc.imutils import IGNORE_LABEL, read_label
from misc.metrics import class_table, confusion_matrix, jsonable, scores
from misc.plan import Planned, require_outputs
from misc.record import save_scores
from voc12.classes import names_with_background
from voc12.devkit import open_devkit
from voc12.lists import read_split
from voc12.verify import require_masks

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.chainer_eval_set)
    require_outputs(
        args.sem_seg_out_dir,
        ids,
        ".png",
        flag="sem_seg_out_dir",
        list_flag="chainer_eval_set",
        made_by="make_sem_seg",
        planned=planned,
    )
    require_masks(devkit, ids, num_workers=args.num_workers)
    return {}


def run(args: Config) -> None:
    """Score `sem_seg_out_dir` on the images of `chainer_eval_set`; unsure pixels (255) count as background."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.chainer_eval_set)
    names = names_with_background(devkit.classes)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    for image_id in tqdm(ids, desc="eval_sem_seg", unit="image"):
        path = Path(args.sem_seg_out_dir) / f"{image_id}.png"
        mask = read_label(path)
        mask[mask == IGNORE_LABEL] = 0
        try:
            confusion += confusion_matrix(mask, read_label(devkit.mask_path(image_id)), len(names))
        except ValueError as error:
            raise InputError(f"mask {path} does not fit its ground truth ({error}); make it again.") from error

    scored = scores(confusion)
    log.info("%s", class_table(names, scored))
    false_positive, false_negative = scored["false_positive"], scored["false_negative"]
    for kind, values in (("false positive", false_positive), ("false negative", false_negative)):
        log.info("%s fraction: background %.4f, foreground %.4f", kind, values[0], np.nanmean(values[1:]))
    path = save_scores(
        args.result_dir,
        "eval_sem_seg",
        {
            "set": args.chainer_eval_set,
            "images": len(ids),
            "folder": args.sem_seg_out_dir,
            "classes": names,
            **jsonable(scored),
        },
    )
    log.info("mask mIoU %.4f (%s)", scored["miou"], path)
