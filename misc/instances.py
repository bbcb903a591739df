"""From CAMs, boundaries and displacements to instance masks (IRN section 5).

The displacement of a pixel points to the centroid of its instance. Displacements and maps lie at stride 4.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from misc.files.instancefile import Detections
from misc.indexing import RandomWalk
from misc.masks import divide_by_maximum, upsample

REFINEMENTS = 300
CENTROID_REACH = 2.5
"""Cells with a shorter displacement, in cells, are near a centroid."""
FRAGMENT_SHARE = 0.01
"""Of the image's pixels: smaller fragments are kept, but score 0."""
ROUND = 12
"""Steps of the refinement, after which places that go round in a circle of 1, 2, 3, 4, 6 or 12 steps are back."""
FIRST_MAPS = 8
"""Maps that walk before others are left out, where there are more than twice as many."""
BOUND_MARGIN = 1e-4
"""Of a bound, far above the rounding of a walk."""
CELLS_AT_ONCE, PIXELS_AT_ONCE = 2**22, 2**24
"""Of all maps that walk together, and of those that are upsampled together, so that memory stays bounded."""


def _follower(displacement: Tensor) -> Callable[[Tensor, int], Tensor]:
    """A function that moves (2, n) positions so many times: p <- p + D(p), kept inside the map.

    The values of D are those of (2, h, w) displacements, between cells interpolated bilinearly.
    """
    height, width = displacement.shape[1:]
    padded = F.pad(displacement.double()[None], (0, 1, 0, 1), mode="replicate")[0]
    corners = [padded[:, y : y + height, x : x + width] for y in (0, 1) for x in (0, 1)]
    # At each cell: the values at its four corners, of both directions
    around = torch.stack(corners).flatten(0, 1).flatten(1)
    last = torch.stack([torch.full((1,), side - 1.0, device=displacement.device) for side in (height, width)])

    def follow(position: Tensor, times: int) -> Tensor:
        for _ in range(times):
            below = position.floor()
            wy, wx = (position - below).double()
            cell = (below[0] * width).add_(below[1]).int()
            found = around.index_select(1, cell).view(2, 2, 2, -1)
            by_row = found[:, 0].mul_(1 - wx).add_(found[:, 1].mul_(wx))
            moved = by_row[0].mul_(1 - wy).add_(by_row[1].mul_(wy)).add_(position).float()
            position = moved.clamp_min_(0).minimum(last)
        return position

    return follow


@torch.no_grad()
def refine_centroids(displacement: Tensor, iterations: int = REFINEMENTS) -> Tensor:
    """(2, h, w) displacements, as (y, x) in cells -> (2, h, w) int64 cell of the centroid that each cell belongs to.

    A cell follows the field: p <- p + D(p), D interpolated bilinearly, p kept inside the map (IRN section 5.1). p is
    stored in float32 and moved in float64: where the field does not contract, 300 steps would amplify rounding.

    Cells that have come to one place go on as one; and where a place is the same after a `ROUND` of steps, so it is
    after any number of rounds. So few are left after some rounds, and what they come to is what it would have been.
    """
    height, width = displacement.shape[1:]
    follow = _follower(displacement)
    rows, columns = (torch.arange(side, device=displacement.device) for side in (height, width))
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).float().flatten(1)
    everywhere = torch.arange(height * width, device=displacement.device)
    place_of_cell = moving = everywhere
    n_rounds, rest = divmod(iterations, ROUND)
    for _ in range(n_rounds):
        if len(moving) == 0:
            break
        before = places[:, moving]
        after = follow(before, ROUND)
        places[:, moving] = after
        has_moved = (after != before).any(dim=0)
        moving, after = moving[has_moved], after.T[has_moved].contiguous()
        # A place is two float32: one number of 64 bits
        distinct, number = after.view(torch.int64).flatten().unique(return_inverse=True)
        first = torch.empty_like(distinct).scatter_(0, number, moving)
        joined = everywhere.clone()
        joined[moving] = first[number]
        place_of_cell, moving = joined[place_of_cell], first
    return follow(places, rest)[:, place_of_cell].round().long().view(2, height, width)


def connected_components(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) int32: 0 outside the mask, 1, 2, ... for its 4-connected components, row by row."""
    return _components_and_stats(mask)[0]


def _components_and_stats(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`connected_components`, and (n, 5) left, top, width, height and pixels of each component."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return components, stats[1:]


@torch.no_grad()
def instance_map(displacement: Tensor) -> Tensor:
    """(2, h, w) displacements, as (y, x) in cells -> (m, h, w) bool, one instance a map; each cell is in one.

    The cells around centroids form components, and a cell belongs to the one that its own centroid lies in. Quirk of
    the original, kept: all cells whose centroid lies in none of them are one more instance, the first.
    """
    near = displacement.square().sum(dim=0).sqrt() < CENTROID_REACH
    components = torch.from_numpy(connected_components(near.cpu().numpy())).to(displacement.device)
    y, x = refine_centroids(displacement)
    reached = components[y, x]
    return reached == reached.unique()[:, None, None]


def _strongest(
    cam: Tensor, instances: Tensor, walk: RandomWalk, size: tuple[int, int], *, background_score: float
) -> tuple[Tensor, Tensor]:
    """Each pixel's largest value of the walked maps, and the number of its map, class-major: (H, W) each.

    A fragmented field makes hundreds of maps. Those that are all zero are left out, of the others some walk at once:
    first the `FIRST_MAPS` of the highest `RandomWalk.bounds`, then those of which a value can still exceed the
    background, given the largest value so far.
    """
    value, index = cam.new_zeros(size), torch.zeros(size, dtype=torch.long, device=cam.device)
    pairs = torch.stack([instances[:, plane != 0].any(dim=1) for plane in cam]).nonzero()
    n_walked, n_upsampled = max(1, CELLS_AT_ONCE // cam[0].numel()), max(1, PIXELS_AT_ONCE // math.prod(size))

    def look_at(chosen: Tensor) -> None:
        nonlocal value, index
        parts = chosen.split(n_walked) if len(chosen) else ()
        for of_class, of_instance in (part.unbind(1) for part in parts):
            walked = walk(cam[of_class] * instances[of_instance])
            numbers = of_class * len(instances) + of_instance
            for maps, number in zip(walked.split(n_upsampled), numbers.split(n_upsampled), strict=True):
                upsampled = upsample(maps, size)
                first = upsampled.argmax(dim=0)
                largest, number = upsampled.gather(0, first[None])[0], number[first]
                wins = (largest > value) | ((largest == value) & (number < index))
                index = torch.where(wins & (largest > 0), number, index)
                value = torch.maximum(value, largest)

    if len(pairs) <= 2 * FIRST_MAPS:
        look_at(pairs)
        return value, index
    parts = pairs.split(n_walked)
    bounds = torch.cat([walk.bounds(cam[part[:, 0]] * instances[part[:, 1]]) for part in parts])
    order = bounds.argsort(descending=True, stable=True)
    look_at(pairs[order[:FIRST_MAPS].sort().values])
    left = order[FIRST_MAPS:].sort().values
    look_at(pairs[left[bounds[left] > (1 - BOUND_MARGIN) * background_score * value.max()]])
    return value, index


def split_regions(regions: np.ndarray, score: np.ndarray, classes: np.ndarray) -> Detections:
    """Region r > 0 of (H, W) ids -> one detection of class `classes[r - 1]` for each 4-connected component.

    A detection scores the maximum of (H, W) `score` inside it. Quirk of the original, kept: a component smaller than
    1 per cent of the image stays, with score 0.
    """
    scores, parts, found = [], [], []
    for region in np.unique(regions[regions > 0]):
        components, stats = _components_and_stats(regions == region)
        for number, (left, top, width, height, area) in enumerate(stats.tolist(), start=1):
            box = slice(top, top + height), slice(left, left + width)
            inside = components[box] == number
            scores.append(0 if area < FRAGMENT_SHARE * regions.size else score[box][inside].max())
            parts.append((box, inside))
            found.append(classes[region - 1])
    masks = np.zeros((len(parts), *regions.shape), dtype=bool)
    for mask, (box, inside) in zip(masks, parts, strict=True):
        mask[box] = inside
    return Detections(np.array(scores, dtype=np.float32), masks, np.array(found, dtype=np.int64))


@torch.no_grad()
def detect_instances(
    cam: Tensor,
    walk: RandomWalk,
    displacement: Tensor,
    keys: np.ndarray,
    size: tuple[int, int],
    *,
    background_score: float,
) -> Detections:
    """Random walk of each class's CAM within each instance, then the instances of an image.

    Args:
        cam: (K, h, w) CAM of the classes `keys` (0-based), at stride 4; unlike for semantic masks, without a power.
        walk: between the image's class boundaries.
        displacement: (2, h, w) to the centroids, as (y, x) in cells.
        keys: the K classes.
        size: (H, W) of the image.
        background_score: of the walked maps divided by their one maximum over all classes and instances.

    Returns:
        Detections by class, then by instance, then row by row; none if K is 0.
    """
    keys = np.asarray(keys, dtype=np.int64)
    if len(keys) == 0:
        return split_regions(np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.float32), keys)
    instances = instance_map(displacement)
    value, index = _strongest(cam, instances, walk, size, background_score=background_score)
    score = divide_by_maximum(value)
    regions = torch.where(score > background_score, index + 1, 0)
    return split_regions(regions.cpu().numpy(), score.cpu().numpy(), np.repeat(keys, len(instances)))
