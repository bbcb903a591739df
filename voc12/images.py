"""The images of a list, with their paths and labels: what steps begin with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from misc.errors import InputError, requirement
from misc.files.paths import Paths
from misc.run.config import Config
from misc.run.depends import checksum
from misc.run.distributed import n_processes, share
from misc.run.notices import notice
from misc.run.provenance import source_digest
from voc12.devkit import Devkit, open_devkit
from voc12.labels import Labels, ids_without_class, read_labels, require_some_class
from voc12.lists import read_list

CLASSES_AN_IMAGE = 1.5
"""Of VOC, about."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of a list: `ids`, `paths`, and `labels` (N, C) 0/1."""

    ids: list[str]
    paths: Paths
    labels: Labels

    def select(self, numbers: Sequence[int]) -> "LabelledImages":
        """Some of the images."""
        return LabelledImages([self.ids[i] for i in numbers], self.paths[[*numbers]], self.labels[[*numbers]])

    def source_of(self, number: int) -> str:
        """What changes with the content of an image or with its label."""
        return source_digest(checksum(self.paths[number]), self.labels[number].tobytes())

    def shared(self) -> "LabelledImages":
        """This process's share of the images."""
        return LabelledImages(share(self.ids), share(self.paths), share(self.labels))

    def __len__(self) -> int:
        return len(self.ids)


def read_labelled_images(devkit: Devkit, list_path: str | Path, *, flag: str, label_file: str | None) -> LabelledImages:
    """The images of a list file; without a `label_file` no image carries a class yet.

    Raises `InputError` for what is wrong with the list, its images or their labels.
    """
    ids = read_list(devkit, list_path, flag=flag)
    n_classes = len(devkit.classes)
    labels = Labels.none(len(ids), n_classes) if label_file is None else read_labels(devkit, label_file, ids)
    return LabelledImages(ids, devkit.image_paths(ids), labels)


def read_images_to_segment(
    devkit: Devkit, list_path: str | Path, *, flag: str, label_file: str | None
) -> LabelledImages:
    """The images of a list file without those that `ids_without_class` gives: there are no CAMs and masks of these.

    Raises `InputError` as `read_labelled_images` does, and if no image carries a class.
    """
    images = read_labelled_images(devkit, list_path, flag=flag, label_file=label_file)
    without = ids_without_class(devkit, label_file, images.ids)
    _tell_left_out(len(without), len(images), flag=flag)
    if not without:
        return images
    return images.select([number for number, image_id in enumerate(images.ids) if image_id not in without])


def ids_to_segment(args: Config, flag: str) -> tuple[Devkit, list[str]]:
    """The devkit, and the ids of the same images of the list that `flag` names, for steps that need no labels."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, getattr(args, flag), flag=flag)
    without = ids_without_class(devkit, args.known_labels, ids)
    _tell_left_out(len(without), len(ids), flag=flag)
    return devkit, [image_id for image_id in ids if image_id not in without] if without else ids


def _tell_left_out(n_without: int, n_images: int, *, flag: str) -> None:
    """Tell the log, once a run, of the images without a class. Raises `InputError` if none is left."""
    require_some_class(n_without, n_images, flag=flag)
    if n_without:
        notice(
            f"{n_without} of the {n_images} images of --{flag} carry no class: they train the classifier, and are left "
            "out where CAMs and masks are made"
        )


@requirement
def require_batch(items: Sequence, batch_size: int, *, list_flag: str, batch_flag: str) -> None:
    """Raise `InputError` if a training list is shorter than one batch, or a batch has fewer images than processes."""
    if batch_size < n_processes():
        raise InputError(
            f"--{batch_flag} {batch_size} is less than the {n_processes()} processes, of which each takes a share of "
            f"the batch; raise --{batch_flag} or start fewer."
        )
    if len(items) < batch_size:
        raise InputError(
            f"--{list_flag} has {len(items)} images, fewer than one batch (--{batch_flag} {batch_size}); "
            f"lower --{batch_flag} or give more images."
        )
