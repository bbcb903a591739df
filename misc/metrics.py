"""Segmentation scores: one confusion matrix, one way from it to IoU, precision and recall."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from misc.imutils import IGNORE_LABEL


def confusion_matrix(pred: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, C) int64 pixel counts, rows truth, columns prediction; pixels with truth 255 or below 0 are left out.

    Raises `ValueError` for arrays of different shapes or ids that are not below `n_classes`.
    """
    pred, truth = np.asarray(pred), np.asarray(truth)
    if pred.shape != truth.shape:
        raise ValueError(f"prediction of shape {pred.shape} and truth of shape {truth.shape} differ")
    counted = (truth != IGNORE_LABEL) & (truth >= 0)
    pred, truth = pred[counted].astype(np.int64), truth[counted].astype(np.int64)
    highest = max(pred.max(initial=0), truth.max(initial=0))
    if highest >= n_classes or pred.min(initial=0) < 0:
        raise ValueError(f"class id {highest} outside 0 .. {n_classes - 1}")
    return np.bincount(truth * n_classes + pred, minlength=n_classes**2).reshape(n_classes, n_classes)


def scores(confusion: np.ndarray) -> dict[str, Any]:
    """Scores of a confusion matrix (rows truth): values per class are NaN where nothing is to be divided by.

    `iou`, `precision`, `recall`: (C,) float64. `miou`: mean IoU of the classes that occur in truth or prediction.
    `false_positive`, `false_negative`: (C,) 1 - truth/union and 1 - prediction/union.
    `pixel_accuracy`: share of right pixels. `mean_class_accuracy`: mean recall of the classes with truth.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    hits, truth, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    union = truth + predicted - hits
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, recall, precision = hits / union, hits / truth, hits / predicted
        return {
            "iou": iou,
            "miou": _nan_mean(iou),
            "precision": precision,
            "recall": recall,
            "false_positive": 1 - truth / union,
            "false_negative": 1 - predicted / union,
            "pixel_accuracy": float(hits.sum() / truth.sum()),
            "mean_class_accuracy": _nan_mean(recall),
        }


def _nan_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


class ThresholdSweep:
    """Confusion matrices of CAMs at many background scores, in one pass over the CAMs.

    At a pixel only the strongest class and its value v matter: it is predicted where v > threshold, else background
    (which wins a draw, as in `misc.cam.label_map`). So a histogram of v over the thresholds holds every confusion.
    It is counted on the device where the CAMs are.
    """

    def __init__(self, thresholds: Sequence[float], n_classes: int) -> None:
        """`n_classes` counts the background."""
        self.thresholds = tuple(thresholds)
        self.n_classes = n_classes
        self._ascending = sorted(set(self.thresholds))
        # counts[level, truth, strongest class]: `level` thresholds lie below the value
        self._counts = np.zeros((len(self._ascending) + 1, n_classes, n_classes), dtype=np.int64)

    def add(self, high_res: Tensor | np.ndarray, keys: Sequence[int], truth: Tensor | np.ndarray) -> None:
        """Count one image: (K, H, W) float32 maps of the classes `keys` (0-based), (H, W) truth with 255 ignored.

        Raises `ValueError` for arrays of different sizes or class ids that are not below `n_classes`.
        """
        high_res = torch.as_tensor(high_res)
        truth = torch.as_tensor(truth, device=high_res.device).long()
        if truth.shape != high_res.shape[1:]:
            raise ValueError(f"CAM of {tuple(high_res.shape[1:])} and truth of {tuple(truth.shape)} differ in size")
        counted = truth != IGNORE_LABEL
        truth = truth[counted]
        highest = max([int(key) + 1 for key in keys] + ([int(truth.max())] if truth.numel() else [0]))
        if highest >= self.n_classes:
            raise ValueError(f"class id {highest} outside 0 .. {self.n_classes - 1}")
        strongest, level = torch.zeros_like(truth), torch.zeros_like(truth)
        if len(keys) > 0:
            value, index = high_res[:, counted].max(dim=0)
            strongest = torch.as_tensor(np.asarray(keys), device=high_res.device)[index] + 1
            level = torch.bucketize(value, torch.tensor(self._ascending, dtype=value.dtype, device=value.device))
        cell = (level * self.n_classes + truth) * self.n_classes + strongest
        self._counts += cell.bincount(minlength=self._counts.size).view(self._counts.shape).cpu().numpy()

    def confusions(self) -> dict[float, np.ndarray]:
        """{threshold: (C, C) confusion, rows truth}, in the order in which the thresholds were given."""
        confusions = {}
        for threshold in self.thresholds:
            rank = self._ascending.index(threshold)
            confusions[threshold] = self._counts[rank + 1 :].sum(axis=0)
            confusions[threshold][:, 0] += self._counts[: rank + 1].sum(axis=(0, 2))
        return confusions

    def best(self, among: Sequence[float] | None = None) -> tuple[float, dict[str, Any]]:
        """The threshold with the highest mIoU (the first of equals), of all or `among` some, and its `scores`."""
        confusions = self.confusions()
        scored = {threshold: scores(confusions[threshold]) for threshold in among or self.thresholds}
        best = max(scored, key=lambda threshold: np.nan_to_num(scored[threshold]["miou"], nan=-1.0))
        return best, scored[best]


def jsonable(value: Any) -> Any:
    """Scores, however nested, with lists for arrays and None for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def class_table(names: Sequence[str], scored: dict[str, Any]) -> str:
    """A text table of `scores`: IoU, precision and recall, a row a class that occurs, then the means."""
    width = max(len(name) for name in names)
    rows = [f"{'class':{width}}     IoU  precision  recall"]
    columns = (scored["iou"], scored["precision"], scored["recall"])
    for name, *values in zip(names, *columns, strict=True):
        if not np.isnan(values[0]):
            rows.append(f"{name:{width}}  {values[0]:6.4f}     {values[1]:6.4f}  {values[2]:6.4f}")
    means = [_nan_mean(np.asarray(column)) for column in columns]
    rows.append(f"{'mean':{width}}  {means[0]:6.4f}     {means[1]:6.4f}  {means[2]:6.4f}")
    return "\n".join(rows)
