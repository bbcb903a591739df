"""What a start costs before the first step: `python benchmarks/bench_start.py [--images 1464 10582 118287]`.

Each size is a devkit of hard links to a few drawn photographs, with an annotation and a mask for each. All steps from
the classifier to the masks are checked twice, in a process of its own each time: the first start reads every file, the
second finds nothing changed. The table gives, above what the imports alone take: seconds of CPU (of all processes),
peak memory of the main process, and, where `strace` is installed, calls to the file system an image.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

VOC_TRAIN, VOC_TRAIN_AUG, COCO_TRAIN = 1_464, 10_582, 118_287
N_DRAWN, SIZE, N_CLASSES = 32, (375, 500), 20
N_OOD, N_DRAWN_OOD = 64, 8
PLENTY = 2**50
STEPS = (
    *("train_classifier", "train_cam", "make_cam", "eval_cam", "cam_to_ir_label", "eval_ir_label"),
    *("train_irn", "make_sem_seg", "eval_sem_seg"),
)
START, IMPORTS = "start", "imports"
NOT_FILES = ("read", "write", "lseek", "close", "mmap", "ioctl", "fcntl", "pread64", "getcwd", "dup")
"""Calls of `strace -e trace=file,desc` that ask the file system for nothing, or only go on with what was opened."""


def make_devkit(folder: Path, n_images: int) -> None:
    """Write `devkit/` with `n_images` photographs, annotations and masks, an OoD folder and list, and a work folder."""
    import numpy as np
    from PIL import Image

    from benchmarks.inputs import JPEG_QUALITY, photograph
    from voc12.classes import VOC_CLASSES

    rng, devkit, drawn = np.random.default_rng(0), folder / "devkit", folder / "drawn"
    parts = {"JPEGImages": ".jpg", "Annotations": ".xml", "SegmentationClass": ".png"}
    for part in (*parts, "ImageSets/Segmentation"):
        (devkit / part).mkdir(parents=True)
    for name in (drawn, folder / "ood", folder / "work"):
        name.mkdir()
    for number in range(N_DRAWN):
        keys = np.sort(rng.choice(N_CLASSES, 2, replace=False))
        image, mask = photograph(SIZE, keys, rng)
        Image.fromarray(image).save(drawn / f"{number}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(mask).save(drawn / f"{number}.png")
        objects = "".join(f"<object><name>{VOC_CLASSES[key]}</name></object>" for key in keys)
        (drawn / f"{number}.xml").write_text(f"<annotation>{objects}</annotation>")
    ids = [f"2099_{number:06d}" for number in range(1, n_images + 1)]
    for number, image_id in enumerate(ids):
        for part, suffix in parts.items():
            os.link(drawn / f"{number % N_DRAWN}{suffix}", devkit / part / f"{image_id}{suffix}")
    (devkit / "ImageSets/Segmentation/train.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    names = [f"scene{number}.jpg" for number in range(N_OOD)]
    for number, name in enumerate(names):
        if number < N_DRAWN_OOD:
            scene, _ = photograph(SIZE, (), rng)
            Image.fromarray(scene).save(folder / "ood" / name, quality=JPEG_QUALITY)
        else:
            os.link(folder / "ood" / names[number % N_DRAWN_OOD], folder / "ood" / name)
    (folder / "ood_list.txt").write_text("".join(f"{name}\n" for name in names))


def flags() -> list[str]:
    """The command line of the start, in the work folder beside the devkit."""
    from misc.run.config import switches, to_arguments

    train_list = "../devkit/ImageSets/Segmentation/train.txt"
    return to_arguments(
        {
            "voc12_root": "../devkit",
            **dict.fromkeys(("train_list", "val_list", "infer_list"), train_list),
            "ood_root": "../ood",
            "ood_list": "../ood_list.txt",
            "imagenet_weights": "none",
            "device": "cpu",
        }
        | switches(*STEPS)
    )


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak_mib() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start(what: str) -> dict[str, float]:
    """Import all that a run needs; unless `what` is "imports", check and plan all steps: what the latter took alone."""
    import importlib

    import run_sample
    from misc.files.look import one_look
    from misc.run.config import STEP_MODULES, parse_config

    for step in STEPS:
        importlib.import_module(STEP_MODULES[step])
    for network in ("cam", "irn"):
        importlib.import_module(f"net.resnet50_{network}")
    cpu, peak, clock = cpu_seconds(), peak_mib(), time.perf_counter()
    if what == START:
        config = parse_config(flags())
        Path(config.result_dir).mkdir(exist_ok=True)
        # The plan refuses a run whose maps the disk has no room for; here none are made
        with one_look(), patch("shutil.disk_usage", return_value=SimpleNamespace(free=PLENTY)):
            run_sample.plan_chains([("", config)])
    return {"cpu": cpu_seconds() - cpu, "peak": peak_mib() - peak, "seconds": time.perf_counter() - clock}


def in_process(what: str, work: Path, *, before: Sequence[str] = ()) -> dict[str, float]:
    """`start(what)` in a process of its own, in the folder `work`; `before`: words in front of its command."""
    command = [*before, sys.executable, str(Path(__file__).resolve()), "--child", what]
    done = subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def calls(what: str, work: Path) -> dict[str, int]:
    """{call: how often} that `start(what)` asks of the file system."""
    path = work.parent / f"strace_{what}.txt"
    in_process(what, work, before=("strace", "-f", "-c", "-e", "trace=file,desc", "-o", str(path)))
    rows = [line.split() for line in path.read_text().splitlines()]
    counted = {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit()}
    return {name: count for name, count in counted.items() if name not in (*NOT_FILES, "total")}


def has_strace() -> bool:
    """Whether calls can be counted."""
    try:
        return subprocess.run(["strace", "-c", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def measure(folder: Path, n_images: int) -> str:
    """A row of the table."""
    folder = folder / str(n_images)
    if not folder.is_dir():
        make_devkit(folder, n_images)
    work = folder / "work"
    for made in work.rglob("*"):
        if made.is_file():
            made.unlink()  # the first start knows nothing
    first, second = (in_process(START, work) for _ in range(2))
    counted = "not counted"
    if has_strace():
        of_imports, of_start = calls(IMPORTS, work), calls(START, work)
        more = {name: count - of_imports.get(name, 0) for name, count in of_start.items()}
        most = ", ".join(f"{name} {count:,}" for name, count in sorted(more.items(), key=lambda item: -item[1])[:3])
        counted = f"{sum(more.values()) / n_images:.2f} ({most})"
    cells = [f"{n_images:,}", *(f"{each['cpu']:.1f}" for each in (first, second))]
    cells += [f"{each['peak']:.0f}" for each in (first, second)]
    return f"| {' | '.join((*cells, counted))} |"


def main() -> None:
    """Measure the sizes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[VOC_TRAIN, VOC_TRAIN_AUG, COCO_TRAIN])
    parser.add_argument("--folder", type=Path, default=Path("result/bench_start"), help="of the devkits, which stay")
    parser.add_argument("--child", choices=(START, IMPORTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(start(arguments.child)))
        return
    titles = ("images", "first start, s of CPU", "second", "first, MiB", "second", "calls an image, second")
    print(f"| {' | '.join(titles)} |\n{'| --- ' * len(titles)}|", flush=True)
    for n_images in arguments.images:
        print(measure(arguments.folder.resolve(), n_images), flush=True)


if __name__ == "__main__":
    main()
