"""Scoring a folder of CAMs or of masks against the ground truth."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import InputError
from misc.files import camfile
from misc.files.images import label_path, read_image, read_label
from misc.files.jsonfile import jsonable
from misc.files.paths import Paths
from misc.imutils import IGNORE_LABEL
from misc.metrics import ThresholdSweep, class_table, confusion_matrix, nan_mean, scores, two_fold
from misc.run.board import N_PICTURES, Board, board
from misc.run.config import Config
from misc.run.plan import Planned, require_outputs
from misc.run.progress import progress
from misc.run.record import save_scores, scores_path
from misc.run.step import Files, Inputs
from voc12.classes import names_with_background
from voc12.devkit import Devkit, open_devkit
from voc12.lists import read_split
from voc12.verify import require_fitting_masks, require_masks

Overlay = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Image (H, W, 3) uint8 and CAMs (K, H, W) in [0, 1] -> picture (H, W, 3) uint8."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation step scores: a file for each image of `chainer_eval_set`, against the masks of the devkit.

    Attributes:
        step: name of the evaluation.
        flag: names the folder of the files.
        suffix: of their names, after the image's id.
        made_by: the step that makes them.
        title: what they are called beside their score (for `scored`).
    """

    step: str
    flag: str
    suffix: str
    made_by: str
    title: str = ""

    def check(self, args: Config, planned: Planned) -> Planned:
        """Raise `InputError` for bad input; return the outputs of the step (none that others read).

        Masks in the folder must be sound; that they are empty is what the scores tell.
        """
        devkit, folder = open_devkit(args.voc12_root, args.class_list), getattr(args, self.flag)
        ids = read_split(devkit, args.chainer_eval_set)
        require_outputs(
            folder,
            ids,
            self.suffix,
            flag=self.flag,
            list_flag="chainer_eval_set",
            made_by=self.made_by,
            planned=planned,
        )
        require_masks(devkit, ids, num_workers=args.num_workers)
        if self.suffix == ".png" and folder not in planned:
            require_fitting_masks(
                self._paths(args, ids),
                devkit.image_paths(ids),
                n_classes=len(devkit.classes),
                num_workers=args.num_workers,
                advice="",
            )
        return {}

    def inputs(self, args: Config) -> Inputs:
        """What is compared, by the flag that names it."""
        devkit = open_devkit(args.voc12_root, args.class_list)
        ids = read_split(devkit, args.chainer_eval_set)
        return {
            "class_list": devkit.classes,
            "chainer_eval_set": ids,
            "voc12_root": Files(devkit.mask_paths(ids)),
            self.flag: Files(self._paths(args, ids)),
        }

    def outputs(self, args: Config) -> list[str | Path]:
        """The file of the scores."""
        return [scores_path(args.result_dir, self.step)]

    def scored(self, args: Config) -> dict[str, Any]:
        """What is scored, and where the score goes: the keywords that `evaluate_cams` and `evaluate_masks` share."""
        return {
            "devkit": open_devkit(args.voc12_root, args.class_list),
            "split": args.chainer_eval_set,
            "folder": getattr(args, self.flag),
            "result_dir": args.result_dir,
            "name": self.step,
            "title": self.title,
        }

    def _paths(self, args: Config, ids: Sequence[str]) -> Paths:
        return Paths(getattr(args, self.flag), (f"{image_id}{self.suffix}" for image_id in ids))


def score_cams(args: Config, evaluated: Evaluated, overlay: Overlay) -> None:
    """Score a folder of CAM files, as `evaluate_cams` does."""
    evaluate_cams(
        **evaluated.scored(args),
        thresholds=args.cam_eval_sweep,
        threshold_apart=args.cam_eval_thres,
        tensorboard=args.tensorboard,
        overlay=overlay,
    )


def evaluate_cams(
    devkit: Devkit,
    split: str,
    folder: str,
    *,
    thresholds: Sequence[float],
    threshold_apart: float,
    result_dir: str,
    name: str,
    title: str,
    tensorboard: str = "",
    overlay: Overlay | None = None,
) -> None:
    """Score the CAM files `<folder>/ID.npy` on the images of a split over background scores, in one pass.

    Logs the mIoU of all `thresholds` and the classes at the best one, also the mIoU where each half of the images
    (every other one of the list) has the threshold that is best on the other half, and the mIoU at `threshold_apart`,
    which is not in the choice; saves them as `<result_dir>/scores/<name>.json`, and in the folder `tensorboard`, if
    any, as a curve over thousandths of the background score, beside some CAMs as `overlay` draws them. Raises
    `InputError` for a file that does not fit its truth.
    """
    ids = read_split(devkit, split)
    names = names_with_background(devkit.classes)
    halves = tuple(ThresholdSweep((*thresholds, threshold_apart), len(names)) for _ in range(2))
    for number, image_id in enumerate(progress(ids, desc=name, unit="image")):
        truth = read_label(devkit.mask_path(image_id))
        keys, high_res = camfile.load_high_res(
            camfile.cam_path(folder, image_id), len(devkit.classes), size=truth.shape, of="its ground truth"
        )
        halves[number % 2].add(high_res, keys, truth)

    sweep = halves[0] + halves[1]
    scored = {threshold: scores(confusion) for threshold, confusion in sweep.confusions().items()}
    best, best_scores = sweep.best(among=thresholds)
    thresholds_of_halves, held_out = two_fold(halves, among=thresholds)
    miou_apart = scored[threshold_apart]["miou"]
    content = {
        "voc12_root": str(devkit.root),
        "set": split,
        "images": len(ids),
        "folder": folder,
        "classes": names,
        "best_threshold": best,
        "best": best_scores,
        "miou_by_threshold": {f"{threshold:g}": scored[threshold]["miou"] for threshold in thresholds},
        "two_fold": {"thresholds": thresholds_of_halves, "miou": held_out["miou"]},
        "miou_at_cam_eval_thres": miou_apart,
    }
    path = save_scores(result_dir, name, jsonable(content))
    if tensorboard:
        with board(tensorboard, result_dir, name) as shown:
            for threshold in thresholds:
                shown.numbers(round(1000 * threshold), {"miou_by_background_score": scored[threshold]["miou"]})
            if overlay is not None:
                _show_cams(shown, devkit, ids[:N_PICTURES], folder, overlay)
    log.info("background score   mIoU")
    for threshold in thresholds:
        log.info("%16g   %.4f%s", threshold, scored[threshold]["miou"], "   best" if threshold == best else "")
    log.info("%16g   %.4f   (--cam_eval_thres, not in the choice)", threshold_apart, miou_apart)
    log.info("%s", class_table(names, best_scores))
    log.info(
        "mIoU %.4f where each half of the images has the score that is best on the other half (%g and %g)",
        held_out["miou"],
        *thresholds_of_halves,
    )
    log.info("%s mIoU %.4f at background score %g (%s)", title, best_scores["miou"], best, path)


def _show_cams(shown: Board, devkit: Devkit, ids: Sequence[str], folder: str, overlay: Overlay) -> None:
    """Put the CAM files of some images, over these, on TensorBoard."""
    for image_id, image_path in zip(ids, devkit.image_paths(ids), strict=True):
        _, high_res = camfile.load_high_res(camfile.cam_path(folder, image_id), len(devkit.classes))
        shown.picture(f"CAM/{image_id}", 0, overlay(read_image(image_path), high_res))


def evaluate_masks(
    devkit: Devkit,
    split: str,
    folder: str,
    *,
    result_dir: str,
    name: str,
    title: str,
    set_flag: str = "chainer_eval_set",
    weights: str | None = None,
) -> None:
    """Score `<folder>/ID.png` on the images of a split; log the table, save it as `<result_dir>/scores/<name>.json`.

    `weights`: checkpoint of the network whose masks these are, saved with the scores.
    Unsure pixels (255) of a mask count as background. Raises `InputError` for a mask that does not fit its truth.
    """
    ids = read_split(devkit, split, flag=set_flag)
    names = names_with_background(devkit.classes)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    for image_id in progress(ids, desc=name, unit="image"):
        path = label_path(folder, image_id)
        mask = read_label(path)
        mask[mask == IGNORE_LABEL] = 0
        try:
            confusion += confusion_matrix(mask, read_label(devkit.mask_path(image_id)), len(names))
        except ValueError as error:
            raise InputError(f"mask {path} does not fit its ground truth ({error}); make it again.") from error

    scored = scores(confusion)
    content = {
        "voc12_root": str(devkit.root),
        "set": split,
        "images": len(ids),
        "folder": folder,
        "weights": weights,
        "classes": names,
    }
    path = save_scores(result_dir, name, jsonable({**content, **scored}))
    log.info("%s", class_table(names, scored))
    for key in ("false_positive", "false_negative"):
        background, foreground = scored[key][0], nan_mean(scored[key][1:])
        log.info("%s fraction: background %.4f, foreground %.4f", key.replace("_", " "), background, foreground)
    log.info("%s mIoU %.4f (%s)", title, scored["miou"], path)
