"""What grows with the list: `python benchmarks/bench_scale.py [--images 10582 118287]` prints two tables.

Memory is that of Python's objects, measured on devkits of `bench_start.py`: what a run keeps after its checks, and what
each step adds to it. Files that are opened and written are counted while each step runs on two small data sets, for an
epoch and without loader processes; what the larger one takes more, divided by its further images, is that of an image.
"""

import argparse
import gc
import io
import os
import pickle
import sys
import tempfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import ALL_STEPS, CAM_START, NO_STEPS, make_toy_data  # noqa: E402

import run_sample  # noqa: E402
from benchmarks.bench_start import COCO_TRAIN, VOC_TRAIN_AUG, flags, make_devkit  # noqa: E402
from misc.files.look import one_look  # noqa: E402
from misc.run.config import parse_config  # noqa: E402
from misc.run.loaders import ShuffledBatches, size_groups  # noqa: E402
from misc.run.plan import Plan  # noqa: E402
from misc.run.provenance import Provenance  # noqa: E402
from net.weights import save_weights  # noqa: E402
from tests import own_network  # noqa: E402
from voc12 import verify  # noqa: E402
from voc12.dataloader import ClassificationCrops, WholeImages  # noqa: E402
from voc12.devkit import open_devkit  # noqa: E402
from voc12.images import read_labelled_images  # noqa: E402

MIB = 2**20
SMALL, LARGE = 8, 12
"""Images of the data sets on which calls are counted."""
OPENED, WRITTEN = "open", "replace"
STEPS = tuple(name.removesuffix("_pass") for name in ALL_STEPS)


def held(make: Callable[[], Any]) -> tuple[Any, float]:
    """What `make` returns, and the MiB of Python's memory that stay."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] / MIB
    tracemalloc.stop()
    return made, size


def memory(folder: Path, n_images: int) -> Iterator[tuple[str, float]]:
    """(what, MiB) of all that grows with the list, on a devkit of `bench_start.py`."""
    if not (folder / str(n_images)).is_dir():
        make_devkit(folder / str(n_images), n_images)
    work = folder / str(n_images) / "scale"
    work.mkdir(exist_ok=True)
    os.chdir(work)
    config, ids = parse_config(flags()), [f"2099_{number:06d}" for number in range(1, n_images + 1)]
    with one_look():
        _, size = held(lambda: run_sample.check_chain(config, Plan()))
        yield "a run, from its checks on: folders, lists, labels, what was verified", size
        devkit = open_devkit(config.voc12_root, "")
        images = read_labelled_images(devkit, config.train_list, flag="train_list", label_file=config.label_file)
        settings = {"resize_long": (320, 640), "crop_size": 512, "seed": (0, 0)}
        crops = ClassificationCrops(images.paths, images.labels, **settings)
        yield "each loader process of a training: paths and labels", len(pickle.dumps(crops)) / MIB
        as_lists = ClassificationCrops(list(images.paths), np.asarray(images.labels), **settings)
        yield "the same as lists and float32, for comparison", held(lambda: pickle.loads(pickle.dumps(as_lists)))[1]
        batches = ShuffledBatches(n_images, batch_size=16, n_batches=n_images, seed=(0, 0))
        yield "a training: the order of an epoch", held(lambda: _first_order(batches))[1]
        sizes, size = held(lambda: [(number % 400 + 100, 500) for number in range(n_images)])
        groups, more = held(lambda: size_groups(sizes, 16, n_parts=[1] * n_images))
        yield "make_cam: sizes of images and their groups", size + more
        yield "masks, DeepLab: paths alone", len(pickle.dumps(WholeImages(images.paths))) / MIB
        made_with = {"network": "net.resnet50_cam", "weights": "0" * 64, "classes": devkit.classes, "adv_iter": 27}
        _write_provenance(work, ids, made_with)
        yield "make_advcam: which files are finished", held(lambda: Provenance(work, made_with))[1]
        yield "make_cocoann: the entries of images", held(lambda: _coco_images(ids))[1]


def _sound(files: tuple[str, ...], **options: int) -> None:
    """Finds no problem."""


def _first_order(batches: ShuffledBatches) -> object:
    iterator = iter(batches)
    next(iterator)
    return iterator


def _write_provenance(folder: Path, ids: list[str], made_with: dict) -> None:
    (folder / "made_with.jsonl").unlink(missing_ok=True)
    (folder / "x.npy").write_text("x")
    provenance = Provenance(folder, made_with)
    provenance.record(folder / "x.npy", "00000000")
    line = (folder / "made_with.jsonl").read_text()
    with (folder / "made_with.jsonl").open("w") as file:
        file.writelines(line.replace("x.npy", f"{image_id}.npy") for image_id in ids)


def _coco_images(ids: list[str]) -> list[dict]:
    return [{"id": n, "file_name": f"{i}.jpg", "height": 375 + n, "width": 500 + n} for n, i in enumerate(ids)]


@contextmanager
def counted() -> Iterator[list[str]]:
    """Note each file that Python code opens or renames to its final name, in all threads."""
    calls: list[str] = []

    def note(frame: Any, event: str, function: Any) -> None:
        if (
            event == "c_call"
            and function.__name__ in (OPENED, WRITTEN)
            and function.__module__ in ("posix", "io", "_io")
        ):
            calls.append(function.__name__)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def calls_of_steps(n_images: int) -> dict[str, Counter]:
    """{step: files opened and written} of each step alone, after the steps before it, on a small data set."""
    with tempfile.TemporaryDirectory() as folder:
        toy = make_toy_data(Path(folder))
        os.chdir(toy.work)
        ids = [*toy.ids, *(f"2099_{number:06d}" for number in range(len(toy.ids) + 1, n_images + 1))]
        parts = (
            ("JPEGImages", "jpg"),
            ("Annotations", "xml"),
            ("SegmentationClass", "png"),
            ("SegmentationObject", "png"),
        )
        for number, image_id in enumerate(ids[len(toy.ids) :]):
            for part, suffix in parts:
                path = toy.root / part / f"{image_id}.{suffix}"
                path.hardlink_to(path.with_stem(toy.ids[number % len(toy.ids)]))
        split = toy.root / "ImageSets/Segmentation/train.txt"
        for name in ("train", "val"):
            split.with_stem(name).write_text("".join(f"{image_id}\n" for image_id in ids))
        save_weights(own_network.Net(n_classes=3), toy.work / CAM_START)
        lists = dict.fromkeys(("train_list", "val_list", "infer_list"), split)
        found = {}
        for step in STEPS:
            # An epoch each; how long masks are walked does not matter here
            settings = {"deeplab_max_iter": n_images // 4, "cam_select": "last", "exp_times": 1}
            arguments = toy.flags(**NO_STEPS, **lists, **settings) + [f"--{step}_pass", "True"]
            with counted() as calls, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                run_sample.run(arguments)
            found[step] = Counter(calls)
        os.chdir(ROOT)
        return found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[VOC_TRAIN_AUG, COCO_TRAIN])
    parser.add_argument("--folder", type=Path, default=Path("result/bench_start"), help="of the devkits, which stay")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    calls_of_steps(SMALL)  # what is loaded once is left out
    small, large = calls_of_steps(SMALL), calls_of_steps(LARGE)
    print("| step | opened an image | written an image |\n| --- | --- | --- |")
    for step in STEPS:
        more = [(large[step][name] - small[step][name]) / (LARGE - SMALL) for name in (OPENED, WRITTEN)]
        print(f"| `{step}` | {more[0]:.1f} | {more[1]:.1f} |", flush=True)
    verify._problem_of_image = verify._problem_of_mask = _sound  # nor any image read
    rows: dict[str, list[float]] = {}
    for n_images in arguments.images:
        for what, size in memory(folder, n_images):
            rows.setdefault(what, []).append(size)
    print(f"\n| MiB | {' | '.join(f'{n:,}' for n in arguments.images)} | 1,000,000, computed |")
    print("| --- " * (len(arguments.images) + 2) + "|")
    for what, sizes in rows.items():
        million = sizes[-1] / arguments.images[-1] * 1_000_000
        print(f"| {what} | {' | '.join(f'{size:.1f}' for size in sizes)} | {million:.0f} |")


if __name__ == "__main__":
    main()
