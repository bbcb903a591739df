"""Makes the sample data set, checks it, and makes it again where it is missing, damaged or of other settings.

ROOT/JPEGImages/2099_000001.jpg             ROOT/SegmentationClass/2099_000001.png
ROOT/Annotations/2099_000001.xml            ROOT/SegmentationObject/2099_000001.png
ROOT/ImageSets/Segmentation/train.txt       ROOT/ImageSets/Segmentation/val.txt
ROOT/OoD_images/rails_000008.jpg            ROOT/ood_list.txt
ROOT/classes.txt                            ROOT/manifest.json

Every image has random numbers of its own, drawn from the seed, its split and its index: it depends neither on
the number of workers nor on how many other images there are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from misc.run.lock import alone_in
from misc.run.parallel import ordered_map
from voc12.sample.devkit import image_files, jpeg
from voc12.sample.plans import CLASSES, picture_size, plan_image, plan_ood
from voc12.sample.scenes import Scene, draw_scene
from voc12.sample.storage import Fingerprint, check_replaceable, matches_manifest, write_file, writing_aside

# To be raised with every change that alters a file: data sets of an older version are then made again.
VERSION = 1

# Part of the random seed of each image.
_SPLITS = {"train": 0, "val": 1, "ood": 2}
_FIRST_NUMBER = {"train": 1, "val": 100001, "ood": 1}
_MOST_IMAGES = 99999
_DRAWING_ATTEMPTS = 200

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What determines a data set: seed, images per split, and the longest side of an image in pixels."""

    seed: int = 0
    n_train: int = 240
    n_val: int = 80
    n_ood: int = 160
    long_side: int = 288

    def __post_init__(self) -> None:
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("n_train", 1, _MOST_IMAGES),
            ("n_val", 0, _MOST_IMAGES),
            ("n_ood", 0, _MOST_IMAGES),
            ("long_side", 96, 1024),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")

    def images(self) -> list[tuple[str, int]]:
        """Split and index of every image."""
        counts = {"train": self.n_train, "val": self.n_val, "ood": self.n_ood}
        return [(split, index) for split in _SPLITS for index in range(counts[split])]


def generate(root: str | Path, *, workers: int = 2, progress: Progress | None = None, **settings: int) -> None:
    """Make the data set at `root`, in place of one that was made there earlier.

    settings: the fields of `Settings`.
    workers: more than one means new processes; a script that asks for them needs the usual
        `if __name__ == "__main__":`.
    progress: called with (images done, images in all).
    Raises ValueError for bad settings, and `InputError` for a `root` that holds anything but an earlier sample.
    """
    root, wanted = Path(root).resolve(), Settings(**settings)
    with alone_in(root.parent):
        _generate(root, wanted, workers, progress)


def is_intact(root: str | Path, **settings: int) -> bool:
    """Whether `root` holds the data set of these settings and version, each file with its size and CRC-32."""
    return matches_manifest(Path(root), _manifest_head(Settings(**settings)))


def ensure(root: str | Path, *, workers: int = 2, progress: Progress | None = None, **settings: int) -> bool:
    """Like `generate`, but only if `root` does not hold the data set intact; returns whether it was made."""
    if is_intact(root, **settings):
        return False
    root, wanted = Path(root).resolve(), Settings(**settings)
    with alone_in(root.parent):
        # Another process may have made it while this one waited.
        if is_intact(root, **settings):
            return False
        _generate(root, wanted, workers, progress)
    return True


def draw_image(settings: Settings, split: str, index: int) -> Scene:
    """Draw image `index` of a split ("train", "val", or "ood" for a background without objects)."""
    for attempt in range(_DRAWING_ATTEMPTS):
        rng = np.random.default_rng([settings.seed, _SPLITS[split], index, attempt])
        plan = plan_ood(index) if split == "ood" else plan_image(rng, index)
        scene = draw_scene(rng, plan, *picture_size(rng, settings.long_side))
        if scene is not None:
            return scene
    raise RuntimeError(f"Image {index} of {split} came out flawed {_DRAWING_ATTEMPTS} times.")


def image_name(split: str, index: int) -> str:
    """The VOC id of a labelled image; the file stem of an OoD image, which names its background."""
    prefix = plan_ood(index).background if split == "ood" else "2099"
    return f"{prefix}_{_FIRST_NUMBER[split] + index:06d}"


def _generate(root: Path, settings: Settings, workers: int, progress: Progress | None) -> None:
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    check_replaceable(root)
    images = settings.images()
    with writing_aside(root, _manifest_head(settings)) as (folder, files):
        for name, content in _lists(images).items():
            files[name] = write_file(folder, name, content)
        write = partial(_write_image, folder, settings)
        drawn = ordered_map(
            write, images, workers=workers if workers > 1 else 0, flag="num_workers", start_method="spawn"
        )
        for done, written in enumerate(drawn, start=1):
            files.update(written)
            if progress is not None:
                progress(done, len(images))


def _manifest_head(settings: Settings) -> dict:
    return {"version": VERSION, "settings": asdict(settings)}


def _lists(images: list[tuple[str, int]]) -> dict[str, bytes]:
    """The text files: relative path -> content, one entry a line."""
    names: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for split, index in images:
        names[split].append(image_name(split, index))
    lists = {
        "ImageSets/Segmentation/train.txt": names["train"],
        "ImageSets/Segmentation/val.txt": names["val"],
        "ood_list.txt": [f"{name}.jpg" for name in names["ood"]],
        "classes.txt": CLASSES,
    }
    return {path: "".join(f"{line}\n" for line in lines).encode() for path, lines in lists.items()}


def _write_image(folder: Path, settings: Settings, image: tuple[str, int]) -> dict[str, Fingerprint]:
    """Draw one image and write its files; relative path -> fingerprint."""
    with _one_thread():
        scene, name = draw_image(settings, *image), image_name(*image)
        files = {f"OoD_images/{name}.jpg": jpeg(scene.picture)} if image[0] == "ood" else image_files(name, scene)
    return {path: write_file(folder, path, content) for path, content in files.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV computes in one thread: images are drawn side by side already."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
