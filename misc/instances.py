"""From CAMs, boundaries and displacements to instance masks (IRN section 5).

The displacement of a pixel points to the centroid of its instance. Displacements and maps lie at stride 4.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from misc.files.instancefile import Detections
from misc.indexing import propagate_to_edge
from misc.masks import divide_by_maximum, upsample

REFINEMENTS = 300
CENTROID_REACH = 2.5
"""Cells with a shorter displacement, in cells, are near a centroid."""
FRAGMENT_SHARE = 0.01
"""Of the image's pixels: smaller fragments are kept, but score 0."""
CELLS_AT_ONCE, PIXELS_AT_ONCE = 2**22, 2**24
"""Of all maps that walk together, and of those that are upsampled together, so that memory stays bounded."""


def _interpolate(field: Tensor, position: Tensor) -> Tensor:
    """(2, h, w) float64 values of a field between its cells, at (2, h, w) positions inside it."""
    below = position.floor()
    (y0, x0), (y1, x1) = below.long(), position.ceil().long()
    wy, wx = (position - below).double()
    top = field[:, y0, x0] * (1 - wx) + field[:, y0, x1] * wx
    bottom = field[:, y1, x0] * (1 - wx) + field[:, y1, x1] * wx
    return top * (1 - wy) + bottom * wy


@torch.no_grad()
def refine_centroids(displacement: Tensor, iterations: int = REFINEMENTS) -> Tensor:
    """(2, h, w) displacements, as (y, x) in cells -> (2, h, w) int64 cell of the centroid that each cell belongs to.

    A cell follows the field: p <- p + D(p), D interpolated bilinearly, p kept inside the map (IRN section 5.1). p is
    stored in float32 and moved in float64: where the field does not contract, 300 steps would amplify rounding.
    """
    height, width = displacement.shape[1:]
    rows, columns = (torch.arange(side, device=displacement.device) for side in (height, width))
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).float()
    last = torch.tensor([height - 1, width - 1], device=displacement.device).view(2, 1, 1)
    for _ in range(iterations):
        moved = (position + _interpolate(displacement, position)).float()
        position = moved.clamp_min(0).minimum(last)
    return position.round().long()


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
    cam: Tensor, instances: Tensor, edge: Tensor, size: tuple[int, int], *, beta: float, exp_times: int
) -> tuple[Tensor, Tensor]:
    """Each pixel's largest value of the walked maps, and the number of its map, class-major: (H, W) each.

    A fragmented field makes hundreds of maps: those that are all zero are left out, of the others some walk at once.
    """
    value, index = cam.new_zeros(size), torch.zeros(size, dtype=torch.long, device=cam.device)
    pairs = torch.stack([instances[:, plane != 0].any(dim=1) for plane in cam]).nonzero()
    n_walked, n_upsampled = max(1, CELLS_AT_ONCE // edge.numel()), max(1, PIXELS_AT_ONCE // math.prod(size))
    for start in range(0, len(pairs), n_walked):
        of_class, of_instance = pairs[start : start + n_walked].T
        walked = propagate_to_edge(cam[of_class] * instances[of_instance], edge, beta=beta, exp_times=exp_times)
        numbers = of_class * len(instances) + of_instance
        for maps, number in zip(walked.split(n_upsampled), numbers.split(n_upsampled), strict=True):
            upsampled = upsample(maps, size)
            first = upsampled.argmax(dim=0)
            largest = upsampled.gather(0, first[None])[0]
            index = torch.where(largest > value, number[first], index)
            value = torch.maximum(value, largest)
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
    edge: Tensor,
    displacement: Tensor,
    keys: np.ndarray,
    size: tuple[int, int],
    *,
    background_score: float,
    beta: float,
    exp_times: int,
) -> Detections:
    """Random walk of each class's CAM within each instance, then the instances of an image.

    Args:
        cam: (K, h, w) CAM of the classes `keys` (0-based), at stride 4; unlike for semantic masks, without a power.
        edge: (1, h, w) class boundaries in [0, 1].
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
    value, index = _strongest(cam, instances, edge, size, beta=beta, exp_times=exp_times)
    score = divide_by_maximum(value)
    regions = torch.where(score > background_score, index + 1, 0)
    return split_regions(regions.cpu().numpy(), score.cpu().numpy(), np.repeat(keys, len(instances)))
