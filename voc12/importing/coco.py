"""COCO files of annotations: instances, with masks, or detection, with boxes alone."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from misc.errors import InputError, printable, reason_of
from misc.files.jsonfile import parse
from misc.files.text import read_text
from voc12.classes import means_no_class
from voc12.cocoids import is_id
from voc12.importing.finding import ImageFolder
from voc12.importing.masks import LEAST_NUMBERS
from voc12.importing.source import (
    Source,
    SourceImage,
    SourceObject,
    class_name,
    items_of,
    require_classes,
)

EXPECTED = "expected a COCO file of annotations, with images, annotations and categories"


def read_coco(path: Path, images: Path) -> Source:
    """The images of a COCO file, in the folder `images`, with the classes of their annotations.

    An image has masks if each of its annotations has a segmentation, and any of the file has. Classes are the
    categories in the file's order. Raises `InputError` for a file that is no such JSON, or contradicts itself, if none
    of its images is there, or if the folder is not the one that their names are relative to.
    """
    try:
        content = parse(read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"--import_from {path} can't be read ({reason_of(error)}); {EXPECTED}.") from error
    if not isinstance(content, dict):
        raise InputError(f"--import_from {path} holds a list, as results of a detector; {EXPECTED}.")
    annotations = items_of(content, "annotations", path=path)
    name_of = _categories(content, {_key(item.get("category_id")) for item in annotations}, path)
    entries = items_of(content, "images", path=path)
    ids = [_key(item.get("id")) for item in entries]
    for item, image_id in zip(entries, ids, strict=True):
        if image_id is None or not isinstance(item.get("file_name"), str) or not item["file_name"].strip():
            raise InputError(f"--import_from {path}: an image has no id or no file_name; {EXPECTED}.")
    if len({*ids}) < len(ids):
        raise InputError(f"--import_from {path}: two images have one id; give each its own.")
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    known = {*ids}
    for item in annotations:
        image_id, category = _key(item.get("image_id")), _key(item.get("category_id"))
        if image_id not in known or category not in name_of:
            what = f"image_id {item.get('image_id')!r}" if image_id not in known else f"category_id {category!r}"
            raise InputError(f"--import_from {path}: an annotation has the {what}, which the file does not list.")
        of_image[image_id].append(item)
    has_masks = any(map(_segmentation, annotations))
    folder, found = ImageFolder(images), []
    places = folder.find_all([item["file_name"] for item in entries])
    for item, image_id, place in zip(entries, ids, places, strict=True):
        if place is None:
            continue
        labels = dict.fromkeys(name_of[_key(note["category_id"])] for note in of_image[image_id])
        objects = [_object(note, name_of, path) for note in of_image[image_id]]
        is_whole = has_masks and None not in objects
        found.append(
            SourceImage(
                place,
                item["file_name"],
                tuple(labels),
                objects=tuple(objects) if is_whole else None,
                size=_size(item),
                coco_id=image_id,
            )
        )
    folder.require_some(len(found), source=path)
    classes = require_classes([*name_of.values()], place=str(path))
    category_ids = {name: category for category, name in name_of.items()}
    return Source(classes, found, folder.missing, category_ids=category_ids, merges=False)


def _key(value: Any) -> int | str | None:
    """An id; None for what can be none."""
    return value if is_id(value) else None


def _categories(content: dict[str, Any], used: set[int | str | None], path: Path) -> dict[int, str]:
    """{id: class} in the file's order, without a background that no annotation has."""
    name_of: dict[int, str] = {}
    for item in items_of(content, "categories", path=path):
        number, name = _key(item.get("id")), item.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or number in name_of:
            raise InputError(f"--import_from {path}: each category needs a name and an id of its own, a whole number.")
        if not (means_no_class(name) and number not in used):
            if means_no_class(name):
                raise InputError(
                    f"--import_from {path}: annotations have the category {printable(name)!r}, which would become a "
                    "class of that name; remove these annotations, or rename it."
                )
            name_of[number] = class_name(name, place="category")
    return name_of


def _size(item: dict[str, Any]) -> tuple[int, int] | None:
    """(H, W) that the file says an image has."""
    height, width = item.get("height"), item.get("width")
    is_known = all(isinstance(side, int) and side > 0 for side in (height, width))
    return (height, width) if is_known else None


def _object(note: dict[str, Any], name_of: dict[int, str], path: Path) -> SourceObject | None:
    """An annotation's object; None if it has no segmentation."""
    segmentation = _segmentation(note)
    if not segmentation:
        return None
    if not isinstance(segmentation, list | dict):
        raise InputError(f"--import_from {path}: annotation {note.get('id')!r} has no polygons or run lengths.")
    return SourceObject(name_of[note["category_id"]], segmentation, bool(note.get("iscrowd")))


def _segmentation(note: dict[str, Any]) -> Any:
    """An annotation's segmentation, without polygons of fewer than three points, which outline nothing."""
    segmentation = note.get("segmentation")
    if not isinstance(segmentation, list):
        return segmentation
    return [points for points in segmentation if not (isinstance(points, list) and len(points) < LEAST_NUMBERS)]
