"""COCO annotations of instance masks: polygons or run lengths, either of which decodes to the very same mask."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from misc.files.instancefile import Detections

FIRST_ID = 1
"""Of images and annotations: pycocotools' evaluation takes an annotation 0 for no match."""


def outline(mask: np.ndarray) -> list[int]:
    """(H, W) bool, not empty -> one polygon [x0, y0, x1, y1, ...] along the edges of its pixels.

    Pixel (y, x) is the square from (x, y) to (x + 1, y + 1). The loops around parts and holes are joined to one
    polygon by lines that run there and back, so that the even-odd rule, by which pycocotools fills a polygon, gives
    the mask exactly.
    """
    padded = np.pad(mask, 1)
    # A corner is where an odd number of the four pixels around it is set. Along a row of corners the 1st and the 2nd,
    # the 3rd and the 4th, ... are joined by an edge, and so they are along a column.
    corners = padded[1:, 1:] ^ padded[1:, :-1] ^ padded[:-1, 1:] ^ padded[:-1, :-1]
    ys, xs = np.nonzero(corners)  # row by row: corners 2k and 2k + 1 are joined
    down_columns = np.lexsort((ys, xs))
    joined_in_column = np.empty(len(ys), dtype=np.int64)
    joined_in_column[down_columns[0::2]], joined_in_column[down_columns[1::2]] = down_columns[1::2], down_columns[0::2]

    points = list(zip(xs.tolist(), ys.tolist(), strict=True))
    partner, done, polygon = joined_in_column.tolist(), [False] * len(points), []
    for start in range(0, len(points), 2):
        if done[start]:
            continue
        loop, corner = [], start
        while not done[corner]:
            loop += [points[corner], points[corner ^ 1]]
            done[corner] = done[corner ^ 1] = True
            corner = partner[corner ^ 1]
        # A further loop is reached from the first corner of all, closed, and left for that corner again
        polygon += [points[0], *loop, loop[0]] if polygon else loop
    return [coordinate for point in polygon for coordinate in point]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed run-length encoding {size, counts}, with text that JSON takes."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """The (H, W) bool mask of a `segmentation`, as pycocotools reads it."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    return coco_mask.decode(segmentation).astype(bool)


def segmentation_of(mask: np.ndarray, *, polygons: bool) -> list | dict:
    """(H, W) bool -> a polygon, or run lengths where they are asked for or the polygon does not give the mask back."""
    if polygons:
        polygon = [outline(mask)]
        if np.array_equal(decode(polygon, mask.shape), mask):
            return polygon
    return run_lengths(mask)


def annotations_of(
    detections: Detections, *, image_id: int | str, category_ids: Sequence[int], first_id: int, polygons: bool
) -> Iterator[dict[str, Any]]:
    """COCO's annotations of an image's instances, with ids from `first_id` on, plus each one's `score`.

    `category_ids`: the id of each class.
    """
    found = zip(detections.masks, detections.classes, detections.scores, strict=True)
    for number, (mask, label, score) in enumerate(found, start=first_id):
        ys, xs = np.nonzero(mask)
        left, top = int(xs.min()), int(ys.min())
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": category_ids[label],
            "segmentation": segmentation_of(mask, polygons=polygons),
            "area": len(xs),
            "bbox": [left, top, int(xs.max()) + 1 - left, int(ys.max()) + 1 - top],
            "iscrowd": 0,
            "score": float(score),
        }
