"""What the maps and masks of a step hold, told when it has ended: whether later steps would run on nothing.

A step notes the content of each file in the record of what it was made with (`misc.run.provenance`), so that the
summary is of all files, also of those that an earlier run has made, and none is read again.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from misc.errors import InputError, first_three
from misc.files import camfile, instancefile
from misc.files.instancefile import Detections
from misc.imutils import IGNORE_LABEL
from misc.run.notices import notice
from misc.run.provenance import recorded_contents

MAP_SCORE = 0.15
"""Background score above which a pixel of a CAM counts as foreground here: that of confident background."""
DIGITS = 4
EMPTY_SHARE = 0.5
"""Where more than this share of the maps are empty, or were not finite, a run stops."""

Content = dict[str, Any]
"""Of a file, as JSON: `foreground`, the share of its pixels; of maps also `keys`, their classes, those `empty`, and, if
there are such, those that were `not_finite`."""

log = logging.getLogger(__name__)


def content_of_mask(mask: np.ndarray) -> Content:
    """Of a mask (H, W) of ids; unsure pixels (255) are no foreground."""
    return _content(((mask != 0) & (mask != IGNORE_LABEL)).mean())


def content_of_maps(keys: Sequence[int], high_res: np.ndarray | Tensor) -> Content:
    """Of (K, H, W) maps of the classes `keys`, each divided by its maximum: one that is nowhere strong is empty."""
    strong = np.asarray(high_res) > MAP_SCORE
    empty = [int(key) for key, of_class in zip(keys, strong, strict=True) if not of_class.any()]
    return _content(strong.any(axis=0).mean()) | {"keys": [*map(int, keys)], "empty": empty}


def _content(foreground: Any) -> Content:
    return {"foreground": float(f"{float(foreground):.{DIGITS}g}")}


def save_maps(path: str | Path, keys: Sequence[int], cam: Tensor, high_res: Tensor, *, numbers: str) -> Content:
    """Write a CAM file, as `camfile.save`; returns its content. Maps with NaN or infinity are written as empty ones.

    Raises `InputError` for negative values.
    """
    if (cam < 0).any() or (high_res < 0).any():
        raise InputError(
            f"--cam_network: CAMs for {path} have negative values; let the network of the CAMs end in a ReLU."
        )
    finite = cam.isfinite().all(dim=2).all(dim=1) & high_res.isfinite().all(dim=2).all(dim=1)
    if not finite.all():
        cam, high_res = (maps.where(finite[:, None, None], maps.new_zeros(())) for maps in (cam, high_res))
    camfile.save(path, keys, cam, high_res, numbers=numbers)
    content = content_of_maps(keys, high_res)
    not_finite = [int(key) for key, is_finite in zip(keys, finite.tolist(), strict=True) if not is_finite]
    if not not_finite:
        return content
    return content | {"empty": [key for key in content["empty"] if key not in not_finite], "not_finite": not_finite}


def save_instances(path: str | Path, detections: Detections) -> Content:
    """Write an instance file; returns its content."""
    instancefile.save(path, detections)
    return _content(detections.masks.any(axis=0).mean())


def tell_masks(name: str, paths: Sequence[str | Path], *, advice: str = "") -> None:
    """Tell the log how much foreground the masks (or instances, or maps) at `paths` hold, which step `name` made.

    Raises `InputError`, with `advice`, if none of them holds any; without advice that is told.
    """
    _tell_foreground(name, _contents(paths), advice=advice)


def tell_maps(name: str, paths: Sequence[str | Path], classes: Sequence[str]) -> None:
    """The same of CAM files, and which classes have maps that are empty or were not finite.

    Raises `InputError`, and says what to change, if most maps are so, or if there are none.
    """
    contents = [content for content in _contents(paths) if _has_maps(content, len(classes))]
    n_maps, n_empty, n_not_finite = (
        Counter(key for content in contents for key in content.get(of, ())) for of in ("keys", "empty", "not_finite")
    )
    if contents and not n_maps:
        raise InputError(
            f"{name}: none of the {len(contents)} images carries a class, so that there are no maps; correct the "
            "labels, or with --labels_from classifier lower --label_threshold."
        )
    told = [
        f"{counts.total()} of {n_maps.total()} maps are {how} "
        f"({first_three([f'{classes[key]} {count} of {n_maps[key]}' for key, count in counts.most_common()])})"
        for how, counts in (("empty", n_empty), ("NaN or infinite, and were written as empty ones", n_not_finite))
        if counts
    ]
    if (n_empty + n_not_finite).total() > EMPTY_SHARE * n_maps.total():
        raise InputError(
            f"{name}: {'; '.join(told)}; later steps would run on nothing: the classifier of --cam_weights_name does "
            "not fire, or overflows; train it again with a lower --cam_learning_rate (0.1 is for thousands of images) "
            "or for more epochs, or name other weights."
        )
    _tell_foreground(name, contents)
    for problem in told:
        notice(f"{name}: {problem}")


def _tell_foreground(name: str, contents: Sequence[Content], *, advice: str = "") -> None:
    shares = np.array([content["foreground"] for content in contents])
    if not len(shares):
        return
    n_without = int((shares == 0).sum())
    log.info(
        "%s: %.1f %% of the pixels are foreground, in the mean of %d images; %d of them have none",
        name,
        100 * shares.mean(),
        len(shares),
        n_without,
    )
    if n_without == len(shares):
        if advice:
            raise InputError(
                f"{name}: none of the {n_without} images has any foreground, so that later steps would run on nothing; "
                f"{advice}."
            )
        notice(f"{name}: no image has any foreground")


def _contents(paths: Sequence[str | Path]) -> list[Content]:
    """The recorded contents of files in one folder, without those of which none was recorded."""
    paths = [*map(Path, paths)]
    recorded = recorded_contents(paths[0].parent) if paths else {}
    contents = (recorded.get(path.name) for path in paths)
    return [content for content in contents if isinstance(content, dict) and _is_share(content.get("foreground"))]


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def _has_maps(content: Mapping[str, Any], n_classes: int) -> bool:
    return all(
        isinstance(keys := content.get(of, missing), list)
        and all(type(key) is int and 0 <= key < n_classes for key in keys)
        for of, missing in (("keys", None), ("empty", None), ("not_finite", []))
    )
