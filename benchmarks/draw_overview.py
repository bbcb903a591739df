"""The README's figure, from a finished run of the built-in sample: `python benchmarks/draw_overview.py`.

A row a class: of the training images that show this class alone, the one with the median gain, that is the mIoU of its
CAM with W-OoD less that of the control's, each at its arm's best background score. So the rows are neither the best
that came out nor the worst.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from misc.errors import InputError  # noqa: E402
from misc.files import camfile  # noqa: E402
from misc.files.images import read_image, read_label, write_jpeg  # noqa: E402
from misc.imutils import resize_image  # noqa: E402
from misc.report.pictures import heat_overlay, mask_overlay, side_by_side  # noqa: E402
from misc.report.sheet import miou_of_cam  # noqa: E402
from misc.run.config import Config  # noqa: E402
from voc12.classes import voc_palette  # noqa: E402
from voc12.devkit import Devkit, open_devkit  # noqa: E402
from voc12.images import read_labelled_images  # noqa: E402

EVALUATIONS = {
    "CAM without OoD images": "control/scores/eval_cam.json",
    "CAM with W-OoD": "scores/eval_cam.json",
}
SIZE = (150, 210)
"""(H, W) of each picture."""


def image_of_median_gain(devkit: Devkit, name: str, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """The id of that training image which shows the class `name` alone; `arms`: see `row`, the control first.

    Raises `InputError` if there is none.
    """
    train = read_labelled_images(devkit, devkit.split_path("train"), flag="voc12_root", label_file=Config().label_file)
    alone = [[devkit.classes[key] for key in np.flatnonzero(label)] == [name] for label in train.labels]
    gains = {}
    for image_id in itertools.compress(train.ids, alone):
        truth = read_label(devkit.mask_path(image_id))
        of_control, of_wood = (
            miou_of_cam(camfile.cam_path(arm["folder"], image_id), truth, arm["best_threshold"], len(devkit.classes))
            for arm in arms.values()
        )
        gains[image_id] = of_wood - of_control
    if not gains:
        raise InputError(f"--classes {name}: no training image shows it alone; name other classes.")
    return sorted(gains, key=lambda image_id: (gains[image_id], image_id))[len(gains) // 2]


def row(devkit: Devkit, image_id: str, arms: Mapping[str, Mapping[str, Any]], masks: Path) -> np.ndarray:
    """The image, its CAMs without and with W-OoD, and its mask, side by side.

    `arms`: by title what `eval_cam.json` says.
    """
    image = read_image(devkit.image_path(image_id))
    pictures = {"image": image}
    for title, arm in arms.items():
        pictures[title] = heat_overlay(image, camfile.load_high_res(camfile.cam_path(arm["folder"], image_id))[1])
    pictures["mask"] = mask_overlay(image, read_label(masks / f"{image_id}.png"), voc_palette())
    return side_by_side([(title, resize_image(picture, SIZE)) for title, picture in pictures.items()])


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc12_root", default="Data/sample")
    parser.add_argument("--result", type=Path, default=Path("result"))
    parser.add_argument("--classes", nargs="+", default=["train", "bird"])
    parser.add_argument("--output", default="docs/overview.jpg")
    args = parser.parse_args()
    evaluations = {title: args.result / place for title, place in EVALUATIONS.items()}
    if not all(path.is_file() for path in evaluations.values()):
        raise InputError(f"{args.result} holds no finished run; run the sample, or pass another --result.")
    devkit = open_devkit(args.voc12_root, "")
    if unknown := {*args.classes} - {*devkit.classes}:
        raise InputError(f"--classes: {', '.join(sorted(unknown))} is no class of {args.voc12_root}.")
    arms = {title: json.loads(path.read_text()) for title, path in evaluations.items()}
    chosen = [image_of_median_gain(devkit, name, arms) for name in args.classes]
    rows = [row(devkit, image_id, arms, args.result / "sem_seg_ood") for image_id in chosen]
    write_jpeg(args.output, np.concatenate(rows))
    print(f"{args.output}: {', '.join(chosen)}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
