"""The data set on disk: a folder in VOC devkit layout, and its classes."""

import os
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from misc.errors import InputError, requirement
from misc.files.checkpointfile import classes_beside
from misc.files.devkitfiles import CLASS_LIST, IMAGES, MASKS, OBJECTS, TO_EVALUATE, list_path
from misc.files.images import IMAGE_SUFFIXES, label_path
from misc.files.look import Folder, folder_at, remembered
from misc.files.paths import Paths
from voc12.classes import VOC_CLASSES, names_with_background, read_classes


@dataclass(frozen=True)
class Devkit:
    """A folder with `JPEGImages/`, `Annotations/`, `SegmentationClass/`, `ImageSets/Segmentation/`, and its classes."""

    root: Path
    classes: tuple[str, ...]

    @cached_property
    def image_folder(self) -> Path:
        """`JPEGImages`."""
        return self.root / IMAGES

    @cached_property
    def _images(self) -> Folder:
        return folder_at(self.image_folder)

    @cached_property
    def image_names(self) -> dict[str, str]:
        """{id: file name} of the images in `JPEGImages/`, which is listed once."""
        return self._images.by_stem(IMAGE_SUFFIXES)

    @cached_property
    def hidden_images(self) -> dict[str, list[str]]:
        """{id: file names} of the images in `JPEGImages/` that differ from that of their id in the suffix alone."""
        return self._images.hidden(IMAGE_SUFFIXES)

    def image_path(self, image_id: str) -> Path:
        """`JPEGImages/ID.jpg`, or whatever kind of image there is under this id."""
        return self.image_folder / self.image_names.get(image_id, f"{image_id}.jpg")

    def image_paths(self, ids: Iterable[str]) -> Paths:
        """The paths of many images."""
        names = self.image_names
        return self._paths(self.image_folder, ids, lambda image_id: names.get(image_id) or f"{image_id}.jpg")

    @property
    def mask_folder(self) -> Path:
        """`SegmentationClass`, the ground truth."""
        return self.root / MASKS

    def mask_path(self, image_id: str) -> Path:
        """`SegmentationClass/ID.png`."""
        return label_path(self.mask_folder, image_id)

    def mask_paths(self, ids: Iterable[str]) -> Paths:
        """The paths of many masks."""
        return self._paths(self.mask_folder, ids, "{}.png".format)

    @property
    def object_folder(self) -> Path:
        """`SegmentationObject`, the ground truth of instances."""
        return self.root / OBJECTS

    def object_path(self, image_id: str) -> Path:
        """`SegmentationObject/ID.png`."""
        return label_path(self.object_folder, image_id)

    def object_paths(self, ids: Iterable[str]) -> Paths:
        """The paths of many instance masks."""
        return self._paths(self.object_folder, ids, "{}.png".format)

    @staticmethod
    def _paths(folder: Path, ids: Iterable[str], name_of: Callable[[str], str]) -> Paths:
        ids = tuple(ids)
        return remembered((folder, ids), lambda: Paths(folder, map(name_of, ids)))

    def split_path(self, split: str) -> Path:
        """`ImageSets/Segmentation/<split>.txt`."""
        return list_path(self.root, TO_EVALUATE, split)


def open_devkit(voc12_root: str, class_list: str) -> Devkit:
    """The devkit at `voc12_root` with its class names: `class_list`, else the root's `classes.txt`, else VOC's 20.

    Raises `InputError` if the folder is missing or no devkit, or if its masks are numbered by other classes than
    `class_list`: those of its `classes.txt`, or VOC's where the list names just these.
    """
    root = Path(voc12_root)
    if not (root / IMAGES).is_dir():
        problem = "has no JPEGImages folder" if root.is_dir() else "is missing"
        nested = _devkits_near(root)
        hint = f"did you mean --voc12_root {nested[0]}?" if nested else "Data/README.md says what to put there."
        raise InputError(f"--voc12_root {root} {problem}; expected a VOC devkit (JPEGImages, Annotations, ...); {hint}")
    devkit = Devkit(root, class_names(voc12_root, class_list))
    own = root / CLASS_LIST
    if class_list and own.is_file() and (different := _first_difference(read_classes(own), devkit.classes)):
        number, theirs, given = different
        raise InputError(
            f"--class_list {class_list}: class {number} is {given}, but {theirs} in {own}, by which the masks there "
            "are numbered; leave --class_list out, or correct one of the two files."
        )
    if not own.is_file() and {*devkit.classes} == {*VOC_CLASSES} and devkit.classes != VOC_CLASSES:
        number, theirs, given = _first_difference(VOC_CLASSES, devkit.classes)
        raise InputError(
            f"--class_list {class_list}: class {number} is {given}, but {theirs} in VOC, by which its masks are "
            f"numbered; leave --class_list out, or save the list as {own} if your masks are numbered by it."
        )
    return devkit


def _first_difference(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int, str, str] | None:
    """The number of the first class, from 1, that two lists don't share, and its two names."""
    pairs = zip_longest(ours, theirs, fillvalue="no class")
    return next(((number, *pair) for number, pair in enumerate(pairs, start=1) if pair[0] != pair[1]), None)


def class_names(voc12_root: str, class_list: str) -> tuple[str, ...]:
    """The class names of `class_list`, else of the root's `classes.txt` where there is one, else VOC's 20."""
    own_list = Path(voc12_root) / CLASS_LIST
    if class_list:
        return read_classes(class_list)
    return read_classes(own_list) if own_list.is_file() else VOC_CLASSES


def names_of_network(weights: str, *, voc12_root: str, class_list: str) -> list[str]:
    """The names of a network's mask values, from 0.

    Its classes are those of `class_list`, else those that the training wrote beside `weights`, else as `class_names`.
    """
    trained = classes_beside(weights)
    own = not class_list and trained.is_file()
    return names_with_background(read_classes(trained) if own else class_names(voc12_root, class_list))


@requirement
def require_classes_of_network(devkit: Devkit, weights: str, *, planned: Container[str] = ()) -> None:
    """Raise `InputError` if the class names beside the checkpoint `weights` are not the devkit's, in its order.

    A checkpoint without names, such as one of the originals, is taken at its word; one that an earlier step of the run
    will make (`planned`) gets the devkit's.
    """
    trained = classes_beside(weights)
    if weights in planned or not trained.is_file():
        return
    if different := _first_difference(read_classes(trained), devkit.classes):
        number, theirs, ours = different
        raise InputError(
            f"{weights} was trained on other classes than those of --voc12_root {devkit.root}: class {number} is "
            f"{theirs} in {trained}, {ours} in the data; correct --voc12_root or --class_list, train the weights anew "
            f"where the classes have changed, or remove {trained} if it is of other weights."
        )


def _devkits_near(path: Path) -> list[Path]:
    """Devkits in a wrong `path` or beside it, for a hint; the home and working folders are not searched."""
    home = Path(os.path.expanduser("~"))  # left as it is where the user has no home, as in some containers
    for near in (path, path.parent):
        if near.is_dir() and near.resolve() not in (Path.cwd(), home, Path(path.anchor)):
            patterns = ("*/JPEGImages", "*/*/JPEGImages", "*/*/*/JPEGImages")
            return [folder.parent for pattern in patterns for folder in sorted(near.glob(pattern)) if folder.is_dir()]
    return []
