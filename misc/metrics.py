"""Segmentation scores: one confusion matrix, one way from it to IoU, precision and recall; and VOC's instance AP."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from misc.imutils import IGNORE_LABEL
from misc.run.device import to_device
from misc.run.distributed import sum_over_processes


def confusion_matrix(pred: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, C) int64 pixel counts, rows truth, columns prediction; pixels with truth 255 or below 0 are left out.

    Raises `ValueError` for arrays of different shapes or ids that are not below `n_classes`.
    """
    pred, truth = np.asarray(pred), np.asarray(truth)
    if pred.shape != truth.shape:
        raise ValueError(f"prediction of shape {pred.shape} and truth of shape {truth.shape} differ")
    counted = (truth != IGNORE_LABEL) & (truth >= 0)
    pred, truth = pred[counted].astype(np.int64), truth[counted].astype(np.int64)
    lowest, highest = pred.min(initial=0), max(pred.max(initial=0), truth.max(initial=0))
    if lowest < 0 or highest >= n_classes:
        raise ValueError(f"class id {lowest if lowest < 0 else highest} outside 0 .. {n_classes - 1}")
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
            "miou": nan_mean(iou),
            "precision": precision,
            "recall": recall,
            "false_positive": 1 - truth / union,
            "false_negative": 1 - predicted / union,
            "pixel_accuracy": float(hits.sum() / truth.sum()),
            "mean_class_accuracy": nan_mean(recall),
        }


def nan_mean(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


class ThresholdSweep:
    """Confusion matrices of CAMs at many background scores, in one pass over the CAMs.

    At a pixel only the strongest class and its value v matter: it is predicted where v > threshold, else background
    (which wins a draw, as in `misc.cam.label_map`). So a histogram of v over the thresholds holds every confusion.
    It is counted on the device where the CAMs are; the truth is looked at where it is.
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
        high_res, truth = torch.as_tensor(high_res), torch.as_tensor(truth)
        device = high_res.device
        if truth.shape != high_res.shape[1:]:
            raise ValueError(f"CAM of {tuple(high_res.shape[1:])} and truth of {tuple(truth.shape)} differ in size")
        counted = truth[truth != IGNORE_LABEL]
        highest = max([int(key) + 1 for key in keys] + ([int(counted.max())] if len(counted) else [0]))
        if highest >= self.n_classes:
            raise ValueError(f"class id {highest} outside 0 .. {self.n_classes - 1}")
        rows = self.n_classes + 1  # the last row of a level takes the ignored pixels
        cell = to_device(truth, device).long().clamp(max=self.n_classes) * self.n_classes
        if len(keys) > 0:
            value, index = high_res.max(dim=0)
            ids = to_device(torch.from_numpy(np.asarray(keys, dtype=np.int64)) + 1, device)
            thresholds = to_device(torch.tensor(self._ascending, dtype=value.dtype), device)
            cell += torch.bucketize(value, thresholds) * (rows * self.n_classes) + ids.take(index)
        counts = cell.flatten().bincount(minlength=len(self._counts) * rows * self.n_classes)
        self._counts += counts.view(-1, rows, self.n_classes)[:, : self.n_classes].cpu().numpy()

    def sum_over_processes(self) -> None:
        """Count the images of all processes, each of which has counted its own."""
        self._counts = sum_over_processes(torch.from_numpy(self._counts)).numpy()

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

    def __add__(self, other: "ThresholdSweep") -> "ThresholdSweep":
        """The sweep over the images of both, which have the same thresholds and classes."""
        both = ThresholdSweep(self.thresholds, self.n_classes)
        both._counts = self._counts + other._counts
        return both


def two_fold(
    halves: tuple[ThresholdSweep, ThresholdSweep], among: Sequence[float] | None = None
) -> tuple[tuple[float, float], dict[str, Any]]:
    """Scores over two halves of the images, each at the threshold that is best on the other half.

    So no image has a say in its own threshold, as it has in `ThresholdSweep.best`, and all images count.

    Args:
        among: the thresholds to choose from; all if None.

    Returns:
        the thresholds of the halves, and the `scores` of the sum of their confusion matrices.
    """
    one, other = halves
    thresholds = other.best(among)[0], one.best(among)[0]
    return thresholds, scores(
        sum(half.confusions()[threshold] for half, threshold in zip(halves, thresholds, strict=True))
    )


def _mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


class InstanceScorer:
    """Instance AP as VOC defines it, an image at a time, so that the masks of one image alone are held.

    A prediction takes the truth of its class with the highest IoU in its image: a hit if that is at least
    `iou_thresh` and no prediction with a higher score took it before, else a false positive.
    """

    def __init__(self, iou_thresh: float) -> None:
        self.iou_thresh = iou_thresh
        # A row a prediction
        self._labels: list[int] = []
        self._scores: list[float] = []
        self._hits: list[bool] = []
        self._truth_labels: list[int] = []

    def add(
        self,
        pred_masks: np.ndarray,
        pred_labels: np.ndarray,
        pred_scores: np.ndarray,
        gt_masks: np.ndarray,
        gt_labels: np.ndarray,
    ) -> None:
        """Count one image: (N, H, W) bool masks, (N,) 0-based labels and scores, (M, H, W) truth of (M,) labels.

        Raises `ValueError` for arrays of different sizes.
        """
        pred_masks, gt_masks = np.asarray(pred_masks, dtype=bool), np.asarray(gt_masks, dtype=bool)
        if len(pred_masks) and len(gt_masks) and pred_masks.shape[1:] != gt_masks.shape[1:]:
            raise ValueError(f"predictions of {pred_masks.shape[1:]} and truth of {gt_masks.shape[1:]} differ in size")
        if not len(pred_masks) == len(pred_labels) == len(pred_scores) or len(gt_masks) != len(gt_labels):
            raise ValueError("each mask needs a label, and each prediction a score")
        self._truth_labels += [int(label) for label in gt_labels]
        taken: set[int] = set()
        for index in np.argsort(-np.asarray(pred_scores, dtype=np.float64), kind="stable"):
            candidates = np.flatnonzero(np.asarray(gt_labels) == pred_labels[index])
            ious = [_mask_iou(pred_masks[index], gt_masks[candidate]) for candidate in candidates]
            hit = False
            if ious and max(ious) >= self.iou_thresh:
                best = int(candidates[np.argmax(ious)])
                hit = best not in taken
                taken.add(best)
            self._labels.append(int(pred_labels[index]))
            self._scores.append(float(pred_scores[index]))
            self._hits.append(hit)

    def scores(self, n_classes: int) -> dict[str, Any]:
        """`ap`: (C,) float64 area under the precision envelope, NaN for classes without truth; `map`: their mean."""
        labels, values = np.array(self._labels, dtype=np.int64), np.array(self._scores, dtype=np.float64)
        hits, truth = np.array(self._hits, dtype=bool), np.array(self._truth_labels, dtype=np.int64)
        ap = np.full(n_classes, np.nan)
        for label in np.unique(truth):
            of_class = np.flatnonzero(labels == label)
            ranked = hits[of_class[np.argsort(-values[of_class], kind="stable")]]  # ties keep their order
            found = ranked.cumsum()
            precision, recall = found / np.arange(1, len(ranked) + 1), found / np.count_nonzero(truth == label)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            ap[label] = (np.diff(recall, prepend=0.0) * envelope).sum()
        return {"ap": ap, "map": nan_mean(ap)}


def instance_ap(
    pred_masks: Sequence[np.ndarray],
    pred_labels: Sequence[np.ndarray],
    pred_scores: Sequence[np.ndarray],
    gt_masks: Sequence[np.ndarray],
    gt_labels: Sequence[np.ndarray],
    iou_thresh: float = 0.5,
) -> dict[str, Any]:
    """VOC's instance AP of lists over images; arguments as in `InstanceScorer.add`, result as in its `scores`.

    The classes are those up to the highest label that occurs.
    """
    scorer = InstanceScorer(iou_thresh)
    for image in zip(pred_masks, pred_labels, pred_scores, gt_masks, gt_labels, strict=True):
        scorer.add(*image)
    labels = np.concatenate([[-1], *pred_labels, *gt_labels])
    return scorer.scores(n_classes=1 + int(labels.max()))


def class_table(names: Sequence[str], scored: dict[str, Any]) -> str:
    """A text table of `scores`: IoU, precision and recall, a row a class that occurs, then the means."""
    width = max(len(name) for name in names)
    rows = [f"{'class':{width}}     IoU  precision  recall"]
    columns = (scored["iou"], scored["precision"], scored["recall"])
    for name, *values in zip(names, *columns, strict=True):
        if not np.isnan(values[0]):
            rows.append(f"{name:{width}}  {values[0]:6.4f}     {values[1]:6.4f}  {values[2]:6.4f}")
    means = [nan_mean(np.asarray(column)) for column in columns]
    n_means = int(np.count_nonzero(~np.isnan(columns[0])))
    rows.append(f"{'mean':{width}}  {means[0]:6.4f}     {means[1]:6.4f}  {means[2]:6.4f}  of {n_means} classes")
    return "\n".join(rows)


def ap_table(names: Sequence[str], scored: dict[str, Any]) -> str:
    """A text table of `InstanceScorer.scores`: AP, a row a class with truth, then the mean."""
    width = max(len(name) for name in (*names, "class"))
    rows = [f"{'class':{width}}      AP"]
    rows += [f"{name:{width}}  {ap:6.4f}" for name, ap in zip(names, scored["ap"], strict=True) if not np.isnan(ap)]
    return "\n".join([*rows, f"{'mean':{width}}  {scored['map']:6.4f}"])
