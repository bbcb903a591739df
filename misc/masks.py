"""From CAMs and boundaries to segmentation masks (IRN section 5)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from misc.cam import label_map
from misc.imutils import MAP_STRIDE, cells_of
from misc.indexing import RandomWalk


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) maps at stride 4 -> (n, H, W), bilinear."""
    height, width = size
    upsampled = F.interpolate(maps[None], scale_factor=MAP_STRIDE, mode="bilinear", align_corners=False)[0]
    return upsampled[:, :height, :width]


def divide_by_maximum(scores: Tensor) -> Tensor:
    """Divide by the one maximum of all values; all zeros stay zeros instead of turning into 0 / 0."""
    return scores / scores.max().clamp_min(torch.finfo(scores.dtype).tiny)


@torch.no_grad()
def semantic_mask(
    cam: Tensor,
    walk: RandomWalk,
    keys: Sequence[int] | np.ndarray,
    size: tuple[int, int],
    *,
    power: float,
    background_score: float,
) -> np.ndarray:
    """Random walk of the CAM, then the class ids of an image.

    Args:
        cam: (K, h, w) CAM of the classes `keys` (0-based), at stride 4.
        walk: between the image's class boundaries.
        size: (H, W) of the image.
        power: of the CAM before the walk.
        background_score: of the walked maps divided by their one maximum over all classes.

    Returns:
        (H, W) uint8, 0 for background; all background if K is 0.

    Raises `ValueError` if the CAM is not one of `keys` and `size`.
    """
    if tuple(cam.shape) != (len(keys), *cells_of(size)):
        raise ValueError(f"the CAM must be {(len(keys), *cells_of(size))} for these keys and size, not {(*cam.shape,)}")
    if len(keys) == 0:
        return np.zeros(size, dtype=np.uint8)
    scores = divide_by_maximum(upsample(walk(cam**power), size))
    return label_map(scores.cpu().numpy(), keys, background_score)
