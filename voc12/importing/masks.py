"""Ground-truth masks of the objects that a COCO file outlines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from misc.files.coco import decode
from misc.imutils import IGNORE_LABEL
from voc12.importing.source import SourceObject

LEAST_NUMBERS = 6
"""Of a polygon: the coordinates of three points."""
LARGEST_COORDINATE = 1e6
"""Of polygons, in pixels: beyond there is no image, and pycocotools would count in its own way."""


def masks_of(
    objects: Sequence[SourceObject], size: tuple[int, int], class_ids: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of classes and of instances, both (H, W) uint8, 0 where there is no object.

    Of objects that cover each other the smaller is in front. A crowd has its class, but is no instance (255), and so
    have the objects beyond the number of ids.

    Args:
        class_ids: {class: mask value}.

    Raises `ValueError` for a segmentation that is none of an image of this size.
    """
    found = [decode(_sound(item.segmentation, size), size) for item in objects]
    classes, instances = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    numbers = iter(range(1, IGNORE_LABEL))
    ids = [IGNORE_LABEL if item.is_crowd else next(numbers, IGNORE_LABEL) for item in objects]
    for place in sorted(range(len(found)), key=lambda k: -int(found[k].sum())):
        classes[found[place]] = class_ids[objects[place].label]
        instances[found[place]] = ids[place]
    return classes, instances


def _sound(segmentation: list | dict, size: tuple[int, int]) -> list | dict:
    """A segmentation that pycocotools decodes to a mask of this size. Raises `ValueError` for any other."""
    if isinstance(segmentation, list):
        if not all(map(_is_polygon, segmentation)):
            raise ValueError("a polygon is no list of three or more points")
        return segmentation
    counts = segmentation.get("counts")
    if segmentation.get("size") != [*size]:
        raise ValueError(f"run lengths of {segmentation.get('size')} pixels")
    lengths = _run_lengths(counts) if isinstance(counts, str) else counts
    is_whole = isinstance(lengths, list) and all(isinstance(n, int) and n >= 0 for n in lengths)
    if not is_whole or sum(lengths) != math.prod(size):  # pycocotools would show what its memory held before
        raise ValueError("run lengths that do not sum to the image")
    return coco_mask.frPyObjects({"size": [*size], "counts": lengths}, *size)


def _run_lengths(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers: five bits a letter, a bit that tells whether more letters follow, and
    from the fourth length on the difference to the one before the last. Raises `ValueError` for other text.
    """
    lengths: list[int] = []
    value = place = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError("run lengths with a letter that COCO does not use")
        value |= (bits & 31) << (5 * place)
        place += 1
        if not bits & 32:
            value -= (bits & 16) and 1 << (5 * place)
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = place = 0
    if place:
        raise ValueError("run lengths that end within a number")
    return lengths


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= LEAST_NUMBERS
        and len(points) % 2 == 0
        and all(isinstance(n, int | float) and abs(n) <= LARGEST_COORDINATE for n in points)
    )
