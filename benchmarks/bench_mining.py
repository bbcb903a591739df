"""Mining of OoD images: its speed beside make_cam's, what its few sizes change, and what its images are worth.

    python benchmarks/bench_mining.py speed [--images 48] [--repeats 3]   # drawn photographs, ResNet-50, random weights
    python benchmarks/bench_mining.py sample [--seeds 0 1 2] [FLAGS]      # the built-in sample, trained with each list
    python benchmarks/bench_mining.py sizes [--seeds 0]                   # after `sample`, with its classifier

`sample` mines a pool of the sample's OoD images and of its validation images, which show objects. Instead of a person,
the place of an image says whether it shows one. W-OoD is then trained with the sample's own list, and with the
reviewed one, from the same classifier. FLAGS are run_sample.py's. Everything is kept in `--folder`, and a call goes on
where the last one stopped.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import run_sample  # noqa: E402
from benchmarks import inputs  # noqa: E402
from misc.classifier import class_probabilities  # noqa: E402
from misc.files.images import read_image  # noqa: E402
from misc.imutils import long_side_size, resize_image, to_chw  # noqa: E402
from misc.mining import scoring_size  # noqa: E402
from misc.run.config import Config, changed_flags, parse_config, switches, to_arguments  # noqa: E402
from misc.run.sample_runs import sample_runs  # noqa: E402
from net.build import load_network  # noqa: E402
from voc12.sample import ensure  # noqa: E402

VOC_SIZES = ((375, 500), (500, 375), (333, 500), (500, 334), (400, 500), (332, 500))
POOL_SIZES = {"sizes of VOC": VOC_SIZES, "1024 x 768, as in OpenImages": ((768, 1024), (1024, 768), (683, 1024))}
SHOWING, HIDDEN = "heldout", "scenes"
"""The folders of the pool: images with objects, and without."""
GIVEN_RUN = "W-OoD training and its CAMs"
CLASSIFIER_RUN = "in-distribution classifier"
CONTROL_RUN = "control: the same without OoD images"


def run(config: Config, *steps: str, folder: Path) -> None:
    """Run steps with a configuration in a folder; what they say goes to `output.txt`."""
    flags = changed_flags(vars(config)) | switches(*steps)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with Path("output.txt").open("a") as output, redirect_stdout(output), redirect_stderr(output):
            run_sample.run(to_arguments(flags))
    finally:
        os.chdir(before)


def seconds_of(folder: Path, step: str) -> float:
    """How long the last run of a step took, as its record says."""
    records = (json.loads(path.read_text()) for path in sorted(folder.glob("result/runs/*.json")))
    return [done["seconds"] for record in records for done in record["done"] if done["step"] == step][-1]


def speed(folder: Path, *, n_images: int, repeats: int, flags: Sequence[str]) -> list[str]:
    """The lines of a table: images a second of make_cam at scale 1, and of mining pools of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "cam.pth").is_file():
        sizes = [VOC_SIZES[number % len(VOC_SIZES)] for number in range(n_images)]
        inputs.make_devkit(folder, sizes)
        for number, pool_sizes in enumerate(POOL_SIZES.values()):
            rng = np.random.default_rng(1 + number)
            (folder / f"pool{number}").mkdir()
            for place in range(n_images):
                picture, _ = inputs.photograph(pool_sizes[place % len(pool_sizes)], (), rng)
                Image.fromarray(picture).save(folder / f"pool{number}/{place}.jpg", quality=inputs.JPEG_QUALITY)
        inputs.make_weights(folder)
    files = {"voc12_root": "devkit", "label_file": "cls_labels.npy", "train_list": _split("devkit", "train")}
    weights = {"cam_weights_name": "cam.pth", "cam_init_weights_name": "cam.pth", "cam_scales": (1.0,)}
    config = parse_config([*to_arguments(files | weights), *flags])
    kinds = {"make_cam at scale 1": ("make_cam", replace(config, redo=("all",)))}
    for number, name in enumerate(POOL_SIZES):
        mining = replace(config, redo=("all",), ood_pool=(f"pool{number}",), ood_mine_dir=f"result/mined{number}")
        kinds[f"mine_ood, {name}: scores"] = ("mine_ood", replace(mining, ood_hard_score=1.0))
        kinds[f"mine_ood, {name}: scores, and pictures of all"] = ("mine_ood", replace(mining, ood_hard_score=0.0))
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, (step, settings) in kinds.items():
            run(settings, step, folder=folder)
            found[name].append(n_images / seconds_of(folder, step))
    middle = {name: median(rates) for name, rates in found.items()}
    base = middle["make_cam at scale 1"]
    lines = ["| step | images a second | least .. most | against make_cam |", "| --- | --- | --- | --- |"]
    for name, rates in found.items():
        spread = f"{min(rates):.1f} .. {max(rates):.1f}"
        lines.append(f"| {name} | {middle[name]:.1f} | {spread} | {middle[name] / base:.2f} |")
    return lines


def _split(root: str, name: str) -> str:
    return f"{root}/ImageSets/Segmentation/{name}.txt"


def sample_row(folder: Path, seed: int, *, flags: Sequence[str], data: dict[str, int]) -> dict[str, Any]:
    """CAM mIoU (per cent) on the sample's training images without OoD images, with the given and the reviewed list."""
    root = folder / "sample"
    ensure(root, workers=1, **data)
    of_seed = folder / f"seed{seed}"
    of_seed.mkdir(parents=True, exist_ok=True)
    runs = {name: parse_config(line) for name, line in sample_runs(str(root), ["--seed", str(seed), *flags])}
    classifier, given, control = (runs[name] for name in (CLASSIFIER_RUN, GIVEN_RUN, CONTROL_RUN))
    run(classifier, "train_classifier", folder=of_seed)
    mining = replace(given, ood_pool=(str(_pool(root, of_seed)),), ood_root="mined/images", ood_list="mined/list.txt")
    run(mining, "mine_ood", folder=of_seed)
    candidates = _review(of_seed / "result/mined_ood/candidates.csv", of_seed / "ood_review.csv")
    mining = replace(mining, ood_review="ood_review.csv")
    run(mining, "mine_ood", folder=of_seed)
    reviewed = {"result_dir": "result/reviewed", "cam_out_dir": "result/reviewed/cam", "cam_weights_name": "mined.pth"}
    row = {"shown": len(candidates), "marked": sum(candidates.values())}
    row["images"] = row["shown"] - row["marked"]
    for name, config in (("control", control), ("given", given), ("reviewed", replace(mining, **reviewed))):
        run(config, "train_cam", "make_cam", "eval_cam", folder=of_seed)
        scores = json.loads((of_seed / config.result_dir / "scores/eval_cam.json").read_text())
        row[name] = 100 * scores["best"]["miou"]
    return row


def _pool(root: Path, folder: Path) -> Path:
    """A folder with links to the sample's OoD images, and to its validation images."""
    val = (root / _split("", "val").lstrip("/")).read_text().split()
    files = {HIDDEN: sorted((root / "OoD_images").iterdir()), SHOWING: [root / f"JPEGImages/{i}.jpg" for i in val]}
    for name, paths in files.items():
        (folder / "pool" / name).mkdir(parents=True, exist_ok=True)
        for path in paths:
            link = folder / "pool" / name / path.name
            if not link.exists():
                link.hardlink_to(path)
    return folder / "pool"


def _review(candidates: Path, path: Path) -> dict[str, bool]:
    """Write the decisions that a person would take; returns them: {file: whether it shows an object}."""
    with candidates.open(newline="") as file:
        decisions = {row["file"]: Path(row["file"]).parent.name == SHOWING for row in csv.DictReader(file)}
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "shows_object"), *((f, int(shows)) for f, shows in decisions.items())])
    return decisions


def sample(folder: Path, *, seeds: Sequence[int], flags: Sequence[str], data: dict[str, int]) -> list[str]:
    """The lines of a table, a row a seed, and their means."""
    columns = ("shown", "marked", "images", "control", "given", "reviewed")
    titles = (
        "seed",
        "candidates",
        "of these with an object",
        "images of the reviewed list",
        *columns[3:],
        "difference",
    )
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    rows = {str(seed): sample_row(folder, seed, flags=flags, data=data) for seed in seeds}
    rows["mean"] = {name: mean(row[name] for row in rows.values()) for name in columns}
    for title, row in rows.items():
        cells = [f"{row[name]:.0f}" for name in columns[:3]] + [f"{row[name]:.1f}" for name in columns[3:]]
        lines.append(f"| {title} | {' | '.join(cells)} | {row['reviewed'] - row['given']:+.1f} |")
    return lines


def sizes(folder: Path, *, seeds: Sequence[int], flags: Sequence[str]) -> list[str]:
    """The lines of a table: how far a change of an image moves its probabilities (largest of the classes' changes)."""
    of_seed = folder / f"seed{seeds[0]}"
    (line,) = (line for name, line in sample_runs(str(folder / "sample"), flags) if name == CLASSIFIER_RUN)
    config = parse_config(line)
    classes = (folder / "sample/classes.txt").read_text().split()
    weights = str(of_seed / config.cam_init_weights_name)
    model = load_network(config.cam_network, "Net", weights, torch.device("cpu"), n_classes=len(classes))
    ways = {
        "the size that mine_ood takes": lambda image: resize_image(
            image, scoring_size(image.shape[:2], config.ood_long_side)
        ),
        "enlarged by one per cent": lambda image: resize_image(
            image, long_side_size(image.shape[:2], round(1.01 * max(image.shape)))
        ),
        "the mirror image": lambda image: image[:, ::-1],
    }
    images = [read_image(path) for path in sorted((of_seed / "pool").rglob("*.jpg"))]
    before = [_probabilities(model, image) for image in images]
    n_sizes = len({scoring_size(image.shape[:2], config.ood_long_side) for image in images})
    lines = [
        f"{len(images)} images of {len({image.shape for image in images})} sizes, scored in {n_sizes}",
        "",
        "| change | mean | 95th percentile | largest | same class |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, changed in ways.items():
        after = [_probabilities(model, changed(image)) for image in images]
        moved = [float((a - b).abs().max()) for a, b in zip(after, before, strict=True)]
        same = mean(int(a.argmax() == b.argmax()) for a, b in zip(after, before, strict=True))
        figures = f"{mean(moved):.3f} | {np.percentile(moved, 95):.3f} | {max(moved):.3f} | {100 * same:.0f} %"
        lines.append(f"| {name} | {figures} |")
    return lines


def _probabilities(model: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    return class_probabilities(model, torch.from_numpy(to_chw(image))[None])[0]


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("speed", "sample", "sizes"))
    parser.add_argument("--folder", type=Path, default=Path("result/bench_mining"))
    parser.add_argument("--images", type=int, default=48, help="of each pool, for speed")
    parser.add_argument("--repeats", type=int, default=3, help="of each step, for speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given, flags = parser.parse_known_args()
    folder = given.folder.resolve()
    if given.table == "speed":
        lines = speed(folder / "speed", n_images=given.images, repeats=given.repeats, flags=flags)
    elif given.table == "sample":
        lines = sample(folder, seeds=given.seeds, flags=flags, data={})
    else:
        lines = sizes(folder, seeds=given.seeds, flags=flags)
    print(f"{os.cpu_count()} CPU cores, {'with' if torch.cuda.is_available() else 'without'} a GPU\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
