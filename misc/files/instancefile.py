"""Instance files, `ID.npy`: the one reader and writer of the format that the IRN family exchanges."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.errors import InputError, reason_of
from misc.files.objectfile import load_object, require_size, save_object
from misc.files.paths import Paths


@dataclass(frozen=True)
class Detections:
    """Instances found in an image: `scores` (N,) float32, `masks` (N, H, W) bool, `classes` (N,) int64, 0-based."""

    scores: np.ndarray
    masks: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, chosen: np.ndarray) -> "Detections":
        """Those that `chosen` (N,) bool marks."""
        return Detections(self.scores[chosen], self.masks[chosen], self.classes[chosen])


def instance_path(folder: str | Path, image_id: str) -> Path:
    """Where the instances of an image lie."""
    return Path(folder) / f"{image_id}.npy"


def instance_paths(folder: str | Path, ids: Iterable[str]) -> Paths:
    """Where the instances of many images lie."""
    return Paths(folder, (f"{image_id}.npy" for image_id in ids))


def save(path: str | Path, detections: Detections) -> None:
    """Write the pickled dict {score: float32 (N,), mask: bool (N, H, W), class: int64 (N,), 0-based}."""
    save_object(path, {"score": detections.scores, "mask": detections.masks, "class": detections.classes})


def load(
    path: str | Path, n_classes: int | None = None, *, size: tuple[int, int] | None = None, of: str = "its image"
) -> Detections:
    """The instances of an image; also from files of the original.

    Raises `InputError` for a missing, truncated or foreign file, for classes that are not below `n_classes`, and, where
    `size` (H, W) is given, for masks of another: the size `of` what the sentence names.
    """
    content = load_object(path, kind="instance file")
    if missing := {"score", "mask", "class"} - content.keys():
        raise InputError(f"instance file {path} lacks {', '.join(sorted(missing))}; make it again.")
    try:
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinity
            scores = np.asarray(content["score"], dtype=np.float32)
        masks = np.asarray(content["mask"], dtype=bool)
        classes = np.asarray(content["class"], dtype=np.int64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        problem = f"score, mask or class is no array ({reason_of(error)})"
        raise InputError(f"instance file {path}: {problem}; make it again.") from error
    if not (scores.ndim == classes.ndim == 1 and masks.ndim == 3 and len(scores) == len(masks) == len(classes)):
        raise InputError(f"instance file {path}: score, mask and class don't fit together; make it again.")
    if not (np.isfinite(scores).all() and masks.any(axis=(1, 2)).all()):
        raise InputError(f"instance file {path} has a score that is no number, or an empty mask; make it again.")
    if n_classes is not None and not ((classes >= 0) & (classes < n_classes)).all():
        found = np.unique(classes).tolist()
        raise InputError(f"instance file {path} has classes {found}, the class list has {n_classes}; make it again.")
    if size is not None:
        require_size(masks, size, kind="instance file", path=path, of=of)
    return Detections(scores, masks, classes)
