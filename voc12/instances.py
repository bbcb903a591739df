"""Ground truth of instances: `SegmentationObject` tells them apart, `SegmentationClass` tells their classes."""

import numpy as np

from misc.errors import InputError
from misc.files.images import read_label
from misc.imutils import IGNORE_LABEL
from voc12.devkit import Devkit


def read_instances(devkit: Devkit, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(M, H, W) bool masks and (M,) int64 classes, 0-based; pixels of instance id 0 or 255 belong to none.

    An instance that covers pixels of several classes has the lowest of them, as in chainercv; pixels of the background
    or unsure ones (255) don't count where there are others.
    Raises `InputError` if the masks of instances and of classes don't fit together.
    """
    path = devkit.object_path(image_id)
    ids, class_ids = read_label(path), read_label(devkit.mask_path(image_id))
    if ids.shape != class_ids.shape:
        raise InputError(f"instance mask {path} is not of the size of its mask in SegmentationClass; correct either.")
    masks, classes = [], []
    for instance in np.setdiff1d(ids, (0, IGNORE_LABEL)):
        mask = ids == instance
        covered = class_ids[mask]
        classes_covered = covered[(covered != 0) & (covered != IGNORE_LABEL)]
        class_id = int((classes_covered if classes_covered.size else covered).min())
        if not 1 <= class_id <= len(devkit.classes):
            raise InputError(
                f"instance {instance} of {path} has id {class_id} in SegmentationClass, expected a class from 1 to "
                f"{len(devkit.classes)}; correct either."
            )
        masks.append(mask)
        classes.append(class_id - 1)
    return np.array(masks, dtype=bool).reshape(-1, *ids.shape), np.array(classes, dtype=np.int64)
