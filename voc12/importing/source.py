"""What every kind of source is read into: images with the names of their classes, and what is left out of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from misc.errors import InputError, printable
from misc.imutils import IGNORE_LABEL
from voc12.classes import means_no_class, one_form
from voc12.labelcsv import SEPARATORS

MOST_CLASSES = IGNORE_LABEL - 1
"""The ids of a mask, without the background and unsure pixels."""
LONGEST_CLASS = 100


@dataclass(frozen=True)
class SourceObject:
    """An object of an image: its class, and its `segmentation` as COCO has it."""

    label: str
    segmentation: list | dict
    is_crowd: bool


@dataclass(frozen=True)
class SourceImage:
    """An image of a source.

    Attributes:
        path: where it lies.
        name: how the source names it.
        labels: names of its classes.
        objects: what its masks are made of; None where it has no masks.
        size: (H, W) that the source says it has, where it says so.
        coco_id: its id in a COCO file.
    """

    path: Path
    name: str
    labels: tuple[str, ...]
    objects: tuple[SourceObject, ...] | None = None
    size: tuple[int, int] | None = None
    coco_id: int | str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file of a source that does not become an image of the devkit.

    `reason` is the same for all files of a kind, so that messages count them ("3 can't be read"); `detail` is that of
    this one.
    """

    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Source:
    """What a source holds.

    Attributes:
        classes: their names, in the order of the source.
        images: in the order of the source.
        left_out: what it names but does not hold, or holds but is no image.
        category_ids: {class: id in a COCO file}.
        merges: whether files of one content are one image that has the labels of all; else the first one counts.
    """

    classes: tuple[str, ...]
    images: list[SourceImage]
    left_out: list[LeftOut] = field(default_factory=list)
    category_ids: Mapping[str, int] = field(default_factory=dict)
    merges: bool = True


def class_name(text: str, *, place: str) -> str:
    """A class as the class list names it: one spelling of accents, no space around it.

    `place`: where the name stands, for the message. Raises `InputError` for a name that lists and tables can't hold,
    or that says that there is no class.
    """
    name = one_form(text)
    shown = printable(name)[:LONGEST_CLASS]
    bad = [mark for mark in SEPARATORS if mark in name]
    if not name or bad or not name.isprintable() or len(name) > LONGEST_CLASS:
        problem = f"has {bad[0]}" if bad else "is empty, longer than 100 letters, or holds control characters"
        raise InputError(f"--import_from: {place} {shown!r} {problem}, which no class name may; rename it.")
    if means_no_class(name):
        raise InputError(
            f"--import_from: {place} {shown!r} would become a class of that name; if its images show none of the "
            f"classes, pass --import_no_class {shown}, else rename it."
        )
    return name


def require_classes(names: Sequence[str], *, place: str) -> tuple[str, ...]:
    """The names, if they can be a class list. Raises `InputError` else."""
    if not names:
        raise InputError(f"--import_from {place} has no class; expected images of at least one.")
    if len(names) > MOST_CLASSES:
        raise InputError(f"--import_from {place} has {len(names)} classes, a mask has ids for {MOST_CLASSES}.")
    spelled: dict[str, str] = {}
    for name in names:
        if (other := spelled.setdefault(name.casefold(), name)) != name or names.count(name) > 1:
            raise InputError(
                f"--import_from {place}: the classes {other!r} and {name!r} differ in no letter; rename one."
            )
    return tuple(names)


def items_of(content: Mapping[str, Any], name: str, *, path: Path) -> list[dict[str, Any]]:
    """The list of objects that a JSON object has under a name. Raises `InputError` if it has none."""
    items = content.get(name)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"--import_from {path} has no list {name!r} of objects; expected a COCO file of annotations.")
    return items
