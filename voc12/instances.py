"""Ground truth of instances: `SegmentationObject` tells them apart, `SegmentationClass` tells their classes."""

from pathlib import Path

import numpy as np

from misc.errors import InputError
from misc.files.images import read_label
from misc.imutils import IGNORE_LABEL
from voc12.devkit import Devkit


def read_instances(devkit: Devkit, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """`instances_of` an image of the devkit."""
    return instances_of(devkit.object_path(image_id), devkit.mask_path(image_id), n_classes=len(devkit.classes))


def instances_of(path: str | Path, mask_path: str | Path, *, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, H, W) bool masks and (M,) int64 classes, 0-based; pixels of instance id 0 or 255 belong to none.

    `path`: the mask of instances, `mask_path`: that of classes.

    An instance that covers pixels of several classes has the lowest of them, as in chainercv; pixels of the background
    or unsure ones (255) don't count where there are others.
    Raises `InputError` if the masks of instances and of classes don't fit together.
    """
    ids, class_ids = read_label(path), read_label(mask_path)
    if ids.shape != class_ids.shape:
        raise InputError(f"instance mask {path} is not of the size of its mask in SegmentationClass; correct either.")
    masks, classes = [], []
    for instance in np.setdiff1d(ids, (0, IGNORE_LABEL)):
        mask = ids == instance
        covered = class_ids[mask]
        classes_covered = covered[(covered != 0) & (covered != IGNORE_LABEL)]
        class_id = int((classes_covered if classes_covered.size else covered).min())
        if not 1 <= class_id <= n_classes:
            raise InputError(
                f"instance {instance} of {path} has id {class_id} in SegmentationClass, expected a class from 1 to "
                f"{n_classes}; correct either."
            )
        masks.append(mask)
        classes.append(class_id - 1)
    return np.array(masks, dtype=bool).reshape(-1, *ids.shape), np.array(classes, dtype=np.int64)
