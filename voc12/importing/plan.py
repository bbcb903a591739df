"""What importing a source will add to a devkit: decided as a whole, before any file is written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from misc.errors import InputError, first_three
from misc.files.images import UPRIGHT, without_image_suffix
from voc12.importing.names import new_ids
from voc12.importing.pictures import Facts
from voc12.importing.source import LeftOut, Source, SourceImage, require_classes
from voc12.importing.split import held_out

Frame = tuple[tuple[int, int], int]
"""The (H, W) of the pixels that segmentations outline, and the EXIF orientation by which these are to be turned."""


@dataclass(frozen=True)
class Row:
    """An image of an imported devkit, and the file that it was.

    Attributes:
        image_id: its id.
        file: how its source named it.
        source: the source, an absolute path.
        is_held_out: whether it is in the validation list.
        content: the digest of the file's bytes.
        is_turned: whether the picture was turned upright, as EXIF said.
    """

    image_id: str
    file: str
    source: str
    is_held_out: bool
    content: str
    is_turned: bool


@dataclass(frozen=True)
class Present:
    """What a devkit holds already; nothing where it is new.

    Attributes:
        rows: its imported images.
        classes: its classes.
        labels: {file: names of its classes} as its table of labels has them.
        other_names: of files in its folder of images that were not imported, without suffixes.
    """

    rows: tuple[Row, ...] = ()
    classes: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other_names: tuple[str, ...] = ()

    @property
    def labels_of_ids(self) -> dict[str, tuple[str, ...]]:
        """{id: names of its classes}."""
        return {without_image_suffix(file): names for file, names in self.labels.items()}


@dataclass(frozen=True)
class Addition:
    """An image that is added.

    `mask_size` (H, W) and `mask_orientation`: of the pixels that its segmentations outline, and how these are turned.
    """

    image: SourceImage
    facts: Facts
    row: Row
    mask_size: tuple[int, int]
    mask_orientation: int


@dataclass(frozen=True)
class ImportPlan:
    """What is added, what is there already, and what is left out.

    `classes`: those of the devkit, in the order of their ids; `category_ids`: {class: id in the COCO file};
    `n_known`: images of the source that are there already.
    """

    classes: tuple[str, ...]
    category_ids: Mapping[str, int]
    additions: list[Addition]
    left_out: list[LeftOut]
    n_known: int


def plan_import(
    source: Source, name: str, facts: Sequence[Facts | str], present: Present, *, share: float, seed: int
) -> ImportPlan:
    """What becomes of the images of a source.

    Args:
        name: the source's, for the record.
        facts: of each image's file, or why it can't be read.
        share: of the images of each class, the part that is held out for validation.

    Raises `InputError` if no image can be used, or if there are too many classes.
    """
    images, left_out = _distinct(source, facts)
    left_out, n_known = [*source.left_out, *left_out], 0
    known = {row.content: row for row in present.rows}
    of_file = {(row.source, row.file): row for row in present.rows}
    labels_of = present.labels_of_ids
    found: list[tuple[SourceImage, Facts, Frame]] = []
    for image, of_image in images:
        if row := known.get(of_image.content):
            n_known += 1
            if {*image.labels} != {*labels_of.get(row.image_id, ())}:
                left_out.append(LeftOut(image.name, "there already with other labels, which stay", row.image_id))
        elif row := of_file.get((name, image.name)):
            left_out.append(LeftOut(image.name, "changed since it was imported, and stays as it was", row.image_id))
        elif isinstance(frame := _frame(image, of_image), str):
            left_out.append(LeftOut(image.name, frame))
        else:
            found.append((image, of_image, frame))
    if not found and not n_known:
        raise InputError(
            f"--import_from {name}: none of its {len(source.images)} images can be used "
            f"({first_three([f'{item.name}: {item.detail or item.reason}' for item in left_out])})."
        )
    new_images = [image for image, *_ in found]
    used = {label for image in new_images for label in image.labels} | {*present.classes}
    without = [label for label in source.classes if label not in used]
    if not source.category_ids:
        left_out += [LeftOut(label, "a class without images that can be read") for label in without]
    new_classes = [label for label in source.classes if label in used or source.category_ids]
    classes = require_classes([*dict.fromkeys((*present.classes, *new_classes))], place=name)
    taken = [*(row.image_id for row in present.rows), *present.other_names]
    ids = new_ids([image.name for image in new_images], taken)
    is_held_out = _held_out(new_images, present, classes, share=share, seed=seed)
    additions = [
        Addition(
            image,
            of_image,
            Row(image_id, image.name, name, bool(place), of_image.content, of_image.orientation != UPRIGHT),
            *frame,
        )
        for (image, of_image, frame), image_id, place in zip(found, ids, is_held_out, strict=True)
    ]
    return ImportPlan(classes, source.category_ids, additions, left_out, n_known)


def _distinct(source: Source, facts: Sequence[Facts | str]) -> tuple[list[tuple[SourceImage, Facts]], list[LeftOut]]:
    """The images that can be read, each content once, and the others."""
    first: dict[str, tuple[SourceImage, Facts]] = {}
    left_out = []
    for image, of_image in zip(source.images, facts, strict=True):
        if isinstance(of_image, str):
            left_out.append(LeftOut(image.name, "can't be read", of_image))
        elif of_image.content not in first:
            first[of_image.content] = image, of_image
        elif source.merges:
            other, _ = first[of_image.content]
            together = tuple(dict.fromkeys((*other.labels, *image.labels)))
            first[of_image.content] = replace(other, labels=together), of_image
            left_out.append(LeftOut(image.name, "the same picture as another, which has the labels of all", other.name))
        else:
            other, _ = first[of_image.content]
            left_out.append(LeftOut(image.name, "the same picture as another, which comes first", other.name))
    return [*first.values()], left_out


def _frame(image: SourceImage, facts: Facts) -> Frame | str:
    """The size of the pixels that the segmentations outline, and how those are turned; or why that is not known."""
    if not image.objects:
        return facts.upright_size, UPRIGHT
    size = image.size or facts.size
    if facts.orientation == UPRIGHT and size == facts.size:
        return size, UPRIGHT
    sides_change = facts.upright_size != facts.size
    if sides_change and size in (facts.size, facts.upright_size):
        return size, facts.orientation if size == facts.size else UPRIGHT
    if size == facts.size:
        return "turned by EXIF, and its size does not tell whether its segmentations are"
    return "of another size than its annotations say"


def _held_out(
    images: Iterable[SourceImage], present: Present, classes: Sequence[str], *, share: float, seed: int
) -> np.ndarray:
    """Whether each new image is held out: together with those that are there, so that the shares are those of all."""
    place_of = {name: place for place, name in enumerate(classes)}
    labels_of = present.labels_of_ids
    of_rows = [labels_of.get(row.image_id, ()) for row in present.rows]
    every = [*of_rows, *(image.labels for image in images)]
    labels = np.zeros((len(every), len(classes)), dtype=bool)
    for row, names in zip(labels, every, strict=True):
        row[[place_of[name] for name in names if name in place_of]] = True
    settled = [row.is_held_out for row in present.rows] + [None] * (len(every) - len(of_rows))
    return held_out(labels, share, seed=seed, settled=settled)[len(of_rows) :]
