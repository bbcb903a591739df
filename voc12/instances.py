"""Ground truth of instances: `SegmentationObject` tells them apart, `SegmentationClass` tells their classes."""

import numpy as np

from misc.errors import InputError
from misc.imutils import IGNORE_LABEL, read_label
from voc12.devkit import Devkit


def read_instances(devkit: Devkit, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(M, H, W) bool masks and (M,) int64 classes, 0-based; pixels of instance id 0 or 255 belong to none.

    Raises `InputError` if the masks of instances and of classes don't fit together.
    """
    path = devkit.object_path(image_id)
    ids, class_ids = read_label(path), read_label(devkit.mask_path(image_id))
    if ids.shape != class_ids.shape:
        raise InputError(f"instance mask {path} is not of the size of its mask in SegmentationClass; correct either.")
    masks, classes = [], []
    for instance in np.setdiff1d(ids, (0, IGNORE_LABEL)):
        mask = ids == instance
        found = np.unique(class_ids[mask])
        if len(found) != 1 or not 1 <= found[0] <= len(devkit.classes):
            raise InputError(
                f"instance {instance} of {path} has ids {found.tolist()} in SegmentationClass, expected one class "
                f"from 1 to {len(devkit.classes)}; correct either."
            )
        masks.append(mask)
        classes.append(int(found[0]) - 1)
    return np.array(masks, dtype=bool).reshape(-1, *ids.shape), np.array(classes, dtype=np.int64)
