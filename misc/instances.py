"""From CAMs, boundaries and displacements to instance masks (IRN section 5).

The displacement of a pixel points to the centroid of its instance. Displacements and maps lie at stride 4.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from misc.indexing import propagate_to_edge
from misc.masks import divide_by_maximum, upsample

REFINEMENTS = 300
CENTROID_REACH = 2.5
"""Cells with a shorter displacement, in cells, are near a centroid."""
FRAGMENT_SHARE = 0.01
"""Of the image's pixels: smaller fragments are kept, but score 0."""
UPSAMPLED_AT_ONCE = 64


@dataclass(frozen=True)
class Detections:
    """Instances found in an image: `scores` (N,) float32, `masks` (N, H, W) bool, `classes` (N,) int64, 0-based."""

    scores: np.ndarray
    masks: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


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
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]


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


def _strongest(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(n, h, w) maps at stride 4 -> at full size, each pixel's largest value and the index of its map, (H, W) each.

    A fragmented field makes hundreds of maps, so that only some are upsampled at once.
    """
    value, index = maps.new_full(size, -torch.inf), torch.zeros(size, dtype=torch.long, device=maps.device)
    for start in range(0, len(maps), UPSAMPLED_AT_ONCE):
        upsampled = upsample(maps[start : start + UPSAMPLED_AT_ONCE], size)
        of_chunk = upsampled.argmax(dim=0)
        largest = upsampled.gather(0, of_chunk[None])[0]
        index = torch.where(largest > value, of_chunk + start, index)
        value = torch.maximum(value, largest)
    return value, index


def split_regions(regions: np.ndarray, score: np.ndarray, classes: np.ndarray) -> Detections:
    """Region r > 0 of (H, W) ids -> one detection of class `classes[r - 1]` for each 4-connected component.

    A detection scores the maximum of (H, W) `score` inside it. Quirk of the original, kept: a component smaller than
    1 per cent of the image stays, with score 0.
    """
    scores, masks, found = [], [], []
    for region in np.unique(regions[regions > 0]):
        components = connected_components(regions == region)
        for number in range(1, components.max() + 1):
            mask = components == number
            scores.append(0 if mask.sum() < FRAGMENT_SHARE * mask.size else score[mask].max())
            masks.append(mask)
            found.append(classes[region - 1])
    return Detections(
        np.array(scores, dtype=np.float32),
        np.array(masks, dtype=bool).reshape(-1, *regions.shape),
        np.array(found, dtype=np.int64),
    )


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
    of_instances = (cam[:, None] * instances).flatten(0, 1)
    value, index = _strongest(propagate_to_edge(of_instances, edge, beta=beta, exp_times=exp_times), size)
    score = divide_by_maximum(value)
    regions = torch.where(score > background_score, index + 1, 0)
    return split_regions(regions.cpu().numpy(), score.cpu().numpy(), np.repeat(keys, len(instances)))
