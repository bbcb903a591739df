"""The road of docs/own_data.md, walked with the built-in sample as if it were a stranger's photographs.

    python benchmarks/bench_own_data.py [--folder result/own_data]

The sample's training images are sorted into folders by class, and its OoD images are mixed with its validation images,
which show objects, into a pool. From then on the documented commands run one after the other, in a working folder of
their own. Instead of a person, the name of an image says whether it shows an object. A table tells what each command
took; at the end the masks are compared with the sample's own, which no command has seen. A call goes on where the last
one stopped.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from misc.files.images import read_label  # noqa: E402
from misc.metrics import confusion_matrix, scores  # noqa: E402
from voc12.sample import ensure  # noqa: E402

SMALL = ("--recipe", "small", "--voc12_root", "Data/mine")
MINE = (*SMALL, "--mine_ood_pass", "True", "--ood_pool", "pool")
IMPORT = "import the photographs"
COMMANDS = {
    IMPORT: ("--import_data_pass", "True", "--voc12_root", "Data/mine", "--import_from", "photos"),
    "train the classifier, rank the pool": MINE,
    "make OoD data of what was reviewed": (*MINE, "--ood_review", "ood_review.csv"),
    "W-OoD, masks, segmentation network": SMALL,
    "segment the pool": (*SMALL, "--predict_pass", "True", "--predict_input", "pool"),
    "overlays of the validation images": (
        *(*SMALL, "--show_pass", "True", "--show_list", "Data/mine/ImageSets/Main/val.txt"),
        *("--labels_from", "classifier"),
    ),
}
CANDIDATES, REVIEW = Path("result/mined_ood/candidates.csv"), Path("ood_review.csv")


def sort(sample: Path, folder: Path) -> None:
    """Write `photos/CLASS/`, in which an image with two classes lies twice, and `pool/`."""
    ids = {name: (sample / f"ImageSets/Segmentation/{name}.txt").read_text().split() for name in ("train", "val")}
    for image_id in ids["train"]:
        annotation = ElementTree.parse(sample / f"Annotations/{image_id}.xml")
        for name in {each.text for each in annotation.iter("name")}:
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(sample / f"JPEGImages/{image_id}.jpg", folder / "photos" / name / f"IMG {image_id}.jpg")
    part = folder / "pool.part"
    part.mkdir(exist_ok=True)
    for path in (*(sample / "OoD_images").iterdir(), *(sample / f"JPEGImages/{each}.jpg" for each in ids["val"])):
        shutil.copy(path, part)
    part.rename(folder / "pool")  # which is there as a whole, or not at all


def review(sample: Path, folder: Path) -> None:
    """Write the decisions that a person would take: whether a candidate is one of the sample's images with objects."""
    with (folder / CANDIDATES).open(newline="") as file:
        files = [row["file"] for row in csv.DictReader(file)]
    with (folder / REVIEW).open("w", newline="") as file:
        shows = (int((sample / "JPEGImages" / Path(name).name).exists()) for name in files)
        csv.writer(file).writerows([("file", "shows_object"), *zip(files, shows, strict=True)])


def walk(sample: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """(what, seconds) of each command. Raises `CalledProcessError` if one fails, with what it said in `output.txt`."""
    with (folder / "output.txt").open("a") as output:
        for what, flags in COMMANDS.items():
            if str(REVIEW) in flags:
                review(sample, folder)
            started = time.perf_counter()
            line = [sys.executable, str(ROOT / "run_sample.py"), *flags]
            environment = {**os.environ, "COLUMNS": "120"}
            subprocess.run(line, cwd=folder, env=environment, check=True, stdout=output, stderr=output)
            yield what, time.perf_counter() - started


def compared(sample: Path, folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """{what: [(mask, the sample's id of its image)]} of the masks that can be compared with the sample's own."""
    with (folder / "Data/mine/import.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["list"] == "train"]
    val = (sample / "ImageSets/Segmentation/val.txt").read_text().split()
    return {
        "masks of the training images (make_sem_seg)": [
            (folder / f"result/sem_seg_ood/{row['id']}.png", Path(row["file"]).stem.removeprefix("IMG "))
            for row in rows
        ],
        "masks of the pool's images with objects (predict)": [
            (folder / f"result/predict/{image_id}.png", image_id) for image_id in val
        ],
    }


def miou(masks: Sequence[tuple[Path, str]], sample: Path) -> float:
    """mIoU, in per cent, against the sample's own masks."""
    n_classes = len((sample / "classes.txt").read_text().split()) + 1
    confusions = (
        confusion_matrix(read_label(path), read_label(sample / f"SegmentationClass/{image_id}.png"), n_classes)
        for path, image_id in masks
    )
    return 100 * scores(sum(confusions))["miou"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Walk the road and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("result/own_data"))
    folder = parser.parse_args(arguments).folder.resolve()
    sample = folder / "sample"
    ensure(sample)
    if not (folder / "pool").is_dir():
        sort(sample, folder)
    print("| command | seconds |\n| --- | --- |")
    for what, seconds in walk(sample, folder):
        print(f"| {what} | {seconds:.0f} |", flush=True)
    print("\n| masks | images | mIoU |\n| --- | --- | --- |")
    for what, masks in compared(sample, folder).items():
        print(f"| {what} | {len(masks)} | {miou(masks, sample):.1f} |")
    scenes = [path.stem for path in (sample / "OoD_images").iterdir()]
    n_empty = sum(not read_label(folder / f"result/predict/{name}.png").any() for name in scenes)
    print(
        f"\nof the pool's {len(scenes)} images without objects {n_empty} have an empty mask, as they should (predict)"
    )


if __name__ == "__main__":
    main()
