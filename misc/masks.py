"""From CAMs and boundaries to segmentation masks (IRN section 5)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from misc.cam import class_ids
from misc.files.camfile import MAP_STRIDE
from misc.imutils import cells_of
from misc.indexing import RandomWalk


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) maps at stride 4 -> (n, H, W), bilinear."""
    height, width = size
    upsampled = F.interpolate(maps[None], scale_factor=MAP_STRIDE, mode="bilinear", align_corners=False)[0]
    return upsampled[:, :height, :width]


def divide_by_maximum(scores: Tensor) -> Tensor:
    """Divide by the one maximum of all values; all zeros stay zeros instead of turning into 0 / 0."""
    return scores / scores.max().clamp_min(torch.finfo(scores.dtype).tiny)


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

    def walk_alone(maps: Sequence[Tensor]) -> list[Tensor]:
        return [walk(of_image) for of_image in maps]

    masks = semantic_masks([cam], walk_alone, [keys], [size], power=power, background_score=background_score)
    return masks[0].cpu().numpy()


@torch.no_grad()
def semantic_masks(
    cams: Sequence[Tensor],
    walk: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    keys: Sequence[Sequence[int] | np.ndarray],
    sizes: Sequence[tuple[int, int]],
    *,
    power: float,
    background_score: float,
) -> list[Tensor]:
    """The same of several images, which `walk` together; their masks stay on the device of the CAMs."""
    for cam, of_image, size in zip(cams, keys, sizes, strict=True):
        expected = (len(of_image), *cells_of(size))
        if tuple(cam.shape) != expected:
            raise ValueError(f"the CAM must be {expected} for these keys and size, not {(*cam.shape,)}")
    walked = walk([cam**power for cam in cams])
    return [
        class_ids(divide_by_maximum(upsample(maps, size)), of_image, background_score)
        if len(of_image)
        else maps.new_zeros(size, dtype=torch.uint8)
        for maps, of_image, size in zip(walked, keys, sizes, strict=True)
    ]
