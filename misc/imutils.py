"""Images as uint8 arrays: resizing, cropping; normalisation on the device.

Resizing is PIL's, on uint8: bicubic for images (antialiased; other libraries differ), nearest for labels. (DeepLab's
training images are OpenCV's: `misc.deeplab.scaled_pair`.)
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from misc.files.camfile import MAP_STRIDE
from misc.run.device import to_device

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BGR_MEAN = (104.008, 116.669, 122.675)
"""Blue, green and red, 0 .. 255: what networks of the Caffe family subtract."""
IGNORE_LABEL = 255
"""In label images: pixels that no loss and no score counts (unsure, object boundaries, padding)."""
Box = tuple[int, int, int, int]
"""top, left, height, width"""


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times `scale`, rounded half to even, at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def cells_of(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image -> (h, w) of its maps at stride 4, a cell at the border being as wide as what is left."""
    return math.ceil(size[0] / MAP_STRIDE), math.ceil(size[1] / MAP_STRIDE)


def long_side_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(H, W) with the same shape, its longer side equal to `long_side`."""
    height, width = size
    if height > width:
        return long_side, max(1, round(width * long_side / height))
    return max(1, round(height * long_side / width)), long_side


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8, PIL bicubic."""
    return _resize(image, size, Image.Resampling.BICUBIC)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 -> (*size) uint8, PIL nearest."""
    return _resize(label, size, Image.Resampling.NEAREST)


def _resize(array: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    if array.shape[:2] == tuple(size):
        return array
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), resample))


def reduce_label(label: np.ndarray, factor: int) -> np.ndarray:
    """(H, W) uint8 -> (H / factor, W / factor), PIL nearest.

    PIL samples the cells factor/2 + factor * i: slicing with a step from 0 is not the same.
    """
    return resize_label(label, (label.shape[0] // factor, label.shape[1] // factor))


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) -> (B, *size): what `resize_label` makes of each map, on the labels' device."""

    def sources(given: int, wanted: int) -> Tensor:
        # PIL adds up the step; products would round differently where a cell's centre lies between two pixels
        step = given / wanted
        centres = np.cumsum([step / 2, *[step] * (wanted - 1)])
        return to_device(torch.from_numpy(centres.astype(np.int64)), labels.device)

    rows, columns = sources(labels.shape[1], size[0]), sources(labels.shape[2], size[1])
    return labels[:, rows[:, None], columns]


def random_crop_boxes(size: tuple[int, int], crop: int, rng: np.random.Generator) -> tuple[Box, Box]:
    """A random crop of `crop` x `crop` of an image of `size`: the box in the image and the box in the container.

    A side shorter than the crop is taken whole and placed at a random offset in the container.
    """

    def one_side(length: int) -> tuple[int, int, int]:
        room = length - crop
        offset = int(rng.integers(abs(room) + 1))
        return (offset, 0, crop) if room > 0 else (0, offset, length)

    image_top, top, height = one_side(size[0])
    image_left, left, width = one_side(size[1])
    return (image_top, image_left, height, width), (top, left, height, width)


def top_left_crop_boxes(size: tuple[int, int], crop: int) -> tuple[Box, Box]:
    """The boxes of a crop at the top left, padded at the bottom and the right."""
    box = (0, 0, min(size[0], crop), min(size[1], crop))
    return box, box


def crop_into(array: np.ndarray, boxes: tuple[Box, Box], crop: int, *, fill: int = 0) -> np.ndarray:
    """(H, W, ...) -> (crop, crop, ...): the image's box pasted at the container's box, `fill` elsewhere."""
    (image_top, image_left, height, width), (top, left, _, _) = boxes
    container = np.full((crop, crop, *array.shape[2:]), fill, dtype=array.dtype)
    container[top : top + height, left : left + width] = array[
        image_top : image_top + height, image_left : image_left + width
    ]
    return container


def to_chw(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> contiguous (3, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def normalize(images: Tensor, boxes: Tensor | None = None) -> Tensor:
    """(..., 3, H, W) RGB in 0 .. 255, uint8 or float32 -> float32 (x / 255 - mean) / std, on the images' device.

    `boxes` (B, 4), as (top, left, height, width), marks the part of each crop that the image fills; the rest becomes
    zero: the padding of a crop is zero *after* normalisation, that is the mean colour.
    """
    mean, std = (_of_channels(numbers, images.device) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return _zero_outside((images.float() / 255 - mean) / std, boxes)


def subtract_bgr_mean(images: Tensor, boxes: Tensor | None = None) -> Tensor:
    """(..., 3, H, W) RGB, uint8 or float32 -> float32 BGR minus the mean, all in units of 0 .. 255.

    `boxes` as in `normalize`.
    """
    return _zero_outside(images.flip(-3).float() - _of_channels(BGR_MEAN, images.device), boxes)


def _of_channels(numbers: Sequence[float], device: torch.device) -> Tensor:
    """(3, 1, 1) float32, written by the device itself: a copy of the numbers would wait for it."""
    return torch.cat([torch.full((1, 1, 1), number, device=device) for number in numbers])


def _zero_outside(images: Tensor, boxes: Tensor | None) -> Tensor:
    if boxes is None:
        return images
    top, left, height, width = to_device(boxes, images.device).T[..., None]
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    inside_rows = (rows >= top) & (rows < top + height)
    inside_columns = (columns >= left) & (columns < left + width)
    return images * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])


def mirror_pair(image: Tensor) -> Tensor:
    """(3, H, W) -> (2, 3, H, W): the image and its mirror image."""
    return torch.stack([image, image.flip(-1)])
