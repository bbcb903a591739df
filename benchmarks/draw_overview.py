"""The README's figure, from a finished run of the built-in sample: `python benchmarks/draw_overview.py`.

A row a class: of the training images that show this class alone, the one with the median gain, that is the mIoU of its
CAM with W-OoD less that of the control's, each at its arm's best background score. So the rows are neither the best
that came out nor the worst.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from misc.cam import label_map  # noqa: E402
from misc.errors import InputError  # noqa: E402
from misc.files import camfile  # noqa: E402
from misc.files.images import read_image, read_label, write_jpeg  # noqa: E402
from misc.imutils import resize_image  # noqa: E402
from misc.metrics import confusion_matrix, scores  # noqa: E402
from misc.report.pictures import heat_overlay, mask_overlay, side_by_side  # noqa: E402
from misc.run.config import Config  # noqa: E402
from voc12.classes import voc_palette  # noqa: E402
from voc12.devkit import Devkit, open_devkit  # noqa: E402
from voc12.images import read_labelled_images  # noqa: E402

CONTROL = "control"
SIZE = (150, 210)
"""(H, W) of each picture."""


def miou_of_cam(devkit: Devkit, evaluation: Path, image_id: str) -> float:
    """Of one image, at the best background score of the `evaluation` of its arm, an `eval_cam.json`."""
    evaluated = json.loads(evaluation.read_text())
    keys, high_res = camfile.load_high_res(camfile.cam_path(evaluated["folder"], image_id), len(devkit.classes))
    predicted, truth = label_map(high_res, keys, evaluated["best_threshold"]), read_label(devkit.mask_path(image_id))
    return scores(confusion_matrix(predicted, truth, len(devkit.classes) + 1))["miou"]


def image_of_median_gain(devkit: Devkit, name: str, result: Path) -> str:
    """The id of that training image which shows the class `name` alone."""
    train = read_labelled_images(devkit, devkit.split_path("train"), flag="voc12_root", label_file=Config().label_file)
    alone = [[devkit.classes[key] for key in np.flatnonzero(label)] == [name] for label in train.labels]
    gains = {
        image_id: miou_of_cam(devkit, result / "scores/eval_cam.json", image_id)
        - miou_of_cam(devkit, result / CONTROL / "scores/eval_cam.json", image_id)
        for image_id in itertools.compress(train.ids, alone)
    }
    if not gains:
        raise InputError(f"--classes {name}: no training image shows it alone; name other classes.")
    return sorted(gains, key=lambda image_id: (gains[image_id], image_id))[len(gains) // 2]


def row(devkit: Devkit, image_id: str, result: Path) -> np.ndarray:
    """The image, its CAMs without and with W-OoD, and its mask, side by side."""
    image = read_image(devkit.image_path(image_id))
    pictures = {"image": image}
    for title, arm in (("CAM without OoD images", result / CONTROL), ("CAM with W-OoD", result)):
        folder = json.loads((arm / "scores/eval_cam.json").read_text())["folder"]
        pictures[title] = heat_overlay(image, camfile.load_high_res(camfile.cam_path(folder, image_id))[1])
    mask = read_label(result / f"sem_seg_ood/{image_id}.png")
    pictures["mask"] = mask_overlay(image, mask, voc_palette())
    return side_by_side([(title, resize_image(picture, SIZE)) for title, picture in pictures.items()])


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc12_root", default="Data/sample")
    parser.add_argument("--result", type=Path, default=Path("result"))
    parser.add_argument("--classes", nargs="+", default=["train", "bird"])
    parser.add_argument("--output", default="docs/overview.jpg")
    args = parser.parse_args()
    if not (args.result / CONTROL / "scores/eval_cam.json").is_file():
        raise InputError(f"{args.result} holds no finished run; run the sample, or pass another --result.")
    devkit = open_devkit(args.voc12_root, "")
    if unknown := {*args.classes} - {*devkit.classes}:
        raise InputError(f"--classes: {', '.join(sorted(unknown))} is no class of {args.voc12_root}.")
    chosen = [image_of_median_gain(devkit, name, args.result) for name in args.classes]
    write_jpeg(args.output, np.concatenate([row(devkit, image_id, args.result) for image_id in chosen]))
    print(f"{args.output}: {', '.join(chosen)}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
